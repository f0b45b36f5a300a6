"""What a run on marked spans needs: a head with a number for each kind of error, read at the ends of parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from acclimate.data.examples import Feedback
from acclimate.data.template import Template
from acclimate.errors import DataError, RecipeError
from acclimate.evaluation import feedback
from acclimate.evaluation.feedback import AskSegments, PartMetric
from acclimate.models.heads import TaskModel, trunk_with_heads
from acclimate.models.load import Loaded
from acclimate.objectives import Spans
from acclimate.recipe import Recipe
from acclimate.run.rollouts import rolls
from acclimate.run.tasks import HeadTask
from acclimate.tokens.codec import Codec
from acclimate.tokens.feedback import SegmentReader
from acclimate.tokens.reading import Shape


@dataclass(frozen=True)
class SegmentTask(HeadTask):
    """The head of a run on marked spans."""

    @property
    def segments(self) -> SegmentReader:
        """How rows are read for it."""
        return cast(SegmentReader, self.reader)

    @property
    def facts(self) -> dict[str, Any]:
        """What the adapter says of how its head is asked."""
        return {**super().facts, "level": self.segments.level}

    def answering(self, kind: str, model: nn.Module) -> AskSegments:  # type: ignore[override]
        """What asks the head of `model`."""
        return AskSegments(cast(TaskModel, model), self.segments)

    def metrics(self, names: Sequence[str], rows: Sequence[Feedback]) -> tuple[PartMetric, ...]:
        """The metrics called `names`, or all that have a value for the rows."""
        groups = dict(zip(self.shape.labels, self.segments.groups, strict=True))
        return feedback.choose(names, groups, rows)


def marks(recipe: Recipe, rows: Sequence[Any]) -> bool:
    """Whether marked spans are learned from. RecipeError where the objective is for other rows.

    Of any row an objective on rollouts asks the prompt alone.
    """
    marked, spans = isinstance(rows[0], Feedback), isinstance(recipe.objective, Spans)
    if marked != spans and not rolls(recipe):
        kind = type(rows[0]).__name__
        raise RecipeError(
            f"{recipe.data.train} holds rows of kind {kind}; objective spans is for rows of kind Feedback, and they for it."
        )
    return spans


def with_head(
    loaded: Loaded, codec: Codec, template: Template, most: int, recipe: Recipe, rows: Sequence[Feedback]
) -> tuple[TaskModel, SegmentTask]:
    """The trunk with a head drawn from the seed: a number for each name of objective.kinds.

    RecipeError for a task that such a head has not, DataError for training rows without a span of one of the kinds.
    """
    if recipe.task.labels or recipe.task.numbers or recipe.data.truncation == "truncate-response":
        raise RecipeError(
            "task.labels, task.numbers and data.truncation: truncate-response have no meaning for marked spans."
        )
    groups = groups_of(recipe.objective, rows)
    shape = Shape("tag", tuple(groups))
    model = trunk_with_heads(loaded, pooler=False)
    model.add(shape, seed=recipe.training.seed)
    reader = SegmentReader(
        replace(codec, reads=False), template, shape, (), most, recipe.objective.level, tuple(groups.values())
    )
    return model, SegmentTask(reader, recipe.objective)


def groups_of(objective: Spans, rows: Sequence[Feedback]) -> Mapping[str, tuple[str, ...]]:
    """Names and the kinds of error that each stands for. DataError where no training row has an error of one of them."""
    there = sorted({span.kind for row in rows for span in row.spans})
    groups = dict(objective.kinds) or {kind: (kind,) for kind in there}
    if not groups:
        raise DataError("No training row has a span, so there is no kind of error to learn.")
    for name, kinds in groups.items():
        if not {*kinds} & {*there}:
            raise DataError(f"objective.kinds: no training row has a span of {name}; there is: {', '.join(there)}.")
    return groups
