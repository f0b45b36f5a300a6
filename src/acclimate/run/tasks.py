"""What kind of answer a task's rows ask for, and all that a run with a task head needs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from acclimate.data.examples import Example, Feedback, Output, Tagged
from acclimate.data.tasks import PAIRS
from acclimate.data.template import Template
from acclimate.errors import DataError, RecipeError
from acclimate.evaluation.heads import AskHead, best_threshold, named
from acclimate.evaluation.predictor import Choose, Generate, Tick
from acclimate.metrics import choose, default_metrics
from acclimate.models.collate import collate_readings
from acclimate.models.heads import TaskModel, best_pool, first, trunk_with_heads
from acclimate.models.load import Loaded
from acclimate.models.modes import evaluating
from acclimate.objectives import LM
from acclimate.objectives.choose import Extract, Pick
from acclimate.objectives.classify import Classify, balanced
from acclimate.objectives.regress import Regress
from acclimate.recipe import Recipe, Task
from acclimate.tokens.codec import Codec, Encoded
from acclimate.tokens.reading import Kind, Pool, Reader, Reading, Shape, Sheet
from acclimate.tokens.truncate import Fitted, Policy
from acclimate.training.fit import Objective

DEFAULT = Task()
OF_HEADS = ("pool", "pair", "class_weights", "threshold")  # options that only a head has
ASKED = {
    "classify": "labels",
    "regress": "number",
    "tag": "tags",
    "choose": "text",
    "extract": "text",
}  # a metric's kind


@dataclass(frozen=True)
class HeadTask:
    """The head of a run: how rows are read for it, what is descended, and how its answers are cut."""

    reader: Reader
    objective: Objective
    threshold: float = 0.5
    longest: int = 64  # tokens of an extracted answer

    @property
    def shape(self) -> Shape:
        """What it answers."""
        return self.reader.shape

    @property
    def facts(self) -> dict[str, Any]:
        """What an adapter says of how its head is asked."""
        return {"threshold": self.threshold, "max_tokens": self.reader.limit}

    def answering(self, kind: str, model: nn.Module) -> AskHead:
        """What asks the head of `model`. RecipeError for a kind of metric that this head says nothing to."""
        mine = ASKED[self.shape.kind]
        if kind != mine and (kind, mine) != ("text", "labels"):
            raise RecipeError(
                f"A metric of the {kind} was asked for, and this head answers with {mine}; change task.metrics."
            )
        return AskHead(cast(TaskModel, model), self.reader, threshold=self.threshold, longest=self.longest)


def kind_of(task: Task, rows: Sequence[Any]) -> Kind | None:
    """The kind of answer that the rows ask for; None for free text."""
    row = rows[0]
    if isinstance(row, Tagged):
        return "tag"
    if task.labels or not isinstance(row, Example):
        return "classify" if task.labels else None
    if task.numbers or ("score" in row.fields and all(_is_number(each.target) for each in rows)):
        return "regress"
    if {"context", "question", "answers"} <= row.fields.keys():
        return "extract"
    return "choose" if "choices" in row.fields else None


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def default_names(task: Task, rows: Sequence[Any]) -> tuple[str, ...]:
    """The metrics for a recipe that names none."""
    kind = kind_of(task, rows)
    if kind == "choose":
        return ("exact_match",)
    answer = {"regress": "number", "tag": "tags", "extract": "span"}.get(kind or "", "text")
    return default_metrics(task.labels or None, cast(Any, answer))


def wants_head(task: Task, loaded: Loaded) -> bool:
    """Whether a head answers: where the recipe says so, or where the model cannot write. RecipeError for a contradiction."""
    writes = loaded.model.can_generate()
    if task.head is False and not writes:
        raise RecipeError(
            f"{loaded.name} is a {type(loaded.model).__name__}: it reads but does not write, so it cannot learn to answer "
            "in text. Leave task.head out, or choose a decoder (Llama, GPT-2, Qwen, …) or an encoder-decoder (T5, BART)."
        )
    wanted = bool(task.head) or not writes
    odd = [name for name in OF_HEADS if not wanted and getattr(task, name) != getattr(DEFAULT, name)]
    if odd:
        raise RecipeError(
            f"task.{odd[0]} is for a task head, and {loaded.name} answers in text; set task.head to true."
        )
    return wanted


def notes(task: HeadTask | None) -> list[str]:
    """What a report says of a head besides its scores."""
    if task is None:
        return []
    return ["A task head writes no text, so forgetting is not measured; before training it is drawn at random."]


def described(task: HeadTask | None) -> dict[str, Any]:
    """The head as report.json has it."""
    if task is None:
        return {}
    threshold = {"threshold": task.threshold} if len(task.shape.labels) == 2 else {}
    return {"head": task.shape.kind, **({"pool": task.shape.pool} if task.shape.whole else {}), **threshold}


def facts_of(task: HeadTask | None) -> dict[str, Any]:
    """What an adapter says of how its head is asked."""
    return task.facts if task else {}


def target_of(row: Any) -> str:
    """The right answer as a person reads it; "" where there is none."""
    if isinstance(row, Tagged):
        return named(row.tokens, row.tags)
    return row.target if isinstance(row, Example) else ""


def check_recipe(recipe: Recipe) -> None:
    """RecipeError for what a head cannot follow."""
    task, odd = recipe.task, ""
    if task.verbalizer:
        odd = "task.verbalizer is for a model that writes; a task head has one output per label."
    elif task.chat or task.system:
        odd = "task.chat and task.system are for a model that writes; a task head reads the template's text alone."
    elif not isinstance(recipe.objective, LM):
        odd = "objective is for a model that writes; a task head has its own, by the kind of answer. Leave it out."
    elif recipe.data.truncation == "truncate-response":
        odd = "data.truncation is truncate-response, and a task head writes no response; use drop or truncate-prompt."
    if odd:
        raise RecipeError(odd)


def refuse_tags(rows: Sequence[Any]) -> None:
    """Text has no tag for every word: DataError."""
    if isinstance(rows[0], Tagged):
        raise DataError(
            f"{rows[0].where} has a tag for each word, which a model that writes would have to copy out; set task.head to "
            "true, or choose an encoder (minilm, BERT, RoBERTa, …)."
        )


def with_head(
    loaded: Loaded, task: Task, reader: Codec, rows: Sequence[Any], dev: Sequence[Any], most: int, seed: int
) -> tuple[TaskModel, HeadTask]:
    """The trunk with a new head drawn from `seed`, and the task around it. RecipeError where no head can answer the rows.

    rows: those it learns from; dev: those that may bring tags which these lack.
    """
    shape, template = shape_of(task, rows, loaded), Template(task.template)
    if shape.kind == "tag":
        shape = replace(shape, labels=tags_of((*rows, *dev)))
    model = trunk_with_heads(loaded, pooler=shape.pool == "pooler" and shape.whole)
    model.add(shape, seed=seed)
    made = HeadTask(reader_for(shape, task, reader, template, rows[0], most), objective_of(shape, task, rows))
    return model, replace(
        made, longest=task.max_new_tokens, threshold=0.5 if task.threshold == "dev" else float(task.threshold)
    )


def reader_for(shape: Shape, task: Task, codec: Codec, template: Template, row: Any, most: int) -> Reader:
    """How rows like `row` are read. RecipeError where task.pair names columns that it does not have."""
    fields = row.fields if isinstance(row, Example) else {}
    absent = [name for name in task.pair if name not in fields]
    if absent:
        raise RecipeError(
            f"task.pair names {absent[0]}, which {row.where} has not; it has: {', '.join(sorted(fields))}."
        )
    usual = [pair for pair in PAIRS if codec.suffix and task.template == DEFAULT.template and {*pair} <= fields.keys()]
    columns = task.pair or (usual[0] if usual and shape.kind in ("classify", "regress") else ())
    return Reader(replace(codec, reads=False), template, shape, columns, most)


def opened_head(
    model: nn.Module, facts: Mapping[str, Any], task: Task, codec: Codec, row: Any, most: int
) -> HeadTask | None:
    """The head that an adapter with these facts brought to `model`; None where it brought none."""
    if not isinstance(model, TaskModel):
        return None
    shape = model.shape()
    limit = min(int(facts.get("max_tokens", most)), most)
    reader = reader_for(shape, task, codec, Template(task.template), row, limit)
    return HeadTask(reader, objective_for(shape.kind), float(facts.get("threshold", 0.5)), task.max_new_tokens)


def shape_of(task: Task, rows: Sequence[Any], loaded: Loaded) -> Shape:
    """What the head must answer, from the recipe and the training rows."""
    kind = kind_of(task, rows)
    if kind is None:
        raise RecipeError(
            f"{loaded.name} has a task head, which answers with a label, a number, a choice, tags or a span of a context, "
            f"and {rows[0].where} asks for free text. Give task.labels, set task.numbers, or choose a model that writes."
        )
    pool: Pool = best_pool(loaded) if task.pool == "auto" else task.pool
    pool = first(loaded) if task.pool == "first" else pool
    if kind == "tag":
        return Shape("tag", tags_of(rows), pool)
    if kind == "regress":
        targets = np.array([float(row.target) for row in rows])
        return Shape("regress", (), pool, float(targets.mean()), float(targets.std()) or 1.0)
    return Shape(kind, task.labels, pool, empty=kind == "extract" and any(not row.target for row in rows))


def tags_of(rows: Sequence[Tagged]) -> tuple[str, ...]:
    """Every tag of the rows: O, then by type."""
    return tuple(sorted({tag for row in rows for tag in row.tags}, key=lambda tag: (tag != "O", tag[2:], tag)))


def objective_for(kind: Kind) -> Objective:
    """What is descended for a head of this kind, every label of the same weight."""
    found: dict[Kind, Objective] = {"regress": Regress(), "choose": Pick(), "extract": Extract()}
    return found.get(kind, Classify())


def objective_of(shape: Shape, task: Task, rows: Sequence[Any]) -> Objective:
    """What is descended for this shape."""
    if task.class_weights != "none" and not shape.labels:
        raise RecipeError("task.class_weights weighs labels, and this task has none; leave it out.")
    if task.class_weights == "none":
        return objective_for(shape.kind)
    counts = Counter(tag for row in rows for tag in (row.tags if isinstance(row, Tagged) else (row.target,)))
    return Classify(balanced(tuple(counts[label] for label in shape.labels)))


def encode(task: HeadTask, rows: Sequence[Any], policy: Policy) -> Fitted:
    """The rows as the head reads them; longer ones by the recipe's policy. The answer of a head is never cut."""
    done = Fitted([], [], [])
    for row in rows:
        if not isinstance(row, Tagged | Feedback) and not (
            isinstance(row, Example) and (row.target or task.shape.empty)
        ):
            raise DataError(f"{row.where} has no answer; a task head learns from rows with one.")
        for reading in task.reader(cast(Any, row)):
            if reading.truncated and policy == "error":
                raise DataError(
                    f"{row.where} is {reading.size + reading.truncated:,} tokens long; {task.reader.limit:,} fit. Set "
                    "data.truncation to one of: drop, truncate-prompt."
                )
            if reading.truncated and policy == "drop":
                done.dropped.append(row.where)
                continue
            done.rows.append(cast(Encoded, reading))
            if reading.truncated:
                done.cut.append(row.where)
    return done


def collated(task: HeadTask, model: nn.Module, rows: Sequence[Any], numbers: Sequence[int] = ()) -> Sheet:
    """`rows` as one batch on the model's device."""
    return collate_readings(cast(TaskModel, model), cast(Sequence[Reading], rows), task.reader.codec.pad, numbers)


@torch.no_grad()
def loss(task: HeadTask, model: nn.Module, rows: Sequence[Any], at_once: int = 16) -> float:
    """The objective's mean over `rows`, nothing trained."""
    total = count = 0.0
    alike = sorted(rows, key=lambda row: row.size)
    with evaluating(model):
        for start in range(0, len(rows), at_once):
            found = task.objective(model, collated(task, model, alike[start : start + at_once]))
            total, count = total + float(found.total), count + float(found.count)
    return total / count


def settled(task: HeadTask, wish: Task, model: nn.Module, rows: Sequence[Any], metrics: Sequence[str]) -> HeadTask:
    """The same task with the threshold that suits the trained model on the dev rows, where the recipe asks for that."""
    if wish.threshold != "dev":
        return task
    if not rows:
        raise DataError("task.threshold is dev, and there is no dev row to choose it on.")
    metric = choose(metrics, wish.labels)[0]
    if metric.kind != "labels":
        raise RecipeError(f"task.threshold is chosen for the first metric, and {metric.name} compares no labels.")
    return replace(task, threshold=best_threshold(task.answering("labels", model)(rows), rows, metric))


@dataclass(frozen=True)
class Numbers:
    """What a model writes, read as a number: the first one in the text, 0 where there is none."""

    writer: Generate

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        return [replace(output, value=_first_number(output.text)) for output in self.writer(examples, tick)]


def _first_number(text: str) -> float:
    return next((float(word.strip(".,;:!")) for word in text.split() if _is_number(word.strip(".,;:!"))), 0.0)


@dataclass(frozen=True)
class OwnChoices:
    """What a model that writes answers: the likeliest of a row's own choices, or a text where the row brings none."""

    chooser: Choose
    writer: Generate

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        offered = [i for i, example in enumerate(examples) if "choices" in example.fields]
        free = [i for i, example in enumerate(examples) if "choices" not in example.fields]
        answered: dict[int, Output] = {}
        for answer, places in ((self.chooser, offered), (self.writer, free)):
            if places:
                answered |= zip(places, answer([examples[i] for i in places], tick), strict=True)
        return [answered[i] for i in range(len(examples))]
