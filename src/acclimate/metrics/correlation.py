"""Numbers and labels that go together: Matthews, Pearson, Spearman, and how far a number is off.

A row of numbers is (target, answer): the example's target read as a number, and the output's `value`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.metrics.labels import Labelled, parts
from acclimate.metrics.metric import Array, Kind, Summed, checked, defined, ratio

CONSTANT = 1e-12  # a variance below this share of the mean square is rounding


@dataclass(frozen=True)
class Matthews(Labelled):
    """Correlation of targets and answers, -1 to 1, for two labels and for more.

    R_K of Gorodkin 2004, Computational Biology and Chemistry 28, eq. 8; Matthews 1975 for two. An answer that is no
    label is a label of its own that is never right. 0 where all targets or all answers are one label.

    >>> Matthews(("no", "yes")).combine([[0, 0], [0, 1], [1, 1], [1, 1]])  # (2 · 1 - 1 · 0) / sqrt(3 · 2 · 2 · 1)
    0.5773502691896258
    """

    name: ClassVar[str] = "matthews"
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def value(self, sums: Array) -> Array:
        """(n hits - Σ targets · answers) / √((n² - Σ targets²) (n² - Σ answers²)), sums over the labels."""
        hits, targets, answers = parts(sums)
        n = targets.sum(-1)
        none = n - answers.sum(-1)
        shared = n * hits.sum(-1) - (targets * answers).sum(-1)
        spread = (n**2 - (targets**2).sum(-1)) * (n**2 - (answers**2).sum(-1) - none**2)
        return np.where(spread > 0, ratio(shared, np.sqrt(spread)), 0.0)


@dataclass(frozen=True)
class Pearson(Summed):
    """Linear correlation of target and answer, -1 to 1. Pearson 1895.

    0 where all answers are alike, which say nothing of the target; no value where all targets are.

    >>> round(Pearson().combine([[0, 1], [1, 2], [2, 2]]), 4)  # 1 / sqrt(2 · 2/3)
    0.866
    """

    name: ClassVar[str] = "pearson"
    kind: ClassVar[Kind] = "number"
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(target, answer)."""
        return numbers(output, example, self.name)

    def statistics(self, rows: Array) -> Array:
        """(n, 6): x, y, x², y², x y, 1, measured from their medians in units of the largest, which changes nothing."""
        x, y = map(_centred, rows.T)
        return np.column_stack([x, y, x * x, y * y, x * y, np.ones(len(rows))])

    def value(self, sums: Array) -> Array:
        """Covariance over the root of both variances."""
        x, y, xx, yy, xy = (ratio(sums[..., i], sums[..., 5]) for i in range(5))
        return _correlation(xy - x * y, _variance(x, xx), _variance(y, yy))


@dataclass(frozen=True)
class Spearman:
    """Pearson's correlation of the ranks, -1 to 1; ties have the mean of their places. Spearman 1904.

    Not a function of sums: the ranks are those within each resample.

    >>> Spearman().combine([[1, 10], [2, 100], [3, 1000]])
    1.0
    """

    name: ClassVar[str] = "spearman"
    kind: ClassVar[Kind] = "number"
    higher_is_better: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(target, answer)."""
        return numbers(output, example, self.name)

    def resampled(self, rows: Array, counts: Array) -> Array:
        """The correlation of each resample: rows (n, 2), how often it takes each row (draws, n) → (draws,)."""
        n = counts.sum(-1)
        x, y = (mean_ranks(column, counts) - (n[..., None] + 1) / 2 for column in rows.T)
        covariance, of_x, of_y = (
            ratio(np.einsum("...n,...n,...n", counts, a, b), n) for a, b in ((x, y), (x, x), (y, y))
        )
        return _correlation(covariance, of_x, of_y)

    def combine(self, rows: ArrayLike) -> float:
        """The correlation over rows (n, 2). DataError where there is no row, or all targets are alike."""
        kept = checked(rows, self.name)
        return defined(float(self.resampled(kept, np.ones(len(kept)))), self.name, len(kept))


@dataclass(frozen=True)
class MeanSquaredError(Summed):
    """Mean of (answer - target)².

    >>> MeanSquaredError().combine([MeanSquaredError().row(Output(value=2.5), Example("", "4"))])
    2.25
    """

    name: ClassVar[str] = "mse"
    kind: ClassVar[Kind] = "number"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The squared error."""
        target, answer = numbers(output, example, self.name)
        return ((answer - target) * (answer - target),)


@dataclass(frozen=True)
class MeanAbsoluteError(Summed):
    """Mean of |answer - target|.

    >>> MeanAbsoluteError().combine([MeanAbsoluteError().row(Output(value=2.5), Example("", "4"))])
    1.5
    """

    name: ClassVar[str] = "mae"
    kind: ClassVar[Kind] = "number"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The absolute error."""
        target, answer = numbers(output, example, self.name)
        return (abs(answer - target),)


def numbers(output: Output, example: Example, name: str) -> tuple[float, float]:
    """(target, answer). DataError where the example's target is no number."""
    try:
        return float(example.target), output.value
    except ValueError:
        where = example.where or "An example"
        raise DataError(f"{where} has {example.target!r} as its target; {name} needs a number there.") from None


def mean_ranks(values: Array, counts: Array) -> Array:
    """Ranks from 1 of values (n,) where value i is there counts[..., i] times; equal ones share the mean of their places.

    >>> mean_ranks(np.array([3.0, 1.0, 3.0]), np.array([1.0, 2.0, 1.0])).tolist()
    [3.5, 1.5, 3.5]
    """
    order = np.argsort(values)
    _, first, place = np.unique(values[order], return_index=True, return_inverse=True)
    taken = np.add.reduceat(counts.take(order, axis=-1), first, axis=-1)
    ranks = np.cumsum(taken, axis=-1) - (taken - 1) / 2
    return ranks.take(place[np.argsort(order)], axis=-1)


def _centred(values: Array) -> Array:
    """Values within [-2, 2], exactly 0 where all are alike."""
    scaled = values / (np.abs(values).max() or 1.0)
    return np.asarray(scaled - np.median(scaled), dtype=np.float64)


def _variance(mean: Array, square: Array) -> Array:
    variance = square - mean * mean
    return np.where(variance > CONSTANT * square, variance, 0.0)


def _correlation(covariance: Array, targets: Array, answers: Array) -> Array:
    """covariance / √(variance of the targets · variance of the answers); 0 if the answers have none, NaN if the targets."""
    known = ratio(covariance, np.sqrt(targets) * np.sqrt(answers))
    return np.where((answers == 0) & (targets > 0), 0.0, np.clip(known, -1, 1))
