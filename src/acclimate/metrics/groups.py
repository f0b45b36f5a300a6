"""One metric, several sets of rows: the worst of several versions of a question, and how groups of rows fare."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from acclimate.errors import DataError
from acclimate.metrics.intervals import Score, score
from acclimate.metrics.metric import Array, Metric, checked, resampled


class Gap(NamedTuple):
    """The best and the worst group by name, and how far apart their scores are, 0 or more."""

    best: str
    worst: str
    distance: float


def alone(metric: Metric, rows: ArrayLike) -> Array:
    """The metric of each row by itself: (n, k) → (n,); NaN where one row has no value."""
    one = np.ones((1, 1))
    return np.array([float(resampled(metric, row[None], one)[0]) for row in checked(rows, metric.name)])


def worst_case(metric: Metric, *versions: ArrayLike) -> Array:
    """The rows of the version that each example fares worst in: (n, k) each → (n, k). Liang et al. 2022, on robustness.

    versions: rows of the examples as they are, then of each change of them, in the same order. Where several are as bad
    the earliest stands. The metric over the result is its worst case: at most as good as in any version, for a mean.
    DataError where the examples are not the same or no single row has a value (a correlation).

    >>> from acclimate.metrics.overlap import Rouge1
    >>> worst_case(Rouge1(), [[1.0], [0.5]], [[0.2], [0.9]]).tolist()
    [[0.2], [0.5]]
    """
    kept = [checked(rows, metric.name) for rows in versions]
    if len({rows.shape for rows in kept}) != 1:
        raise DataError(f"{metric.name}: a worst case needs the same examples in every version.")
    badness = np.stack([alone(metric, rows) for rows in kept]) * (-1 if metric.higher_is_better else 1)
    if np.isnan(badness).all():
        raise DataError(f"{metric.name} says nothing of one row alone, so no version of a row is its worst.")
    chosen = np.where(np.isnan(badness), -np.inf, badness).argmax(0)
    return np.asarray(np.stack(kept)[chosen, np.arange(len(chosen))])


def by_group(
    metric: Metric, rows: ArrayLike, groups: Sequence[str], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> dict[str, Score]:
    """The metric with its interval over the rows of each group, by name; groups[i] is the group of row i.

    >>> from acclimate.metrics.overlap import Rouge1
    >>> found = by_group(Rouge1(), [[1.0], [0.5], [0.1]], ["old", "old", "new"])
    >>> {name: (score.value, score.n) for name, score in found.items()}
    {'new': (0.1, 1), 'old': (0.75, 2)}
    """
    kept, named = checked(rows, metric.name), np.array(groups)
    if len(kept) != len(named):
        raise DataError(f"{metric.name}: {len(kept)} rows came with {len(named)} groups; each row needs one.")
    return {str(name): score(metric, kept[named == name], level, draws, seed) for name in np.unique(named)}


def gap(metric: Metric, scores: dict[str, Score]) -> Gap:
    """The best group, the worst, and the distance between them.

    >>> from acclimate.metrics.likelihood import Perplexity
    >>> gap(Perplexity(), {"old": Score(12.0, 11, 13, 9, 0.5), "new": Score(9.5, 9, 10, 9, 0.5)})
    Gap(best='new', worst='old', distance=2.5)
    """
    order = sorted(scores, key=lambda name: scores[name].value, reverse=metric.higher_is_better)
    best, worst = order[0], order[-1]
    return Gap(best, worst, abs(scores[best].value - scores[worst].value))
