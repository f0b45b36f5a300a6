"""Rows that people judged, asked of a model that stands ready: what `evaluate` does with comparisons and marked spans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from acclimate.data.examples import Feedback, Preference, Ranking
from acclimate.data.template import Template
from acclimate.errors import ModelError
from acclimate.evaluation.feedback import AskSegments, PartMetric
from acclimate.evaluation.preferences import HeadRewards, Implicit, OwnChoice, PolicyRewards, choose
from acclimate.metrics.metric import Summed
from acclimate.models.heads import TaskModel
from acclimate.objectives import DPO, Spans
from acclimate.recipe import Recipe
from acclimate.run.feedback import SegmentTask, groups_of
from acclimate.run.open import Opened
from acclimate.run.preferences import encode_test, stand_in
from acclimate.run.prepare import resolve_task
from acclimate.tokens.feedback import SegmentReader

JUDGED = (Preference, Ranking, Feedback)


@dataclass(frozen=True)
class Asking:
    """What is measured of judged rows, and what answers: a policy or a reward model, or a model of spans."""

    metrics: Sequence[Summed | PartMetric]
    answers: PolicyRewards | HeadRewards | AskSegments


def asking(opened: Opened, recipe: Recipe, rows: Sequence[Any], base: Callable[[], Opened] | None) -> Asking:
    """For rows of one kind. base: opens the model without its adapter, where it has one.

    A reward model says its rewards. A policy has those of the recipe's objective, against `base`; those of DPO where the
    objective has none; without an adapter log π itself. ModelError for a head that says nothing of such rows.
    """
    template, _ = resolve_task(recipe.task, opened.codec, stand_in(rows))
    if isinstance(rows[0], Feedback):
        return _segments(opened, recipe, rows, template)
    head = opened.model if isinstance(opened.model, TaskModel) else None
    if head is not None and head.shape().kind != "regress":
        raise _odd(opened, "comparisons", "reward")
    codec, metrics = opened.codec, choose(recipe.task.metrics, rows, writes=head is None)
    if head is not None:
        read = encode_test(rows, template, replace(codec, reads=False), opened.context)
        return Asking(metrics, HeadRewards(head, read, codec.pad, len(codec.front)))
    encoded = encode_test(rows, template, codec, opened.context)
    if base is not None:
        before = base()
        plain = PolicyRewards(
            before.model, encode_test(rows, template, before.codec, before.context), OwnChoice(), codec.pad
        )
        known = [tuple(v for k, v in output.scores.items() if k.startswith("log p")) for output in plain(rows)]
        encoded = tuple(row._replace(reference=said) for row, said in zip(encoded, known, strict=True))
    return Asking(metrics, PolicyRewards(opened.model, encoded, _implied(recipe, base is not None), codec.pad))


def _implied(recipe: Recipe, adapted: bool) -> Implicit:
    """What makes rewards of log-probabilities."""
    if hasattr(recipe.objective, "reward"):
        return recipe.objective  # type: ignore[no-any-return]
    return DPO() if adapted else OwnChoice()


def _segments(opened: Opened, recipe: Recipe, rows: Sequence[Feedback], template: Template) -> Asking:
    """Kinds of error that a label stands for are the recipe's; without them the one of its name."""
    level, facts = opened.facts.get("level"), opened.facts
    if level is None or not isinstance(opened.model, TaskModel):
        raise _odd(opened, "marked spans", "spans")
    shape, most = opened.model.shape(), min(opened.context, int(facts.get("max_tokens", opened.context)))
    spans = isinstance(recipe.objective, Spans) and recipe.objective.kinds
    groups = groups_of(recipe.objective, rows) if spans else {label: (label,) for label in shape.labels}
    reader = SegmentReader(
        replace(opened.codec, reads=False), template, shape, (), most, level, tuple(groups[n] for n in shape.labels)
    )
    task = SegmentTask(reader, Spans(level))
    return Asking(task.metrics(recipe.task.metrics, rows), task.answering("tags", opened.model))


def _odd(opened: Opened, rows: str, objective: str) -> ModelError:
    head = (
        f"a head of kind {opened.model.shape().kind}, which"
        if isinstance(opened.model, TaskModel)
        else "no head, so it"
    )
    return ModelError(f"The model has {head} says nothing of {rows}; train one with objective {objective}.")
