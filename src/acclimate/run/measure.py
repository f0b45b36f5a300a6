"""The same questions to the base and to the result: identical prompts, seeds and decoding."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from acclimate.data.examples import Document, Example, Output, Tagged
from acclimate.data.template import Template
from acclimate.errors import DataError
from acclimate.evaluation import preferences, rollouts
from acclimate.evaluation.evaluate import Measured, kinds, rows_of
from acclimate.evaluation.general import instructions, texts
from acclimate.evaluation.predictor import Choose, Generate, Likelihood, Predictor
from acclimate.metrics import choose
from acclimate.metrics.labels import ExactMatch
from acclimate.metrics.likelihood import Perplexity
from acclimate.metrics.metric import Metric
from acclimate.recipe import Task
from acclimate.run import reference, tasks
from acclimate.run.beside import lent
from acclimate.run.feedback import SegmentTask
from acclimate.run.prepare import Prepared
from acclimate.tokens.codec import Codec

Tick = Callable[[int], None]
Told = Callable[[str, int], Tick]  # (what, how many) → a tick for that stretch of work


@dataclass(frozen=True)
class Answers:
    """What one model answered: on the task, and on generic text and general instructions."""

    task: Measured
    texts: tuple[tuple[float, ...], ...]  # rows of perplexity
    instructions: tuple[tuple[float, ...], ...]  # rows of exact match

    def json(self) -> dict[str, Any]:
        """Plain tables and lists, from which `from_json` makes the same answers."""
        return asdict(self)


def from_json(table: Mapping[str, Any]) -> Answers:
    """The inverse of `Answers.json`, after a trip through JSON."""
    outputs = {
        kind: tuple(
            Output(**{**given, "prompt_ids": tuple(given["prompt_ids"]), "tags": tuple(given["tags"])})
            for given in listed
        )
        for kind, listed in table["task"]["outputs"].items()
    }
    rows = {name: tuple(map(tuple, listed)) for name, listed in table["task"]["rows"].items()}
    return Answers(Measured(outputs, rows), tuple(map(tuple, table["texts"])), tuple(map(tuple, table["instructions"])))


def metrics_of(prepared: Prepared) -> tuple[Metric, ...]:
    """The recipe's metrics, or those that suit the task."""
    if prepared.pairs:
        return preferences.choose(prepared.recipe.task.metrics, prepared.parts.test.rows, writes=prepared.head is None)
    if isinstance(prepared.head, SegmentTask):
        return prepared.head.metrics(prepared.recipe.task.metrics, prepared.parts.test.rows)
    if prepared.rolled:
        return rollouts.choose(prepared.recipe.task.metrics)
    labels = prepared.recipe.task.labels
    names = prepared.recipe.task.metrics or _default(prepared)
    return choose(names, labels or None)


def headline(prepared: Prepared, outputs: Sequence[Output], examples: Sequence[Example]) -> float:
    """The task's first metric of these answers, turned so that more is better: what a choice on dev goes by."""
    metric = metrics_of(prepared)[0]
    asked = dict.fromkeys(kinds([metric], prepared.recipe.task.labels), outputs)
    value = metric.combine(np.array(rows_of([metric], asked, examples).rows[metric.name], np.float64))
    return value if metric.higher_is_better else -value


def _default(prepared: Prepared) -> tuple[str, ...]:
    rows = prepared.parts.test.rows
    answered = all(isinstance(row, Tagged) or (isinstance(row, Example) and row.target) for row in rows)
    return tasks.default_names(prepared.recipe.task, rows) if answered or prepared.head else ("perplexity",)


def measure(prepared: Prepared, model: nn.Module, told: Told) -> Answers:
    """Ask `model` everything. The mode it is in is left as it was."""
    examples = prepared.parts.test.rows
    metrics = metrics_of(prepared)
    asked = {}
    if prepared.pairs:
        asked = {"number": reference.answering(prepared, model)(examples, told("evaluation (rewards)", len(examples)))}
    if prepared.rolled:
        asked = {"text": _rewarded(prepared, model, told("evaluation (rollouts)", len(examples)))}
    for kind in kinds(metrics, prepared.recipe.task.labels) if not asked else ():
        reader, given = prepared.codec, prepared.recipe
        predictor = predictor_for(
            kind, given.task, model, reader, prepared.template, prepared.context, given.evaluation.seed, prepared.head
        )
        asked[kind] = predictor(_questions(examples, kind), told(f"evaluation ({kind})", len(examples)))
    measured = rows_of(metrics, asked, examples)
    if prepared.head or not prepared.recipe.evaluation.forgetting:
        return Answers(measured, (), ())
    return Answers(measured, *general(prepared, model, told))


def _rewarded(prepared: Prepared, model: nn.Module, tick: Tick) -> list[Output]:
    """The held-out completions, scored. Rewards that are models lie beside the policy already once it has its method."""
    rolled, given = prepared.rolled, prepared.recipe
    assert rolled is not None
    kept, codec = rolled.originals, prepared.codec
    with lent(rolled.reward, model, codec) if kept is None else nullcontext(rolled.reward) as reward:
        asked = rollouts.Rewarded(model, rolled.test, reward, given.rollouts, codec, given.evaluation.seed, kept)
        return asked(prepared.parts.test.rows, tick)


def _questions(rows: Sequence[Any], kind: str) -> Sequence[Any]:
    for row in rows:
        if kind not in ("likelihood", "tags") and not (
            isinstance(row, Example) and (row.target or "answers" in row.fields)
        ):
            raise DataError(
                f"{row.where} has no answer to compare with; measure perplexity, or give test rows with answers."
            )
    return rows


def predictor_for(
    kind: str,
    task: Task,
    model: nn.Module,
    codec: Codec,
    template: Template,
    context: int,
    seed: int,
    head: tasks.HeadTask | None = None,
) -> Predictor:
    """What answers questions of one kind for a task: a task head, the likeliest label, a written text, log-probabilities."""
    if head is not None:
        return head.answering(kind, model)
    if kind == "labels":
        return Choose(model, codec, template, task.labels, context)
    if kind == "likelihood":
        return Likelihood(model, codec, template, context)
    writer = Generate(model, codec, template, context, task.max_new_tokens, task.sampler, task.stops, seed=seed)
    return (
        tasks.Numbers(writer)
        if kind == "number"
        else tasks.OwnChoices(Choose(model, codec, template, (), context), writer)
    )


def general(prepared: Prepared, model: nn.Module, told: Told) -> tuple[Any, Any]:
    """Perplexity on ordinary prose, and the right one of four answers to general questions."""
    reader, context = prepared.codec, prepared.context
    template = Template(chat=reader.chat() if reader.has_chat else None, end=reader.eos_text)
    written: Sequence[Document] = texts()
    heard = Likelihood(model, reader, template, context)(written, told("forgetting (texts)", len(written)))
    perplexity = tuple(Perplexity().row(output, Example("")) for output in heard)
    questions = [Example(q.prompt, q.answer, fields={"choices": q.choices}, where=q.where) for q in instructions()]
    chosen = Choose(model, reader, template, (), context)(questions, told("forgetting (questions)", len(questions)))
    right = tuple(ExactMatch().row(output, example) for output, example in zip(chosen, questions, strict=True))
    return perplexity, right
