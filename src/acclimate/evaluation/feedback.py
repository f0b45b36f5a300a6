"""Are the parts found that people marked? For each kind of error: accuracy and F1, beside the most frequent answer's.

`Output.scores` holds "kind start:end", the probability that the characters from start to end hold an error of the kind.
Intervals resample completions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from acclimate.data.examples import Feedback, Output
from acclimate.errors import RecipeError, unknown
from acclimate.evaluation.predictor import Tick
from acclimate.metrics.metric import Array, Kind, checked, defined, ratio
from acclimate.models.collate import collate_readings
from acclimate.models.heads import TaskModel
from acclimate.models.modes import evaluating
from acclimate.tokens.feedback import SegmentReader, holds
from acclimate.tokens.reading import Reading
from acclimate.tokens.schedule import passes


@dataclass(frozen=True)
class AskSegments:
    """What a model of spans says of every part of a completion. Its text: the parts, with what was found in each."""

    model: TaskModel
    reader: SegmentReader
    budget: int = 8192  # tokens at once

    def __call__(self, examples: Sequence[Feedback], tick: Tick | None = None) -> list[Output]:
        readings = [reading for example in examples for reading in self.reader(example, answered=False)]
        found = iter(zip(readings, self._asked(readings), strict=True))
        outputs = [self._output(example, *next(found)) for example in examples]
        if tick is not None:
            tick(len(outputs))
        return outputs

    @torch.no_grad()
    def _asked(self, readings: Sequence[Reading]) -> list[list[list[float]]]:
        found = []
        with evaluating(self.model):
            for part in passes(range(len(readings)), [row.size for row in readings], self.budget):
                rows = [readings[i] for i in part]
                batch = collate_readings(self.model, rows, self.reader.codec.pad)
                answers = self.model(batch).double().sigmoid().cpu()
                found += [each.tolist() for each in answers.split([len(row.spans) for row in rows])]
        return found

    def _output(self, example: Feedback, read: Reading, answers: Sequence[Sequence[float]]) -> Output:
        said: dict[str, float] = {}
        labels = self.reader.shape.labels
        for (start, end), each in zip(read.spans, answers, strict=True):
            said |= {f"{label} {start}:{end}": p for label, p in zip(labels, each, strict=True)}
        lines = [
            f"[{', '.join(label for label, p in zip(labels, each, strict=True) if p > 0.5)}] {example.completion[a:b]}"
            for (a, b), each in zip(read.spans, answers, strict=True)
        ]
        return Output("\n".join(lines), said, prompt_ids=read.ids, truncated=read.truncated)


@dataclass(frozen=True)
class PartMetric:
    """One number of one kind of error, from how often a part is marked by both, the model alone, people alone, nobody."""

    name: str
    label: str
    kinds: tuple[str, ...]
    of: Callable[[Array], Array]  # (..., 4) counts → (...)
    higher_is_better: bool = True
    kind: Kind = "tags"
    limits: tuple[float, float] = (0.0, 1.0)

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """The four counts of a completion."""
        counts = [0.0] * 4
        for key, probability in output.scores.items():
            label, _, place = key.rpartition(" ")
            if label == self.label:
                start, _, end = place.partition(":")
                wrong = holds(example.spans, self.kinds, (int(start), int(end)))
                counts[(0 if wrong else 1) if probability > 0.5 else (2 if wrong else 3)] += 1
        return tuple(counts)

    def combine(self, rows: Array) -> float:
        """The number over all rows (n, 4)."""
        kept = checked(rows, self.name)
        return defined(float(self.of(kept.sum(0))), self.name, len(kept))

    def resampled(self, rows: Array, counts: Array) -> Array:
        """The number of each resample: counts (draws, n) → (draws,)."""
        return self.of(counts @ rows)


def accuracy(counts: Array) -> Array:
    """Share of parts on which the model and people agree.

    >>> float(accuracy(np.array([1.0, 2.0, 0.0, 5.0])))
    0.75
    """
    return ratio(counts[..., 0] + counts[..., 3], counts.sum(-1))


def f1(counts: Array) -> Array:
    """2 both / (2 both + model alone + people alone).

    >>> float(f1(np.array([1.0, 2.0, 0.0, 5.0])))
    0.5
    """
    return ratio(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def majority(counts: Array) -> Array:
    """What the answer that is right most often would have for accuracy; it is the same for every model.

    >>> float(majority(np.array([1.0, 2.0, 0.0, 5.0])))
    0.875
    """
    wrong = counts[..., 0] + counts[..., 2]
    return ratio(np.maximum(wrong, counts.sum(-1) - wrong), counts.sum(-1))


NUMBERS: Mapping[str, Callable[[Array], Array]] = {"f1": f1, "accuracy": accuracy, "majority": majority}


def choose(
    names: Sequence[str], groups: Mapping[str, tuple[str, ...]], examples: Sequence[Feedback]
) -> tuple[PartMetric, ...]:
    """The metrics called `names`, such as "f1 Irrelevant"; without any all, but F1 of what no held-out row has.

    groups: for each label the kinds of error that it stands for. RecipeError for a name that there is not.
    """
    marked = {span.kind for example in examples for span in example.spans}
    there = {
        f"{name} {label}": PartMetric(f"{name} {label}", label, kinds, of)
        for label, kinds in groups.items()
        for name, of in NUMBERS.items()
        if name != "f1" or marked & {*kinds}
    }
    for name in names:
        if name not in there:
            raise RecipeError(unknown("metric of spans", name, there))
    return tuple(there[name] for name in names or there)
