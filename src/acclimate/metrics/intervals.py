"""How sure a score is, and a difference: written once, for every metric.

A resample is a vector of counts that says how often each row is taken. The bootstrap draws counts, the jackknife leaves
one row out, and the randomisation test takes each row of a pair from one side or the other. A metric that has
`resampled`, as a `Summed` one does, turns (draws, n) counts into values at once; any other is asked once a draw.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from acclimate.errors import DataError
from acclimate.metrics.metric import Array, Metric, Summed, checked, resampled

CELLS = 1 << 22  # of (draws, n) held at once: 32 MiB
TIE = 1e-9  # two values of a metric nearer than this differ by rounding alone


@dataclass(frozen=True)
class Score:
    """A metric over n examples, with its confidence interval and its standard error."""

    value: float
    low: float
    high: float
    n: int
    stderr: float

    def json(self) -> dict[str, float]:
        """As it stands in report.json."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "stderr": self.stderr}


@dataclass(frozen=True)
class Difference:
    """Result minus base on the same examples: confidence interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float

    def json(self) -> dict[str, float]:
        """As it stands in report.json."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p}


def score(metric: Metric, rows: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Score:
    """The metric over rows (n, k) with its interval."""
    kept = checked(rows, metric.name)
    low, high = interval(metric, kept, level, draws, seed)
    return Score(metric.combine(kept), low, high, len(kept), stderr(metric, kept))


def stderr(metric: Metric, rows: Array) -> float:
    """The jackknife standard error (Efron & Tibshirani 1993, eq. 11.5); of a mean it is s / √n. 0 for a single row."""
    values = _without_each(metric, rows) if len(rows) > 1 else np.zeros(1)
    known = values[np.isfinite(values)]
    return float(np.sqrt((len(rows) - 1) / len(rows) * np.square(known - known.mean()).sum())) if len(known) else 0.0


def interval(
    metric: Metric, rows: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of a metric over rows (n, k): the metric's own, or else the BCa bootstrap over examples.

    Bias-corrected and accelerated: Efron 1987, JASA 82, 171–185. The percentile interval misses mostly on one side when
    scores pile up at 0, as ROUGE-2 does. Where all draws agree it is `unseen`. Deterministic by seed.
    """
    kept = checked(rows, metric.name)
    own = getattr(metric, "interval", None)
    if own is not None:
        low, high = own(kept, level)
        return float(low), float(high)
    value = metric.combine(kept)
    values = _resampled(lambda counts: resampled(metric, kept, counts), _drawn(len(kept), draws, seed))
    if _agree(values):
        return unseen(value, _limits(metric), len(kept), level)
    return _bca(value, values, _without_each(metric, kept), level)


def paired(
    metric: Metric,
    base: ArrayLike,
    result: ArrayLike,
    level: float = 0.95,
    draws: int = 9999,
    seed: int = 0,
) -> Difference:
    """Result minus base, from their rows (n, k) for the same examples in the same order.

    The interval is the percentile bootstrap over examples (Koehn 2004, EMNLP): a difference is symmetric enough that
    BCa only adds noise. p is approximate randomisation (Noreen 1989, chapter 2): were the two alike, swapping their
    answers to an example would change nothing; it is the share of swaps that differ at least as much, the observed one
    among them (Phipson & Smyth 2010, SAGMB 9). The two can disagree at the edge of significance. Deterministic by seed.
    """
    before, after = checked(base, metric.name), checked(result, metric.name)
    if before.shape != after.shape:
        raise DataError(f"{metric.name}: a paired test needs the same examples; got {len(before)} and {len(after)}.")
    n, value = len(before), metric.combine(after) - metric.combine(before)
    values = _resampled(
        lambda counts: resampled(metric, after, counts) - resampled(metric, before, counts), _drawn(n, draws, seed)
    )
    if _agree(values):
        least, most = _limits(metric)
        low, high = unseen(value, (least - most, most - least), n, level)
    else:
        low, high = _quantiles(values, (0.5 - level / 2, 0.5 + level / 2))
    fewer = np.abs(_randomised(metric, before, after, draws, seed)) < abs(value) - TIE
    return Difference(value, low, high, (1 + int(draws - fewer.sum())) / (draws + 1))


def wilson(hits: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Score interval of a proportion, elementwise. Wilson 1927, JASA 22, 209–212.

    28 of 28 leaves room for the mistake not yet seen: 28 / (28 + 1.96²).

    >>> [round(float(limit), 3) for limit in wilson(28, 28)]
    [0.879, 1.0]
    """
    z, count = _z(level), np.asarray(n, dtype=np.float64)
    share = np.asarray(hits, dtype=np.float64) / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return np.clip(centre - reach, 0, share), np.clip(centre + reach, share, 1)


def mover(values: Array, lows: Array, highs: Array) -> tuple[float, float]:
    """Interval of the mean of K independent estimates from the interval of each: method of variance estimates recovery.

    Zou & Donner 2008, Statistics in Medicine 27; for sums of proportions, Zou, Huang & Zhang 2009, CSDA 53. The
    distance from an estimate to its limit stands for a standard error on that side, and they add in squares.

    >>> low, high = mover(np.array([0.5, 0.9]), np.array([0.2, 0.5]), np.array([0.8, 1.0]))
    >>> round(low, 3), round(high, 3)  # 0.7 - sqrt(0.3² + 0.4²) / 2, 0.7 + sqrt(0.3² + 0.1²) / 2
    (0.45, 0.858)
    """
    down, up = (float(np.linalg.norm(reach)) / len(values) for reach in (values - lows, highs - values))
    mean = float(values.mean())
    return mean - down, mean + up


def unseen(value: float, limits: tuple[float, float], n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval where n examples show no spread at all: one example, all right, or base and result alike.

    A share of examples up to Wilson's limit for 0 of n may be of a kind not seen, with values anywhere within `limits`;
    for a proportion this is Wilson's interval. An unbounded metric has no such limit: its interval is its value.

    >>> low, high = unseen(1.0, (0.0, 1.0), 28)
    >>> round(low, 3), high
    (0.879, 1.0)
    """
    share = float(wilson(0, n, level)[1])
    if not np.isfinite(limits).all():
        return value, value
    return value - share * (value - limits[0]), value + share * (limits[1] - value)


def _z(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)


def _limits(metric: Metric) -> tuple[float, float]:
    return getattr(metric, "limits", (-np.inf, np.inf))


def _without_each(metric: Metric, rows: Array) -> Array:
    """The metric without each row in turn: (n, k) → (n,)."""
    if isinstance(metric, Summed):
        statistics = metric.statistics(rows)
        return metric.value(statistics.sum(0) - statistics)
    return _resampled(lambda counts: resampled(metric, rows, counts), _omitted(len(rows)))


def _randomised(metric: Metric, before: Array, after: Array, draws: int, seed: int) -> Array:
    """The difference after random swaps of base and result, (draws,)."""
    both = np.concatenate([before, after])

    def difference(swap: Array) -> Array:
        kept = 1 - swap
        return resampled(metric, both, np.hstack([swap, kept])) - resampled(metric, both, np.hstack([kept, swap]))

    return _resampled(difference, _swaps(len(before), draws, seed))


def _resampled(values: Callable[[Array], Array], counts: Iterator[Array]) -> Array:
    return np.concatenate([values(some) for some in counts])


def _batches(n: int, draws: int) -> Iterator[int]:
    size = max(1, CELLS // n)
    for done in range(0, draws, size):
        yield min(size, draws - done)


def _omitted(n: int) -> Iterator[Array]:
    """Jackknife counts (some, n): every row once, but for one."""
    done = 0
    for some in _batches(n, n):
        yield 1.0 - np.eye(some, n, done)
        done += some


def _drawn(n: int, draws: int, seed: int) -> Iterator[Array]:
    """Bootstrap counts (some, n): each row of them is n draws with replacement."""
    generator = np.random.default_rng([seed, 0])
    for some in _batches(n, draws):
        cells = generator.integers(n, size=(some, n)) + n * np.arange(some)[:, None]
        yield np.bincount(cells.ravel(), minlength=some * n).reshape(some, n).astype(np.float64)


def _swaps(n: int, draws: int, seed: int) -> Iterator[Array]:
    """Fair coins (some, n): 1 where base and result change places."""
    generator = np.random.default_rng([seed, 1])
    for some in _batches(2 * n, draws):
        yield generator.integers(2, size=(some, n)).astype(np.float64)


def _agree(values: Array) -> bool:
    known = values[~np.isnan(values)]
    return bool(known.size == 0 or np.ptp(known) < TIE)


def _quantiles(values: Array, shares: tuple[float, float]) -> tuple[float, float]:
    """Two quantiles of the draws that have a value, without the last bits: they depend on how many threads multiply."""
    low, high = np.quantile(values[~np.isnan(values)], shares)
    return round(float(low), 12), round(float(high), 12)


def _bca(value: float, values: Array, without_each: Array, level: float) -> tuple[float, float]:
    """Quantiles shifted by the bias z0 of the draws and the acceleration a, from the jackknife.

    Efron & Tibshirani 1993, An Introduction to the Bootstrap, eq. 14.10, 14.14, 14.15. Draws equal to the value count
    half, so that few distinct values do not pass for a bias.
    """
    normal, known = NormalDist(), values[~np.isnan(values)]
    below = (np.mean(known < value - TIE) + np.mean(known <= value + TIE)) / 2
    z0 = normal.inv_cdf(float(np.clip(below, 1 / (len(known) + 1), len(known) / (len(known) + 1))))
    pull = np.nanmean(without_each) - without_each
    spread = np.nansum(pull**2)
    a = float(np.nansum(pull**3) / (6 * spread**1.5)) if spread > 0 else 0.0

    def share(z: float) -> float:
        return normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))

    return _quantiles(values, (share(-_z(level)), share(_z(level))))
