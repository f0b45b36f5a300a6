"""The command line: verbs, and errors as one sentence with an exit status. Heavy libraries are imported by the verbs."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from acclimate.errors import AcclimateError, UsageError

app = typer.Typer(
    help="Adapt pretrained language models to your task, and see what it bought.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Change entries of the recipe.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write; runs/<recipe>-<time> without it.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only what was asked for.")]
Json = Annotated[bool, typer.Option("--json", help="Output for programs.")]
Model = Annotated[str, typer.Option("--model", help="A built-in name, a folder, a .gguf file or a hub id.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="The adapter/ folder of a run.")]


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Adapt one model one way; evaluate before and after; write a report."""
    from acclimate.cli.adapt import run_recipe

    run_recipe(recipe, overrides or [], out, resume, quiet)


@app.command()
def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished comparison in --out.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="With the smaller numbers of the recipe's table quick.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Rungs at once, each in a process of its own.")] = 1,
    quiet: Quiet = False,
    only: Annotated[str, typer.Option("--only", hidden=True, help="One rung, for a parent with several jobs.")] = "",
) -> None:
    """Several ways of adapting one model to one task: one table, one page."""
    from acclimate.cli.compare import Wish, compare_recipe

    compare_recipe(recipe, overrides or [], out, Wish(resume, quick, jobs, quiet, only))


@app.command()
def plan(recipe: RecipePath, overrides: Overrides = None, json: Json = False) -> None:
    """Predict memory, tokens, steps and time of a recipe; nothing is trained."""
    from acclimate.cli.adapt import plan_recipe

    plan_recipe(recipe, overrides or [], json)


@app.command()
def evaluate(
    model: Model,
    adapter: Adapter = None,
    data: Annotated[str, typer.Option("--data", help="A built-in name or a file.")] = "",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Take the task from this recipe.")] = None,
    tasks: Annotated[str, typer.Option("--tasks", help="Benchmarks, commas between; `list tasks` names them.")] = "",
    data_folder: Annotated[Path, typer.Option("--data-folder", help="Where the files of --tasks lie.")] = Path(),
    limit: Annotated[int, typer.Option("--limit", min=0, help="Of each of --tasks, or of prompts; 0 is all.")] = 0,
    perturb: Annotated[str, typer.Option("--perturb", help="Ask again with typos, gendered, paraphrase, …")] = "",
    by: Annotated[str, typer.Option("--by", help="Scores for each value of this column, and the gap.")] = "",
    method: Annotated[str, typer.Option("--method", help="As in a rung: few_shot, {name: few_shot, shots: 8}, …")] = "",
    toxicity: Annotated[int, typer.Option("--toxicity", min=0, help="Samples after each prompt; 25 usually.")] = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """Scores with intervals, and a row per example."""
    if tasks:
        from acclimate.cli.benchmarks import evaluate_tasks

        if data or recipe or perturb or by or method:
            raise UsageError("--tasks brings data and prompts; leave out --data, --recipe, --perturb, --by, --method.")
        evaluate_tasks(model, adapter, tasks, data_folder, limit, out, json)
        return
    if toxicity:
        from acclimate.cli.toxicity import evaluate_toxicity

        if recipe or perturb or by or method:
            raise UsageError("--toxicity asks for text after prompts; leave out --recipe, --perturb, --by, --method.")
        evaluate_toxicity(model, adapter, data, toxicity, limit, out, json)
        return
    from acclimate.cli.ask import evaluate_model

    evaluate_model(model, adapter, data, recipe, out, json, perturb, by, method)


@app.command()
def judge(
    judge: Annotated[
        list[str],
        typer.Option(
            "--judge",
            help="A model, https://HOST/v1#MODEL, a file of verdicts, likelihood:MODEL or length; give it repeatedly.",
        ),
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Further runs.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Rows of prompt, output_1, output_2 and perhaps label: 1, 2 or tie.")
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option("--runs", help="Folders of runs that answered the same prompts: --runs A B C.")
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", help="Grade single answers: helpfulness (1 to 6) or acceptance.")
    ] = "",
    reasons: Annotated[bool, typer.Option("--reasons", help="Let the judge write before it says its verdict.")] = False,
    out: Out = None,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Bootstrap draws.")] = 2000,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Which answer is better: by judges, against people, with the order's part in it; many runs as one ranking."""
    from acclimate.cli.judge import Wish, judge_answers

    wish = Wish(tuple(judge), data, (*(runs or ()), *(more or ())), scale, reasons, draws, seed)
    judge_answers(wish, out, quiet, json)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts; read from standard input without any.")] = None,
    adapter: Adapter = None,
    max_new: Annotated[int, typer.Option("--max-new", min=1, help="Tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus.")] = 1.0,
    beams: Annotated[int, typer.Option("--beams", min=1, help="Beam width; 1 is none.")] = 1,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No chat format around the prompt.")] = False,
    best_of: Annotated[int, typer.Option("--best-of", min=1, help="Samples, of which --reward chooses one.")] = 1,
    reward: Annotated[
        str, typer.Option("--reward", help="As in a recipe: lexicon, or {name: model, adapter: FOLDER}, or a list.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    json: Json = False,
) -> None:
    """Write text after prompts."""
    from acclimate.cli.ask import Wish, generate_texts

    wish = Wish(max_new, temperature, top_p, beams, tuple(stop or ()), plain, seed, best_of, reward)
    generate_texts(model, adapter, list(prompt or ()), wish, json)


@app.command()
def chat(
    model: Model,
    adapter: Adapter = None,
    system: Annotated[str, typer.Option("--system", help="What the assistant is told first.")] = "",
    max_new: Annotated[int, typer.Option("--max-new", min=1)] = 512,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p")] = 0.9,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """A conversation on the terminal; an empty line or Ctrl-D ends it."""
    from acclimate.cli.ask import Wish, converse

    converse(model, adapter, system, Wish(max_new, temperature, top_p, 1, (), False, seed))


@app.command()
def score(
    model: Model,
    text: Annotated[list[str] | None, typer.Argument(help="Texts; read from standard input without any.")] = None,
    adapter: Adapter = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Score the texts as continuations of this.")] = "",
    json: Json = False,
) -> None:
    """Log-probabilities (natural log) and perplexity of texts."""
    from acclimate.cli.ask import score_texts

    score_texts(model, adapter, list(text or ()), prompt, json)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE|RECIPE", help="A data file, or a recipe with its data.")],
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="The labels there may be; give it repeatedly.")
    ] = None,
    columns: Annotated[list[str] | None, typer.Option("--column", help="ours=theirs; give it repeatedly.")] = None,
    json: Json = False,
) -> None:
    """Problems by file and line."""
    from acclimate.cli.inspect import validate_file

    validate_file(file, tuple(labels or ()), list(columns or ()), json)


@app.command()
def curate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A built-in name or a data file.")],
    out: Annotated[Path, typer.Option("--out", help="A new .jsonl file for the rows that are kept.")],
    novel: Annotated[float, typer.Option("--novel", help="Prompts this like an earlier one (ROUGE-L) go.")] = 0.7,
    known: Annotated[list[str] | None, typer.Option("--known", help="A file to be new beside; repeatedly.")] = None,
    json: Json = False,
) -> None:
    """Leave out rows that ask what was asked before."""
    from acclimate.cli.curate import curate_rows

    curate_rows(file, out, novel, known or (), json)


@app.command()
def merge(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="A new folder for the merged model.")],
    adapter: Adapter = None,
    delta: Annotated[Path | None, typer.Option("--delta", help="What `export --format delta` wrote.")] = None,
) -> None:
    """Write an adapter or a difference into its base: a plain model folder that transformers loads."""
    from acclimate.cli.convert import merge_into

    merge_into(model, adapter, delta, out)


@app.command()
def combine(
    model: Model,
    adapter: Annotated[list[Path], typer.Option("--adapter", help="An adapter/ folder; give it repeatedly.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="Of each adapter; 1/n without, 1 for ties, which averages.")
    ] = None,
    how: Annotated[str, typer.Option("--how", help="linear, ties or dare.")] = "linear",
    keep: Annotated[
        float | None, typer.Option("--keep", help="ties: the share of each change that stays; 0.2.")
    ] = None,
    drop: Annotated[float | None, typer.Option("--drop", help="dare: the share of each change that goes; 0.5.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="dare: of what is dropped; 0.")] = None,
) -> None:
    """Several adapters of one base become one: a LoRA for a sum of LoRAs, otherwise a difference for `merge --delta`."""
    from acclimate.cli.convert import combine_adapters, way_of

    combine_adapters(model, adapter, weight or (), way_of(how, keep, drop, seed), out)


@app.command()
def export(
    model: Model,
    adapter: Annotated[
        Path, typer.Option("--adapter", help="The adapter/ folder of a run; for delta a tuned model's as well.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    format: Annotated[str, typer.Option("--format", help="peft, merged, or delta: weights minus the base.")] = "peft",
) -> None:
    """Convert an adapter to another format."""
    from acclimate.cli.convert import export_adapter

    export_adapter(model, adapter, out, format)


@app.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="models, data, methods, objectives, metrics, samplers, schedules, tasks, templates or adapters."
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER|NAME]", help="Where adapters are looked for, here without it; or a set of templates."
        ),
    ] = None,
    data: Annotated[str, typer.Option("--data", help="Show its first rows in each template of the set.")] = "",
    json: Json = False,
) -> None:
    """What there is, with one line each."""
    from acclimate.cli.inspect import list_things, preview

    if what == "templates" and folder is not None:
        preview(str(folder), data, json)
    else:
        list_things(what, json, folder, data)


@app.command()
def env(json: Json = False) -> None:
    """Versions and devices, for a bug report."""
    from acclimate.cli.inspect import show_environment

    show_environment(json)


def main() -> None:
    """The entry point: an error that was foreseen is a sentence and a status, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("acclimate").setLevel(logging.INFO)
    try:
        app()
    except AcclimateError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        sys.exit(3)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
