"""The same questions to the base and to the result: identical prompts, seeds and decoding."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from acclimate.data.examples import Document, Example, Output, Tagged
from acclimate.data.template import Template
from acclimate.errors import DataError
from acclimate.evaluation import preferences, rollouts
from acclimate.evaluation.evaluate import Measured, kinds, rows_of
from acclimate.evaluation.general import OPEN, WORDS, instructions, texts
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
from acclimate.run.rollouts import prompts as asked_of
from acclimate.tokens.codec import Codec

Tick = Callable[[int], None]
Told = Callable[[str, int], Tick]  # (what, how many) → a tick for that stretch of work


@dataclass(frozen=True)
class Answers:
    """What one model answered: on the task, and on generic text and general instructions."""

    task: Measured
    texts: tuple[tuple[float, ...], ...]  # rows of perplexity
    instructions: tuple[tuple[float, ...], ...]  # rows of exact match
    said: tuple[str, ...] = ()  # answers to `general.OPEN`

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
    prose, right = (tuple(map(tuple, table[name])) for name in ("texts", "instructions"))
    return Answers(Measured(outputs, rows), prose, right, tuple(table.get("said", ())))


def metrics_of(prepared: Prepared) -> tuple[Metric, ...]:
    """The recipe's metrics, or those that suit the task."""
    if prepared.rolled:
        return rollouts.choose(prepared.recipe.task.metrics, bool(prepared.rolled.judge))
    if prepared.pairs:
        return preferences.choose(prepared.recipe.task.metrics, prepared.parts.test.rows, writes=prepared.head is None)
    if isinstance(prepared.head, SegmentTask):
        return prepared.head.metrics(prepared.recipe.task.metrics, prepared.parts.test.rows)
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
    if prepared.rolled:
        asked = {"text": written(prepared, model, told("evaluation (rollouts)", len(examples)))}
    elif prepared.pairs:
        asked = {"number": reference.answering(prepared, model)(examples, told("evaluation (rewards)", len(examples)))}
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


def written(prepared: Prepared, model: nn.Module, tick: Tick | None, n: int = 1, seed: int = 0) -> list[Output]:
    """The completions of the test rows, scored; of n each the best by the recipe's reward.

    Rewards that are models lie beside the policy already once it has its method; beside the base for as long as they are
    asked.
    """
    rolled, given, rows, codec = prepared.rolled, prepared.recipe, prepared.parts.test.rows, prepared.codec
    assert rolled is not None
    prompts, _ = asked_of(given, rows, prepared.template, codec, prepared.context)
    with ExitStack() as stack:
        picks, reward, judge = (
            each and (each if rolled.originals is not None else stack.enter_context(lent(each, model, codec)))
            for each in (rolled.reward if n > 1 else None, rolled.measured or rolled.reward, rolled.judge)
        )
        assert reward is not None
        seed += given.evaluation.seed
        plain = rollouts.UnderBase.name in given.task.metrics
        made = rollouts.Rewarded(
            model, prompts, reward, given.rollouts, codec, seed, rolled.originals, judge, n, picks, plain
        )
        return made(rows, tick)


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


def general(prepared: Prepared, model: nn.Module, told: Told) -> tuple[Any, Any, tuple[str, ...]]:
    """Perplexity on ordinary prose, the right one of four answers to general questions, and a few free answers."""
    reader, context = prepared.codec, prepared.context
    template = Template(chat=reader.chat() if reader.has_chat else None, end=reader.eos_text)
    written: Sequence[Document] = texts()
    heard = Likelihood(model, reader, template, context)(written, told("forgetting (texts)", len(written)))
    perplexity = tuple(Perplexity().row(output, Example("")) for output in heard)
    questions = [Example(q.prompt, q.answer, fields={"choices": q.choices}, where=q.where) for q in instructions()]
    chosen = Choose(model, reader, template, (), context)(questions, told("forgetting (questions)", len(questions)))
    right = tuple(ExactMatch().row(output, example) for output, example in zip(chosen, questions, strict=True))
    asked = [Example(prompt, fields={"prompt": prompt}) for prompt in OPEN]
    said = Generate(model, reader, template, context, WORDS)(asked, told("forgetting (answers)", len(asked)))
    return perplexity, right, tuple(output.text for output in said)
