"""Who wins: win rates with ties, and one ranking of many systems from comparisons of two at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, ModelError
from acclimate.metrics.metric import Array, Kind, Summed

NEAR = 1e-10  # a step of every log strength smaller than this ends the iteration
MOST = 100_000  # iterations
ROUNDED = 12  # decimals kept of an interval


@dataclass(frozen=True)
class WinRate(Summed):
    """Share of comparisons won by the first, a tie half a win; a row is 1, 1/2 or 0.

    >>> WinRate().combine([[1.0], [0.5], [0.0], [1.0]])
    0.625
    """

    name: ClassVar[str] = "win_rate"
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 where the answer is A, 1/2 for tie, else 0; the example is the comparison."""
        return ({"A": 1.0, "tie": 0.5}.get(output.text, 0.0),)


@dataclass(frozen=True)
class Ranked:
    """One system of a ranking: its log strength, whose mean over systems is 0, with its interval.

    share: its expected share of wins, a tie half, against each of the others once. place: 1 is the best.
    """

    name: str
    place: int
    strength: float
    low: float
    high: float
    share: float

    def json(self) -> dict[str, float | str]:
        """As it stands in report.json."""
        return dict(vars(self))


@dataclass(frozen=True)
class Ranking:
    """Systems, best first. without: the share of bootstrap draws that put no order on all of them and were left out."""

    systems: tuple[Ranked, ...]
    without: float


def bradley_terry(wins: Float[np.ndarray, "*draws k k"]) -> Float[np.ndarray, "*draws k"]:
    """Natural-log strengths, of mean 0, that make the wins likeliest: P(i beats j) = p_i / (p_i + p_j).

    wins[i, j]: how often i beat j, a tie half for each (Bradley & Terry 1952 have no ties). By minorisation and
    maximisation, Hunter 2004, Annals of Statistics 32, eq. 3: p_i ← W_i / Σ_j n_ij / (p_i + p_j). Every table must be
    `connected`. ModelError where it does not settle.

    >>> round(float(np.ptp(bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]])))), 6)  # log(3 / 1)
    1.098612
    """
    k = wins.shape[-1]
    tables = wins.reshape(-1, k, k) * (1 - np.eye(k))
    games, won = tables + np.swapaxes(tables, -1, -2), tables.sum(-1)
    log, moving = np.zeros(won.shape), np.arange(len(won))
    for _ in range(MOST):
        new = _improved(log[moving], games[moving], won[moving])
        far = np.abs(new - log[moving]).max(-1, initial=0.0) >= NEAR
        log[moving] = new
        moving = moving[far]
        if not len(moving):
            return np.asarray(log.reshape(wins.shape[:-1]), dtype=np.float64)
    raise ModelError(f"The strengths of these {k} systems did not settle in {MOST:,} steps: some all but always win.")


def _improved(log: Array, games: Array, won: Array) -> Array:
    """One step: (draws, k) log strengths, (draws, k, k) games of each pair, (draws, k) wins of each."""
    strength = np.exp(log)
    new = np.log(won / (games / (strength[:, :, None] + strength[:, None])).sum(-1))
    return np.asarray(new - new.mean(-1, keepdims=True), dtype=np.float64)


def reached(wins: Float[np.ndarray, "*draws k k"]) -> Float[np.ndarray, "*draws k k"]:
    """1 where a chain of wins leads from i to j (i itself among them), else 0."""
    k = wins.shape[-1]
    paths = ((wins > 0) | np.eye(k, dtype=bool)).astype(np.float64)
    for _ in range(k.bit_length()):  # chains of 2, 4, 8, … wins
        paths = np.asarray(paths @ paths > 0, dtype=np.float64)
    return np.asarray(paths, dtype=np.float64)


def connected(wins: Float[np.ndarray, "*draws k k"]) -> np.ndarray:
    """Whether there are finite strengths: a chain of wins leads from each system to each. Ford 1957, AMM 64."""
    return np.asarray(reached(wins).min((-1, -2)) > 0)


def check_connected(wins: Float[np.ndarray, "k k"], names: Sequence[str]) -> None:
    """DataError that names the systems which nobody else beat."""
    paths = reached(wins)
    if paths.min() > 0:
        return
    above = next(group for group in paths.T > 0 if not group.all())  # all that a chain of wins leads from, to one
    best = [name for name, inside in zip(names, above, strict=True) if inside]
    rest = [name for name, inside in zip(names, above, strict=True) if not inside]
    raise DataError(
        f"No comparison was won or tied by {', '.join(rest)} against {', '.join(best)}, so no finite strength ranks them; "
        "add comparisons, or read the win rates."
    )


def rank(names: Sequence[str], wins: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Ranking:
    """Systems by strength, with percentile bootstrap intervals over items.

    wins: (items, k, k), of each item (a prompt) how often i beat j, a tie half for each. Items are drawn, not comparisons,
    because those of one prompt go together. DataError where the wins do not connect all systems.
    """
    items = np.asarray(wins, dtype=np.float64)
    table = items.sum(0)
    check_connected(table, names)
    strengths = bradley_terry(table)
    drawn = _tables(items, draws, seed)
    known = connected(drawn)
    values = bradley_terry(drawn[known]) if known.any() else strengths[None]
    lows, highs = np.quantile(values, (0.5 - level / 2, 0.5 + level / 2), axis=0).round(ROUNDED)
    chance = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    shares = (chance.sum(1) - 0.5) / max(1, len(names) - 1)
    order = np.argsort(-strengths, kind="stable")
    found = [
        Ranked(names[i], place, float(strengths[i]), float(lows[i]), float(highs[i]), float(shares[i]))
        for place, i in enumerate(order, start=1)
    ]
    return Ranking(tuple(found), float(1 - known.mean()))


def _tables(items: Array, draws: int, seed: int) -> Array:
    """Sums over items drawn with replacement: (n, k, k) → (draws, k, k)."""
    generator = np.random.default_rng([seed, 2])
    n = len(items)
    counts = np.stack([np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(draws)])
    return np.asarray(np.tensordot(counts.astype(np.float64), items, 1))
