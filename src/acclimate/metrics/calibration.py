"""Does the model know how sure to be? Calibration error, Brier score, and accuracy where it is surest.

The probability of a label is the softmax of `Output.scores`, which are natural logs. The confidence is that of the
label answered, 0 where the answer is none of the labels. A row is (confidence, right).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from acclimate.data.examples import Example, Output
from acclimate.errors import ModelError
from acclimate.metrics.intervals import CELLS, TIE, unseen
from acclimate.metrics.labels import pair, plain
from acclimate.metrics.metric import Array, Kind, Metric, Summed, checked, ratio, resampled

WIDE, MASS = 15, 10  # bins: Guo et al. 2017, section 2; Liang et al. 2022, on calibration
MOST = 2e7  # rows drawn for an interval
COVERAGE = 0.1  # of the rows, the surest
ROUNDED = 12  # decimals kept of an interval

Line = Float[np.ndarray, " groups"]


class Bin(NamedTuple):
    """Rows whose confidence lies in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Ece(Summed):
    """Expected calibration error over bins of equal width, 15 as in Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Chance alone makes it greater than 0, the more the fewer rows there are.

    >>> round(Ece(("no", "yes")).combine([[0.9, 1], [0.9, 0], [0.6, 1]]), 9)  # (|1 - 1.8| + |1 - 0.6|) / 3
    0.4
    """

    labels: tuple[str, ...]
    bins: int = WIDE
    name: ClassVar[str] = "ece"
    kind: ClassVar[Kind] = "labels"
    higher_is_better: ClassVar[bool] = False

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(confidence, 1 or 0)."""
        return sure(output, example, self.labels, self.name)

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """By a bootstrap that knows of chance: see `reflected`."""
        return reflected(self, rows, level)

    def statistics(self, rows: Array) -> Array:
        """(n, bins + 1): right - confidence in the column of its bin, and 1."""
        gaps = np.eye(self.bins)[places(rows[:, 0], self.bins)] * (rows[:, 1] - rows[:, 0])[:, None]
        return np.column_stack([gaps, np.ones(len(rows))])

    def value(self, sums: Array) -> Array:
        """Σ over the bins of |Σ right - Σ confidence| / n."""
        return ratio(np.abs(sums[..., :-1]).sum(-1), sums[..., -1])


@dataclass(frozen=True)
class Brier(Summed):
    """Mean squared distance of the labels' probabilities from the truth, 0 to 2. Brier 1950, Monthly Weather Review 78.

    >>> row = Brier(("no", "yes")).row(Output("yes", {"no": np.log(0.25), "yes": np.log(0.75)}), Example("", "no"))
    >>> round(row[0], 9)  # (1 - 0.25)² + 0.75²
    1.125
    """

    labels: tuple[str, ...]
    name: ClassVar[str] = "brier"
    kind: ClassVar[Kind] = "labels"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (0.0, 2.0)

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The squared distance; a label without a score has probability 0."""
        target, _ = pair(output, example, self.labels)
        found = shares(output, example, self.name)
        known = np.array([found.get(plain(label), 0.0) for label in self.labels])
        return (float(np.square(known - np.eye(len(known))[int(target)]).sum()),)


class Curve(ABC):
    """A metric read off the rows in the order of falling confidence, not a function of their sums.

    Rows that are as sure as each other come in together, at one rate, so that their order in the file says nothing.
    """

    labels: tuple[str, ...]
    name: ClassVar[str]
    kind: ClassVar[Kind] = "labels"
    higher_is_better: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(confidence, 1 or 0)."""
        return sure(output, example, self.labels, self.name)

    @abstractmethod
    def value(self, share: Line, right: Line, confidence: Line) -> float:
        """The metric of one resample, of which after each group of rows so much has come in; each line begins at 0."""

    def resampled(self, rows: Array, counts: Array) -> Array:
        """The metric of each resample: rows (n, 2), how often it takes each row (draws, n) → (draws,)."""
        order = np.argsort(-rows[:, 0], kind="stable")
        first = np.flatnonzero(np.diff(rows[order, 0], prepend=np.inf))
        taken = counts[..., order] / counts.sum(-1, keepdims=True)
        lines = [
            np.cumsum(np.add.reduceat(taken * gain, first, axis=-1), axis=-1)
            for gain in (1.0, rows[order, 1], rows[order, 0])
        ]
        return np.array([self.value(*drawn) for drawn in zip(*map(_from_zero, lines), strict=True)])

    def combine(self, rows: ArrayLike) -> float:
        """The metric over rows (n, 2). DataError where there is none."""
        kept = checked(rows, self.name)
        return float(self.resampled(kept, np.ones((1, len(kept))))[0])


@dataclass(frozen=True)
class EceMass(Curve):
    """Expected calibration error over 10 bins of as many rows each. Liang et al. 2022, arXiv:2211.09110, on calibration.

    A row on the edge of two bins is in each for its part, so that every bin has exactly a tenth.

    >>> rows = [[0.9, 1], [0.9, 0], [0.6, 1], [0.6, 1]]
    >>> round(EceMass(("no", "yes")).combine(rows), 9)  # |0.5 - 0.9| in five bins, |1 - 0.6| in five
    0.4
    """

    labels: tuple[str, ...]
    name: ClassVar[str] = "ece_mass"
    higher_is_better: ClassVar[bool] = False

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """By a bootstrap that knows of chance: see `reflected`."""
        return reflected(self, rows, level)

    def value(self, share: Line, right: Line, confidence: Line) -> float:
        """Σ over tenths of |right - confidence|, as shares of all rows."""
        return float(np.abs(np.diff(np.interp(np.linspace(0, 1, MASS + 1), share, right - confidence))).sum())


@dataclass(frozen=True)
class SelectiveAccuracy(Curve):
    """Accuracy on the tenth of the rows that the model is surest of. Liang et al. 2022, on calibration.

    >>> SelectiveAccuracy(("no", "yes")).combine([[0.9, 1], [0.9, 0], [0.6, 1]])  # of the two surest one is right
    0.5
    """

    labels: tuple[str, ...]
    name: ClassVar[str] = "selective_accuracy"

    def value(self, share: Line, right: Line, confidence: Line) -> float:
        """What is right of the first tenth."""
        return float(np.interp(COVERAGE, share, right)) / COVERAGE


@dataclass(frozen=True)
class CoverageArea(Curve):
    """Area under accuracy as a function of coverage, surest rows first, 0 to 1. Liang et al. 2022, on calibration.

    The exact integral, with rows that come in bit by bit; HELM takes the mean over 1, 2, … n rows, which is its
    limit for many rows.

    >>> round(CoverageArea(("no", "yes")).combine([[0.9, 1], [0.6, 0]]), 6)  # 1 up to half, then 1 / 2x: (1 + ln 2) / 2
    0.846574
    """

    labels: tuple[str, ...]
    name: ClassVar[str] = "coverage_area"

    def value(self, share: Line, right: Line, confidence: Line) -> float:
        """∫ right(x) / x dx over the shares x, right a line between groups: a ln x + b x."""
        kept = np.flatnonzero(np.diff(share) > 0)
        start, end, low, high = share[kept], share[kept + 1], right[kept], right[kept + 1]
        slope = (high - low) / (end - start)
        logs = np.log(end / np.where(start > 0, start, end))  # the first line goes through 0 and has no a
        return float(((low - slope * start) * logs + high - low).sum())


def shares(output: Output, example: Example, name: str) -> dict[str, float]:
    """Probability of each label, by its plain name: the softmax of its scores. ModelError where there are none."""
    if not output.scores:
        where = example.where or "An example"
        raise ModelError(f"{where} was answered without a probability for each label; {name} needs them.")
    logs = np.array(list(output.scores.values()), dtype=np.float64)
    known = np.exp(logs - np.logaddexp.reduce(logs)).tolist()
    return dict(zip(map(plain, output.scores), known, strict=True))


def sure(output: Output, example: Example, labels: tuple[str, ...], name: str) -> tuple[float, float]:
    """(confidence, 1 or 0).

    >>> scores = {"no": np.log(0.1), "yes": np.log(0.3)}
    >>> round(sure(Output("yes", scores), Example("", "yes"), ("no", "yes"), "ece")[0], 9)
    0.75
    """
    target, answer = pair(output, example, labels)
    return min(shares(output, example, name).get(plain(output.text), 0.0), 1.0), float(target == answer)


def reflected(metric: Metric, rows: Array, level: float, draws: int = 1000) -> tuple[float, float]:
    """Interval of a calibration error, from a bootstrap over rows; within 0 and 1.

    Chance gaps add up, so a resample lies above the sample about as the sample lies above the truth. The upper end is the
    draws' own quantile; the lower one is it reflected about the value (Davison & Hinkley 1997, eq. 5.6) and moved down
    by the draws' bias. Simulated with 100 and 400 rows, 95 % intervals cover an error of 0.05 to 0.15 in 91 to 99 % of
    samples, one of 0 in 75 to 87 %.
    """
    n, value = len(rows), metric.combine(rows)
    draws = int(np.clip(MOST / n, min(draws, 200), draws))  # many rows need few
    generator, batch = np.random.default_rng(0), max(1, CELLS // n)
    sizes = [min(batch, draws - done) for done in range(0, draws, batch)]
    counts = (generator.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64) for size in sizes)
    values = np.concatenate([resampled(metric, rows, some) for some in counts])
    if np.ptp(values) < TIE:
        return unseen(value, (0.0, 1.0), n, level)
    most = min(1.0, float(np.quantile(values, 0.5 + level / 2)))
    least = max(0.0, value - (most - value) - (float(values.mean()) - value))
    return min(round(least, ROUNDED), value), max(round(most, ROUNDED), value)


def places(confidence: Array, bins: int) -> NDArray[np.intp]:
    """The bin of each confidence, of bins of equal width that hold their upper end: (n,) → (n,).

    >>> places(np.array([0.0, 0.1, 0.11, 0.7, 1.0]), 10).tolist()
    [0, 0, 1, 6, 9]
    """
    return np.searchsorted(np.arange(1, bins) / bins, confidence)


def reliability(rows: ArrayLike, bins: int = WIDE) -> list[Bin]:
    """The bins of a reliability diagram that hold rows, from rows (n, 2) of (confidence, right).

    >>> reliability([[0.75, 1], [1.0, 0], [0.5, 1], [0.0, 0]], 2)
    [Bin(low=0.0, high=0.5, n=2, confidence=0.25, accuracy=0.5), Bin(low=0.5, high=1.0, n=2, confidence=0.875, accuracy=0.5)]
    """
    kept = checked(rows, "reliability")
    held = places(kept[:, 0], bins)
    means = {int(k): kept[held == k].mean(0).tolist() for k in np.unique(held)}
    return [Bin(k / bins, (k + 1) / bins, int((held == k).sum()), *mean) for k, mean in means.items()]


def _from_zero(lines: Array) -> Array:
    return np.concatenate([np.zeros((*lines.shape[:-1], 1)), lines], axis=-1)
