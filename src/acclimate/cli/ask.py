"""evaluate, generate, chat and score."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from acclimate.cli.voice import voice
from acclimate.data.examples import Document, Example, Message
from acclimate.data.template import Template, dialogue, spaced
from acclimate.data.yaml_tables import build, compose
from acclimate.errors import UsageError
from acclimate.evaluation.best_of import BestOf, kl_bound
from acclimate.evaluation.evaluate import Measured, kinds, rows_of, scores
from acclimate.evaluation.predictor import Generate, Likelihood, Predictor, prompt_row
from acclimate.generation.decode import stream
from acclimate.generation.samplers import Beam, Greedy, Sample, Sampler
from acclimate.generation.stops import Stops, pieces
from acclimate.metrics import choose
from acclimate.metrics.metric import Metric
from acclimate.recipe import Recipe, load, parse
from acclimate.rewards import REWARDS
from acclimate.rewards.reward import Weighted
from acclimate.run import otherwise, versions
from acclimate.run.beside import bound
from acclimate.run.carry import Voice
from acclimate.run.judged import JUDGED, asking
from acclimate.run.measure import predictor_for
from acclimate.run.open import Opened, open_model
from acclimate.run.parts import parts
from acclimate.run.preferences import target_of as best_of
from acclimate.run.prepare import resolve_task
from acclimate.run.tasks import default_names, opened_head, target_of


@dataclass(frozen=True)
class Wish:
    """How text is to be written."""

    max_new: int
    temperature: float
    top_p: float
    beams: int
    stops: tuple[str, ...]
    plain: bool
    seed: int
    best_of: int = 1  # samples, of which the rewards choose one
    rewards: str = ""

    def sampler(self) -> Sampler | Beam:
        """Greedy at temperature 0, beams where there are several."""
        if self.beams > 1:
            return Beam(self.beams)
        return Sample(self.temperature, top_p=self.top_p) if self.temperature else Greedy()


@dataclass(frozen=True)
class _Rewarded:
    """--reward, as a recipe has its rewards."""

    rewards: tuple[tuple[float, Any], ...] = field(metadata={"weighted": REWARDS})


def _given(texts: Sequence[str]) -> list[str]:
    found = list(texts) or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not found:
        raise UsageError("No text was given: write it after the options, or send lines on standard input.")
    return found


def generate_texts(model: str, adapter: Path | None, prompts: Sequence[str], wish: Wish, as_json: bool) -> None:
    """The verb `generate`."""
    asked = [
        Example(prompt, fields={"prompt": prompt}, where=f"prompt {i + 1}") for i, prompt in enumerate(_given(prompts))
    ]
    opened = open_model(model, adapter)
    writer = Generate(
        opened.model,
        opened.codec,
        opened.template(plain=wish.plain),
        opened.context,
        wish.max_new,
        wish.sampler(),
        wish.stops,
        seed=wish.seed,
    )
    predictor = _best_of(opened, writer, wish) if wish.best_of > 1 or wish.rewards else writer
    for example, output in zip(asked, predictor(asked), strict=True):
        row: dict[str, Any] = {
            "prompt": example.prompt,
            "text": output.text,
            "finish": output.finish,
            "prompt_ids": list(output.prompt_ids),
        }
        if isinstance(predictor, BestOf):
            row |= {"reward": output.value, "scores": dict(output.scores), "kl_bound": kl_bound(wish.best_of)}
        print(json.dumps(row, ensure_ascii=False) if as_json else output.text)
        if isinstance(predictor, BestOf) and not as_json:
            print(f"reward {output.value:.4f}, best of {wish.best_of}, KL <= {row['kl_bound']:.4f}", file=sys.stderr)


def _best_of(opened: Opened, writer: Generate, wish: Wish) -> BestOf:
    """The writer asked several times. The reward models of --reward ride on its trunk where they fit there."""
    if not (wish.rewards and wish.temperature and wish.beams == 1):
        raise UsageError(
            "--best-of draws samples and keeps the best by --reward; give both, and --temperature above 0."
        )
    asked = build(_Rewarded, compose(f"rewards: {wish.rewards}", "--reward"), "", "--reward")
    opened.model.requires_grad_(False)
    return BestOf(writer, bound(Weighted(asked.rewards), opened.model, opened.codec), wish.best_of)


def converse(model: str, adapter: Path | None, system: str, wish: Wish) -> None:
    """The verb `chat`: the whole conversation is rendered anew for every turn, as it is for training."""
    opened = open_model(model, adapter)
    turns = [Message("system", system)] if system else []
    while line := _asked():
        turns.append(Message("user", line))
        turns.append(Message("assistant", _reply(opened, turns, wish)))


def _asked() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def _reply(opened: Opened, turns: Sequence[Message], wish: Wish) -> str:
    asked = dialogue(turns, opened.codec.chat(), "chat", reply=True)
    row = prompt_row(opened.codec, asked, opened.context - wish.max_new, "chat")
    sampler = wish.sampler()
    assert not isinstance(sampler, Beam)
    stops = Stops(wish.stops, opened.codec.decode)
    ids = stream(
        opened.model,
        row.source or row.ids,
        sampler,
        terminators=opened.codec.terminators,
        max_new=wish.max_new,
        stops=stops,
        seed=wish.seed,
    )
    said = ""
    for piece in pieces(ids, stops):
        print(piece, end="", flush=True)
        said += piece
    print()
    return said.strip()


def score_texts(model: str, adapter: Path | None, texts: Sequence[str], prompt: str, as_json: bool) -> None:
    """The verb `score`: Σ log p in nats, tokens, bytes and perplexity of each text and of all."""
    given = _given(texts)
    opened = open_model(model, adapter)
    if prompt:
        template = Template(end="")
        asked: list[Any] = [
            Example(prompt, text, fields={"prompt": prompt}, where=f"text {i + 1}") for i, text in enumerate(given)
        ]
    else:
        template = opened.template()
        asked = [Document(text, f"text {i + 1}") for i, text in enumerate(given)]
    outputs = Likelihood(opened.model, opened.codec, template, opened.context)(asked)
    for text, output in zip(given, outputs, strict=True):
        shown = spaced(prompt, text) if prompt else text
        perplexity = math.exp(-output.logprob / output.tokens) if output.tokens else None
        row = {
            "text": shown,
            "logprob": output.logprob,
            "tokens": output.tokens,
            "bytes": output.bytes,
            "perplexity": perplexity,
        }
        if as_json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            ppl = f"{perplexity:.2f}" if perplexity is not None else "-"
            print(f"log p {output.logprob:.4f}  tokens {output.tokens}  perplexity {ppl}  {shown[:80]!r}")


def evaluate_model(
    model: str,
    adapter: Path | None,
    data: str,
    recipe_path: Path | None,
    out: Path | None,
    as_json: bool,
    perturb: str = "",
    by: str = "",
    method: str = "",
) -> None:
    """The verb `evaluate`: the task comes from a recipe, or from what the adapter says of itself; see `run.versions`.

    Of rows that people judged it measures what `run.judged` has: comparisons and marked spans.
    """
    asked_for, way = versions.changes(perturb, 0), otherwise.way(method) if method else None
    opened = open_model(model, adapter, heads=True)
    recipe = _task_of(opened, data, recipe_path, model)
    test = parts(recipe.data, recipe.task).test
    base = None if adapter is None else partial(open_model, model)
    metrics, answering = (_judged if isinstance(test.rows[0], JUDGED) else _answered)(opened, recipe, test.rows, base)
    speaking, draws, seed = voice(quiet=as_json), recipe.evaluation.draws, recipe.evaluation.seed
    asked = otherwise.prompted(way, opened, recipe, answering) if way else None
    answering = dict.fromkeys(answering, asked) if asked else answering
    measured = _measured(test.rows, "evaluation", metrics, answering, speaking)
    found = {name: score.json() for name, score in scores(metrics, measured, draws, seed).items()}
    table: dict[str, Any] = {"model": model, "adapter": str(adapter or ""), "scores": found}
    if asked:
        table |= {"method": method, "learned": asked.learned(measured.answers)}
    if versions.PARAPHRASE in versions.listed(perturb):
        asked_for |= _reworded(table, base() if base else opened, recipe, test.rows, speaking)
    if by:
        table["groups"] = versions.grouped(metrics, measured, test.rows, by, draws, seed)
    if asked_for:
        changed = {name: versions.version(test.rows, how, recipe.task.labels) for name, how in asked_for.items()}
        others = {name: _measured(rows, name, metrics, answering, speaking) for name, rows in changed.items()}
        table |= versions.compared(metrics, measured, others, draws, seed)
    if out is not None:
        _keep(out, table, test.rows, measured)
    _say(table, as_json)


def _reworded(
    table: dict[str, Any], base: Opened, recipe: Recipe, rows: Sequence[Any], speaking: Voice
) -> dict[str, versions.Change]:
    """The versions in the base model's own words; `table` hears how far they go."""
    changes, table["paraphrases"] = otherwise.paraphrases(base, rows, recipe.task.labels, speaking.told)
    return changes


def _answered(opened: Opened, recipe: Recipe, rows: Sequence[Any], base: object) -> tuple[Any, dict[str, Predictor]]:
    """The metrics of rows with answers, and what answers for each kind of them."""
    template, task = resolve_task(recipe.task, opened.codec, rows[0])
    metrics = choose(task.metrics or default_names(task, rows), task.labels or None)
    head = opened_head(opened.model, opened.facts, task, opened.codec, rows[0], opened.context)
    return metrics, {
        kind: predictor_for(
            kind, task, opened.model, opened.codec, template, opened.context, recipe.evaluation.seed, head
        )
        for kind in kinds(metrics, task.labels)
    }


def _judged(opened: Opened, recipe: Recipe, rows: Sequence[Any], base: Any) -> tuple[Any, dict[str, Any]]:
    """The same for rows that people judged."""
    found = asking(opened, recipe, rows, base)
    return found.metrics, {found.metrics[0].kind: found.answers}


def _measured(
    rows: Sequence[Any], what: str, metrics: Sequence[Metric], answering: Mapping[str, Predictor], speaking: Voice
) -> Measured:
    asked = {kind: ask(rows, speaking.told(f"{what} ({kind})", len(rows))) for kind, ask in answering.items()}
    return rows_of(metrics, asked, rows)


def _say(table: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(table))
        return
    for name, score in table["scores"].items():
        print(f"{name}: {score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f}), n = {score['n']}")
    for title, rows in table.get("learned", {}).items():
        for name, row in rows.items():
            print(f"{title}, {name}: {', '.join(f'{key} {value:g}' for key, value in row.items())}")
    for line in versions.lines(table):
        print(line)


def _task_of(opened: Opened, data: str, recipe_path: Path | None, model: str) -> Recipe:
    if recipe_path is not None:
        recipe = load(recipe_path)
        return replace(recipe, data=replace(recipe.data, train=data, test="")) if data else recipe
    if not data:
        raise UsageError("Give --data with a built-in name or a file, or --recipe with a task.")
    table = {"model": model, "data": {"train": data}, "task": opened.facts.get("task") or {}}
    return parse(json.dumps(table), "the adapter's task" if opened.facts else "command line")


def _keep(out: Path, table: dict[str, Any], rows: Sequence[Any], measured: Any) -> None:
    from acclimate.training.checkpoint import atomic_write

    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; give a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "row": i,
            "where": row.where,
            "prompt_ids": list(measured.answers[i].prompt_ids),
            "truncated": measured.answers[i].truncated,
            "target": target_of(row) or best_of(row),
            "text": measured.answers[i].text,
            "scores": dict(measured.answers[i].scores),
            "metrics": {name: list(found[i]) for name, found in measured.rows.items()},
        }
        for i, row in enumerate(rows)
    ]
    atomic_write(out / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    atomic_write(out / "scores.json", json.dumps(table, indent=1) + "\n")
