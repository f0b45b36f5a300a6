"""Every option of a recipe does something, and nothing that it should not (G34): two runs that differ in it alone.

An option that is new and has no case here fails the first test. Of the methods only LoRA stands here, for all of them:
tests/test_method_options.py asks each method about each of its options.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from acclimate.methods import METHODS, LoRA
from acclimate.recipe import Recipe, parse
from acclimate.run.carry import Voice, carry
from acclimate.run.predict import predict
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests import spelling, tiny
from tests.runs import overrides


class Option(NamedTuple):
    """`other` over `base`, both over RECIPE: every facet in `changes` must differ, every one in `keeps` be the same."""

    other: str
    changes: str
    keeps: str
    base: str = ""


RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl, test: {home}/test.jsonl, dev: {home}/dev.jsonl}
task: {template: "is it good or bad? {{ text }}:", labels: [bad, good], chat: false}
method: {name: lora, rank: 2, targets: [query, value]}
training: {steps: 4, tokens_per_step: 96, rate: 0.02, precision: float32, checkpoint_every: 2}
evaluation: {draws: 50, forgetting: false}
"""
WRITES = "task.labels=[] data.target=review task.metrics=[exact_match] task.max_new_tokens=6 data.limit.test=4"
SAMPLES = f"{WRITES} task.sampler={{name: sample}}"
BEAMS = f"{WRITES} task.stops=[V, y, c, n] task.sampler={{name: beam, width: 3}}"
LONG = "data.max_tokens=18 data.truncation=truncate-prompt"
NUMBERS = "task.labels=[] data.target=stars task.max_new_tokens=4 data.limit.test=6"
AFTER = "norms weights answers"  # what training and the result depend on
BEFORE = "prompts base"  # what is there before the training

OPTIONS = {
    "Recipe.model": Option("model={home}/other", f"fingerprint base {AFTER}", "prompts counts"),
    "Recipe.method": Option("method=head", f"trainable {AFTER}", BEFORE),
    "Recipe.objective": Option("objective=sequence_lm", f"losses {AFTER}", f"{BEFORE} tokens", WRITES),
    "Recipe.trackers": Option("trackers=[tensorboard]", "files", f"{BEFORE} losses {AFTER}"),
    "Data.train": Option("data.train={home}/more.jsonl", f"counts losses {AFTER}", BEFORE),
    "Data.test": Option("data.test={home}/more.jsonl", "counts prompts base answers", "losses weights dev"),
    "Data.dev": Option("data.dev={home}/more.jsonl", "counts dev", f"{BEFORE} losses {AFTER}"),
    "Data.columns": Option("data.columns={text: review}", f"prompts base losses {AFTER}", "counts trainable"),
    "Data.target": Option("data.target=verdict", f"losses {AFTER}", BEFORE),
    "Data.truncation": Option("data.truncation=drop", "losses weights tokens", BEFORE, LONG),
    "Data.max_tokens": Option("data.max_tokens=19", "losses weights tokens", BEFORE, LONG),
    "Limit.train": Option("data.limit.train=5", f"counts losses {AFTER}", f"{BEFORE} watched"),
    "Limit.dev": Option("data.limit.dev=3", "counts dev", f"{BEFORE} losses {AFTER}"),
    "Limit.test": Option("data.limit.test=3", "counts prompts", "losses weights dev"),
    "Task.template": Option("task.template={{ text }} is", f"prompts base losses {AFTER}", "counts trainable"),
    "Task.system": Option("task.system=be brief", f"prompts base losses {AFTER}", "counts", "task.chat=true"),
    "Task.chat": Option("task.chat=true", f"prompts base losses {AFTER}", "counts"),
    "Task.labels": Option("task.labels=[bad, good, fair]", "base answers", "prompts losses weights"),
    "Task.verbalizer": Option("task.verbalizer={bad: [poor, sad]}", f"base losses {AFTER}", "prompts counts trainable"),
    "Task.metrics": Option("task.metrics=[accuracy]", "scores", f"{BEFORE} losses {AFTER}"),
    "Task.max_new_tokens": Option("task.max_new_tokens=3", "base answers", "prompts losses weights", WRITES),
    "Task.stops": Option("task.stops=[V, y, c, n]", "base answers", "prompts losses weights", WRITES),
    "Task.sampler": Option("task.sampler=sample", "base answers", "prompts losses weights", WRITES),
    "Sample.temperature": Option("task.sampler.temperature=9.0", "base answers", "prompts losses weights", SAMPLES),
    "Sample.top_k": Option("task.sampler.top_k=1", "base answers", "prompts losses weights", SAMPLES),
    "Sample.top_p": Option("task.sampler.top_p=0.05", "base answers", "prompts losses weights", SAMPLES),
    "Sample.repetition_penalty": Option(
        "task.sampler.repetition_penalty=9.0", "base answers", "prompts losses weights", SAMPLES
    ),
    "Beam.width": Option("task.sampler.width=1", "base answers", "prompts losses weights", BEAMS),
    "Beam.length_penalty": Option("task.sampler.length_penalty=-9.0", "base", "prompts losses weights", BEAMS),
    "Task.numbers": Option("task.numbers=true", "scores", "prompts losses weights", NUMBERS),
    "LoRA.rank": Option("method.rank=3", f"trainable {AFTER}", BEFORE),
    "LoRA.alpha": Option("method.alpha=32", AFTER, f"{BEFORE} trainable"),
    "LoRA.dropout": Option("method.dropout=0.5", AFTER, f"{BEFORE} trainable"),
    "LoRA.targets": Option("method.targets=[up]", f"trainable {AFTER}", BEFORE),
    "Training.steps": Option("training.steps=5", "losses tokens checkpoints weights answers", BEFORE),
    "Training.tokens_per_step": Option("training.tokens_per_step=64", f"tokens losses {AFTER}", f"{BEFORE} rates"),
    "Training.tokens_per_pass": Option("training.tokens_per_pass=32", "memory", f"{BEFORE} near tokens"),
    "Training.rate": Option("training.rate=0.03", "rates weights answers", f"{BEFORE} tokens first"),
    "Training.schedule": Option("training.schedule=linear", "rates weights answers", f"{BEFORE} tokens first"),
    "Constant.warmup": Option(
        "training.schedule.warmup=0.5", "rates weights", BEFORE, "training.schedule={name: constant}"
    ),
    "Linear.warmup": Option(
        "training.schedule.warmup=0.5", "rates weights", BEFORE, "training.schedule={name: linear}"
    ),
    "Cosine.warmup": Option(
        "training.schedule.warmup=0.5", "rates weights", BEFORE, "training.schedule={name: cosine}"
    ),
    "Training.decay": Option("training.decay=5.0", "weights answers", f"{BEFORE} rates first"),
    "Training.max_norm": Option("training.max_norm=1e-9", "weights answers", f"{BEFORE} rates first"),
    "Training.seed": Option("training.seed=1", f"losses {AFTER}", f"{BEFORE} rates counts"),
    "Training.precision": Option("training.precision=bfloat16", f"fingerprint base losses {AFTER}", "prompts tokens"),
    "Training.checkpointing": Option("training.checkpointing=true", "memory", f"{BEFORE} near tokens"),
    "Training.paged": Option("training.paged=true", "states", f"{BEFORE} losses checkpoints {AFTER}"),
    "Training.checkpoint_every": Option("training.checkpoint_every=3", "checkpoints", f"{BEFORE} losses {AFTER}"),
    "Training.dev_every": Option("training.dev_every=3", "dev", f"{BEFORE} losses {AFTER} checkpoints"),
    "Evaluation.seed": Option("evaluation.seed=1", "intervals", f"{BEFORE} losses {AFTER} scores"),
    "Evaluation.draws": Option("evaluation.draws=60", "intervals", f"{BEFORE} losses {AFTER} scores"),
    "Evaluation.forgetting": Option("evaluation.forgetting=true", "forgetting", f"{BEFORE} losses {AFTER} scores"),
}


# what only a task head hears: test_tasks.py, which has the models and the rows for it
OF_HEADS = {f"Task.{option}" for option in ("head", "pool", "pair", "class_weights", "threshold")}
# what only a mixture of tasks hears: test_mixture_run.py
OF_MIXTURES = {
    "Data.mixture",
    *(f"Mixture.{option}" for option in ("sources", "hold_out", "tasks", "templates", "temperature")),
    *(f"Source.{option}" for option in ("rows", "templates", "natural_instructions", "parts", "name", "cluster")),
    *(f"Source.{option}" for option in ("columns", "labels", "weight", "cap")),
}
# what only comparisons of completions hear: test_preference_objectives.py and test_reward_model.py
OF_COMPARISONS = {
    *("DPO.beta", "DPO.smoothing", "IPO.tau", "KTO.beta", "KTO.desirable", "KTO.undesirable", "SimPO.beta"),
    *("SimPO.gamma", "ORPO.weight", "Unlikelihood.alpha", "Reward.ties"),
    *("Spans.level", "Spans.kinds"),  # test_feedback.py
}
# what only rollouts hear: test_rollout_run.py, and of the rewards test_rewards.py, test_reward_reward.py and test_feedback.py
OF_ROLLOUTS = {
    *(f"PPO.{option}" for option in ("clip", "value_clip", "value_weight", "gamma", "lam", "entropy", "truncated")),
    *(f"Rollouts.{option}" for option in ("prompts", "each", "epochs", "parts", "max_new_tokens", "temperature")),
    *(f"Rollouts.{option}" for option in ("beta", "target", "horizon", "unended", "ptx")),
    *("GRPO.clip", "Data.pretrain", "Recipe.rewards", "Recipe.judge"),
    *("Answer.column", "Pattern.find", "Length.words", "Lexicon.positive", "Lexicon.per", "Harmless.per"),
    *("Function.function", "Endpoint.url", "Endpoint.seconds", "Endpoint.tries"),
    *("Model.adapter", "Segments.adapter", "Segments.kinds"),
}

# what only comparisons of the model's own completions hear: test_alignment_compare.py
OF_SAMPLED = {"Data.sampled", "Sampled.prompts", "Sampled.each"}


@dataclass(frozen=True, eq=False)
class Near:
    """Numbers that equal others where they are apart by a hundred-thousandth at most."""

    numbers: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and self.numbers == pytest.approx(other.numbers, rel=1e-5)

    __hash__ = None


class Run:
    """A finished run and its facets. Numbers are compared as they stand, but for `near`, to five digits."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        quiet = Voice(lambda s: None, lambda what, count: lambda done: None, lambda step, steps: None, lambda p: None)
        with claim(folder, resume=False) as run:
            carry(recipe, run, Stop(), quiet)
        self.report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        self.log = [row for row in log if "loss" in row]
        self.watched = [row for row in log if "dev" in row]
        self.predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]

    def _of(self, side: str) -> list[tuple[str, Any, str]]:
        return [(row[side]["text"], row[side]["scores"], row[side]["finish"]) for row in self.predictions]

    @cached_property
    def weights(self) -> dict[str, Any]:
        (file,) = (self.folder / "adapter").glob("*.safetensors")
        return {name: tensor.tolist() for name, tensor in load_file(file).items()}

    FACETS: Mapping[str, Callable[["Run"], Any]] = {
        "prompts": lambda run: [row["prompt_ids"] for row in run.predictions],
        "base": lambda run: run._of("base"),
        "answers": lambda run: run._of("result"),
        "weights": lambda run: run.weights,
        "losses": lambda run: [row["loss"] for row in run.log],
        "first": lambda run: (run.log[0]["loss"], run.log[0]["norm"]),
        "near": lambda run: Near(tuple(each for row in run.log for each in (row["loss"], row["norm"]))),
        "norms": lambda run: [row["norm"] for row in run.log],
        "rates": lambda run: [row["rate"] for row in run.log],
        "tokens": lambda run: [(row["tokens"], row["scored_tokens"]) for row in run.log],
        "dev": lambda run: run.watched,
        "watched": lambda run: [row["step"] for row in run.watched],
        "counts": lambda run: {name: (part["rows"], part["sha256"]) for name, part in run.report["data"].items()},
        "trainable": lambda run: run.report["trainable_parameters"],
        "fingerprint": lambda run: run.report["provenance"]["base"],
        "scores": lambda run: {
            name: (found["value"], found["n"]) for name, found in run.report["result"]["scores"].items()
        },
        "intervals": lambda run: [(d["low"], d["high"]) for d in run.report["result"]["scores"].values()],
        "forgetting": lambda run: run.report["forgetting"],
        "checkpoints": lambda run: sorted(path.name for path in (run.folder / "checkpoints").iterdir()),
        "files": lambda run: sorted(path.name for path in run.folder.iterdir()),
        "memory": lambda run: predict(run.recipe).activations,
        "states": lambda run: predict(run.recipe).paged,
    }

    def facet(self, name: str) -> Any:
        return self.FACETS[name](self)


def dataclasses_of(cls: type) -> Iterator[type]:
    """`cls` and every dataclass that a recipe can name below it."""
    yield cls
    hints = get_type_hints(cls)
    for entry in fields(cls):
        inner = [kind for kind in get_args(hints[entry.name]) or [hints[entry.name]] if is_dataclass(kind)]
        below = {**entry.metadata.get("choices", {}), **entry.metadata.get("weighted", {})}.values()
        for one in (*below, *inner):
            if one in METHODS.values() and one is not LoRA:
                continue
            yield from dataclasses_of(one)


def options() -> list[str]:
    """`Class.field` of every field that is not itself a table without a name."""
    return [
        f"{cls.__name__}.{entry.name}"
        for cls in dict.fromkeys(dataclasses_of(Recipe))
        for entry in fields(cls)
        if not is_dataclass(get_type_hints(cls)[entry.name])
    ]


def test_every_option_has_its_case():
    assert set(options()) == OPTIONS.keys() | OF_HEADS | OF_COMPARISONS | OF_MIXTURES | OF_ROLLOUTS | OF_SAMPLED
    shown = (Path(__file__).parent / "test_tasks.py").read_text(encoding="utf-8")
    assert [option for option in OF_HEADS if f"t{option[1:]}=" not in shown] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(overrides): a finished run, made once for each set of overrides."""
    home = tmp_path_factory.mktemp("options")
    tokenizer = spelling.byte_level()
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        model = tiny.llama(tied=True, vocab=len(tokenizer))
        with torch.no_grad():  # wide enough that a change of any kind shows in the answers
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    parts = {"rows": ("dog", 27), "test": ("fox", 27), "dev": ("lazy", 8), "more": ("quick", 20)}
    for part, (word, most) in parts.items():
        rows = [(a, b, n) for n in range(9) for a in ("the", "this", "some") for b in ("good", "bad")][:most]
        table = [
            {
                "text": f"{a} {b} {f'{word} ' * (n % 3 + 1)}{n}",
                "review": f"{n} {b} {a} {word}{' indeed' * (n % 4)}",
                "label": b,
                "verdict": "good",
                "stars": str(n),
            }
            for a, b, n in rows
        ]
        (home / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    known: dict[tuple[str, ...], Run] = {}
    numbers = count()

    def made(*overrides: str) -> Run:
        if overrides not in known:
            text, *filled = (word.replace("{home}", str(home)) for word in (RECIPE, *overrides))
            known[overrides] = Run(home / f"run-{next(numbers)}", parse(text, "recipe", filled))
        return known[overrides]

    return made


@pytest.mark.parametrize("name", OPTIONS)
def test_the_option_changes_what_it_says_and_nothing_else(run, name):
    option = OPTIONS[name]
    before, after = run(*overrides(option.base)), run(*overrides(option.base), *overrides(option.other))
    assert [facet for facet in option.changes.split() if before.facet(facet) == after.facet(facet)] == []
    assert [facet for facet in option.keeps.split() if before.facet(facet) != after.facet(facet)] == []
