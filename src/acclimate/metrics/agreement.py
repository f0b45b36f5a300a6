"""How far those who judge agree beyond chance: two of them, or many, also where some judged only a part of the items.

A row is what each rater said of one item, as indices into `labels`; NONE where a rater said nothing that counts. Every
measure is a function of sums over items, so `intervals.score` gives its bootstrap interval over items.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.metrics.labels import pair
from acclimate.metrics.metric import Array, Kind, Summed, checked, ratio

TIE = "tie"
Weights = Literal["none", "linear", "quadratic"]
Scale = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True)
class Agreement(Summed):
    """What raters said of items, as indices into `labels`, in the order of their scale where they have one."""

    labels: tuple[str, ...]
    name: ClassVar[str] = "agreement"
    kind: ClassVar[Kind] = "labels"
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(target, answer) as indices into `labels`: people and a judge, say."""
        return pair(output, example, self.labels)


@dataclass(frozen=True)
class TieDiscounted(Agreement):
    """Agreement of two raters in which a tie on one side only is half right. Zhou et al. 2023, arXiv:2305.11206, 4.2.

    1 where both say the same, 1/2 where one of them (not both) says tie, 0 otherwise, and where one says nothing.

    >>> TieDiscounted(("A", "B", "tie")).combine([[0, 0], [2, 2], [0, 2], [0, 1]])  # (1 + 1 + 1/2 + 0) / 4
    0.625
    """

    name: ClassVar[str] = "tie_discounted"
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def statistics(self, rows: Array) -> Array:
        """(n, 2): the points of each item, and 1."""
        tie = self.labels.index(TIE)
        said = (rows >= 0).all(1)
        same, one = rows[:, 0] == rows[:, 1], (rows == tie).any(1)
        return np.column_stack([said * np.where(same, 1.0, np.where(one, 0.5, 0.0)), np.ones(len(rows))])


@dataclass(frozen=True)
class CohenKappa(Agreement):
    """Agreement of two raters beyond chance: 1 - Σ w o / Σ w e. Cohen 1960, EPM 20; weighted: 1968, Psych. Bulletin 70.

    o: shares of items with labels (i, j); e: the product of each rater's own shares; w: 0 or 1, |i - j| or (i - j)².
    Items of which one said nothing are left out. No value where chance alone agrees wholly.

    >>> rows = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], [20, 5, 10, 15], axis=0)
    >>> round(CohenKappa(("yes", "no")).combine(rows), 9)  # (0.7 - 0.5) / (1 - 0.5)
    0.4
    """

    weights: Weights = "none"
    name: ClassVar[str] = "cohen_kappa"

    def statistics(self, rows: Array) -> Array:
        """(n, K²): the cell of each item."""
        first, second = (one_hot(rows[:, i], len(self.labels)) for i in (0, 1))
        return (first[:, :, None] * second[:, None]).reshape(len(rows), -1)

    def value(self, sums: Array) -> Array:
        """From counts of (i, j), (..., K²) → (...)."""
        k = len(self.labels)
        seen = sums.reshape(*sums.shape[:-1], k, k)
        chance = seen.sum(-1)[..., None] * seen.sum(-2)[..., None, :]
        apart = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
        weight = {"none": np.sign(apart), "linear": apart, "quadratic": apart**2}[self.weights]
        return 1 - ratio(seen.sum((-2, -1)) * (weight * seen).sum((-2, -1)), (weight * chance).sum((-2, -1)))


@dataclass(frozen=True)
class FleissKappa(Agreement):
    """Agreement beyond chance of m raters of every item, who need not be the same. Fleiss 1971, Psych. Bulletin 76.

    (P - Pe) / (1 - Pe): P is the mean share of agreeing pairs of an item, Pe = Σ p² of the labels' shares.

    >>> round(FleissKappa(("no", "yes")).combine([[0, 0, 0], [1, 1, 0]]), 9)  # (2/3 - 5/9) / (4/9)
    0.25
    """

    name: ClassVar[str] = "fleiss_kappa"

    def statistics(self, rows: Array) -> Array:
        """(n, K + 2): raters of each label, the share of agreeing pairs, and 1. DataError where one said nothing."""
        if (rows < 0).any() or rows.shape[1] < 2:
            raise DataError(
                f"{self.name} needs two ratings or more of every item, of all the same number; "
                "krippendorff_alpha takes items that some did not rate."
            )
        raters, counts = rows.shape[1], tallied(rows, len(self.labels))
        pairs = (np.square(counts).sum(1) - raters) / (raters * (raters - 1))
        return np.column_stack([counts, pairs, np.ones(len(rows))])

    def value(self, sums: Array) -> Array:
        """From these sums, (..., K + 2) → (...)."""
        counts, agreeing = sums[..., :-2], ratio(sums[..., -2], sums[..., -1])
        chance = ratio(np.square(counts).sum(-1), np.square(counts.sum(-1)))
        return ratio(agreeing - chance, 1 - chance)


@dataclass(frozen=True)
class KrippendorffAlpha(Agreement):
    """Agreement beyond chance of any raters, some of whom may have said nothing. Krippendorff 2011, "Computing alpha".

    1 - (n - 1) Σ o δ² / Σ n_c n_k δ² over coincidences o of values c and k within items. δ² is 0 or 1 (nominal), the
    square of the ratings between c and k (ordinal) or of the distance of their places in `labels` (interval).
    The interval draws items; Krippendorff's own bootstrap draws disagreements.

    >>> alpha = KrippendorffAlpha(("no", "yes"))
    >>> round(alpha.combine([[0, 0], [1, 1], [0, 1], [0, -1]]), 9)  # 1 - 5 · 2 / (2 · 3 · 3), the last is one alone
    0.444444444
    """

    scale: Scale = "nominal"
    name: ClassVar[str] = "krippendorff_alpha"

    def statistics(self, rows: Array) -> Array:
        """(n, K²): coincidences of an item, each pair of raters counted 1 / (ratings - 1); none where one is alone."""
        counts = tallied(rows, len(self.labels))
        pairs = counts[:, :, None] * counts[:, None] - counts[:, :, None] * np.eye(len(self.labels))
        others = counts.sum(1)[:, None, None] - 1
        np.divide(pairs, others, out=pairs, where=others > 0)
        return pairs.reshape(len(rows), -1)

    def value(self, sums: Array) -> Array:
        """From coincidences, (..., K²) → (...)."""
        k = len(self.labels)
        seen = sums.reshape(*sums.shape[:-1], k, k)
        ratings = seen.sum(-1)
        apart = _distances(ratings, self.scale)
        chance = ratings[..., None] * ratings[..., None, :]
        n = ratings.sum(-1)
        return 1 - ratio((n - 1) * (seen * apart).sum((-2, -1)), (chance * apart).sum((-2, -1)))


def one_hot(indices: ArrayLike, k: int) -> Array:
    """Indices (...) → (..., k) of 0 and 1; NONE is all 0. DataError for any other index.

    >>> one_hot([1, -1], 2).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    index = np.asarray(indices)
    if (index != index.astype(np.intp)).any() or (index < -1).any() or (index >= k).any():
        raise DataError(f"A rating is the index of one of {k} labels, or -1 where there is none; found another number.")
    return np.asarray(np.eye(k + 1)[index.astype(np.intp)][..., :k], dtype=np.float64)


def tallied(rows: Array, k: int) -> Array:
    """How many raters gave each label to each item: (n, raters) → (n, k)."""
    return np.asarray(one_hot(checked(rows, "agreement"), k).sum(1), dtype=np.float64)


def _distances(ratings: Array, scale: Scale) -> Array:
    """δ² of each pair of labels: (..., K) ratings of each label → (..., K, K), or (K, K) where they do not matter."""
    k = ratings.shape[-1]
    apart = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(np.float64)
    if scale != "ordinal":
        return np.sign(apart) if scale == "nominal" else np.square(apart)
    middle = ratings.cumsum(-1) - ratings / 2  # Σ of what lies between, with half of either end
    return np.asarray(np.square(middle[..., None] - middle[..., None, :]), dtype=np.float64)
