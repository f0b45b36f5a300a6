"""What a metric is: a row of numbers for each example, and one number for all rows.

Rows are what is kept, so that intervals, paired tests and slices need neither the model nor the texts again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, ModelError

Array = NDArray[np.float64]
Kind = Literal["labels", "text", "likelihood", "number", "tags"]


class Metric(Protocol):
    """What evaluation asks of a metric.

    A metric may also have `interval(rows, level) -> (low, high)`, where something better than the bootstrap is known,
    `limits`, the least and the greatest value it can take, and `resampled(rows, counts) -> (draws,)`, its value for many
    resamples at once, of which counts (draws, n) says how often each takes each row, and `fitted(examples) -> Metric`,
    where a row needs something of all the examples; see `fitted`.
    """

    @property
    def name(self) -> str:
        """As in the recipe and the report."""

    @property
    def higher_is_better(self) -> bool:
        """False where less is better, as for perplexity."""

    @property
    def kind(self) -> Kind:
        """What is looked at: the label chosen, the text written, the reference's probability, the number, the tags."""

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """The k numbers that one example contributes; k is the same for every example."""

    def combine(self, rows: Array) -> float:
        """The metric over rows (n, k), in any order; NaN where a resample leaves nothing that counts."""


class Summed(ABC):
    """A metric that is a function of sums over the examples: most are, BLEU and macro-F1 included.

    `statistics` says what is summed and `value` what the sums mean, for many resamples at once. Unless a metric says
    otherwise it is the mean of its rows.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "text"
    higher_is_better: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @abstractmethod
    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """The k numbers that one example contributes."""

    def statistics(self, rows: Array) -> Array:
        """What is summed: rows (n, k) → (n, m)."""
        return np.column_stack([rows, np.ones(len(rows))])

    def value(self, sums: Array) -> Array:
        """The metric of sums (..., m) → (...); NaN where nothing counts."""
        return ratio(sums[..., 0], sums[..., 1])

    def resampled(self, rows: Array, counts: Array) -> Array:
        """The metric of each resample: rows (n, k), how often it takes each row (draws, n) → (draws,)."""
        return self.value(counts @ self.statistics(rows))

    def combine(self, rows: ArrayLike) -> float:
        """The metric over rows (n, k). DataError where there is no row, or none that counts."""
        kept = checked(rows, self.name)
        return defined(float(self.value(self.statistics(kept).sum(0))), self.name, len(kept))


def fitted(metric: Metric, examples: Sequence[Example]) -> Metric:
    """The metric as it stands for a set of examples: NIST and CIDEr weigh words by how rare they are in all references.

    The weights are then fixed, in every resample and for every system that is asked the same examples: an interval says
    how sure a score is with these weights.
    """
    own = getattr(metric, "fitted", None)
    made: Metric = metric if own is None else own(examples)
    return made


def resampled(metric: Metric, rows: Array, counts: Array) -> Array:
    """The metric of each resample: rows (n, k), how often it takes each row (draws, n) → (draws,)."""
    own = getattr(metric, "resampled", None)
    if own is not None:
        return np.asarray(own(rows, counts), dtype=np.float64)
    return np.array([metric.combine(np.repeat(rows, taken, axis=0)) for taken in counts.astype(np.intp)])


def checked(rows: ArrayLike, name: str) -> Array:
    """Rows as an array (n, k). DataError where there are none, ModelError where one is not finite."""
    kept = np.asarray(rows, dtype=np.float64)
    if len(kept) == 0:
        raise DataError(f"{name} needs at least one example, and there is none.")
    if not np.isfinite(kept).all():
        bad = int(np.argmin(np.isfinite(kept).reshape(len(kept), -1).all(1)))
        raise ModelError(f"{name}: the row of example {bad} (from 0) is {kept[bad].tolist()}; it must be finite.")
    return kept


def defined(value: float, name: str, n: int) -> float:
    """The value of a metric over n examples. DataError where it is NaN."""
    if np.isnan(value):
        raise DataError(f"{name} has no value: nothing in these {n} examples counts towards it.")
    return value


def ratio(part: Array, whole: Array) -> Array:
    """part / whole, elementwise; NaN where whole is 0.

    >>> ratio(np.array([1.0, 0.0]), np.array([4.0, 0.0])).tolist()
    [0.25, nan]
    """
    empty = np.full(np.shape(whole), np.nan)
    return np.asarray(np.divide(part, whole, out=empty, where=whole != 0), dtype=np.float64)
