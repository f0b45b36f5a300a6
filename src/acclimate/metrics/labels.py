"""Right or wrong: labels compared with labels, and texts with texts.

A label metric's row is (target, answer) as indices into `labels`; an answer that is none of them is -1 and wrong.
Texts are compared after `plain`: composed characters (NFC), no space at the ends, one space for every run of white
space. Case, punctuation and articles count, for in names, code and quoted text they are the task.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, unknown
from acclimate.metrics.intervals import Score, mover, wilson
from acclimate.metrics.metric import Array, Kind, Summed, checked, ratio

NONE = -1  # the index of an answer that is no label; in a matrix with one more column it is the last


@dataclass(frozen=True)
class Labelled(Summed):
    """A metric of (target, answer): unless it says otherwise it is a function of the hits, targets and answers by label."""

    labels: tuple[str, ...]
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(target, answer) as indices into `labels`."""
        return pair(output, example, self.labels)

    def statistics(self, rows: Array) -> Array:
        """(n, 3 K): see `tally`."""
        return tally(rows, len(self.labels)).reshape(len(rows), -1)


@dataclass(frozen=True)
class Accuracy(Labelled):
    """Share of examples whose label is right."""

    name: ClassVar[str] = "accuracy"

    def statistics(self, rows: Array) -> Array:
        """(n, 2): right or not, and 1."""
        return np.column_stack([rows[:, 0] == rows[:, 1], np.ones(len(rows))])

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """Wilson's."""
        low, high = wilson(np.sum(rows[:, 0] == rows[:, 1]), len(rows), level)
        return float(low), float(high)


@dataclass(frozen=True)
class BalancedAccuracy(Labelled):
    """Recall of each label, averaged over the labels that occur as targets. Brodersen et al. 2010, ICPR."""

    name: ClassVar[str] = "balanced_accuracy"

    def value(self, sums: Array) -> Array:
        """Mean of hits / targets where there are targets."""
        hits, targets, _ = parts(sums)
        return _mean(ratio(hits, targets))

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """Wilson's for each label, put together by MOVER: 14 of 14 right of each of two labels is not 1.000 to 1.000.

        The bootstrap would hold a rare label that was never missed for certain. With twenty labels and more of a few
        examples each, simulation finds 95 % intervals that cover 80 to 90 %.

        >>> rows = np.repeat([[0.0, 0.0], [1.0, 1.0]], 14, axis=0)
        >>> low, high = BalancedAccuracy(("no", "yes")).interval(rows)
        >>> round(low, 3), high  # 1 - sqrt(2 · (1 - 14 / 17.84)²) / 2
        (0.848, 1.0)
        """
        hits, targets, _ = tally(rows, len(self.labels)).sum(0)
        hits, targets = hits[targets > 0], targets[targets > 0]
        return mover(hits / targets, *wilson(hits, targets, level))


@dataclass(frozen=True)
class MacroF1(Labelled):
    """F1 of each label, averaged over the labels that occur as targets: the same labels for every system compared."""

    name: ClassVar[str] = "macro_f1"

    def value(self, sums: Array) -> Array:
        """Mean of F1 = 2 hits / (targets + answers) where there are targets."""
        hits, targets, answers = parts(sums)
        return _mean(ratio(2 * hits, np.where(targets > 0, targets + answers, 0)))


@dataclass(frozen=True)
class F1(Labelled):
    """F1 of one label, the positive one: the last of the labels, unless it is named.

    No value where it is neither a target nor an answer.

    >>> F1(("no", "yes")).combine([[0, 1], [1, 1], [1, 1], [1, 0]])  # 2 · 2 / (3 + 3)
    0.6666666666666666
    """

    positive: str = ""
    name: ClassVar[str] = "f1"

    def statistics(self, rows: Array) -> Array:
        """(n, 3): a hit, a target, an answer of the positive label, or not."""
        return tally(rows, len(self.labels))[:, :, self.labels.index(self.positive or self.labels[-1])]

    def value(self, sums: Array) -> Array:
        """2 hits / (targets + answers)."""
        return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


@dataclass(frozen=True)
class F1a(F1):
    """F1 of the right answers over the options of all questions, one row an option (MultiRC). Khashabi et al. 2018."""

    name: ClassVar[str] = "f1a"


@dataclass(frozen=True)
class ExactMatch(Summed):
    """Share of texts equal to one of the acceptable answers, but for white space."""

    name: ClassVar[str] = "exact_match"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 or 0.

        >>> ExactMatch().row(Output(" New\\n York "), Example("The Big Apple?", "NYC", ("NYC", "New York")))
        (1.0,)
        """
        return (float(plain(output.text) in map(plain, example.answers)),)

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """Wilson's."""
        low, high = wilson(np.sum(rows), len(rows), level)
        return float(low), float(high)


def plain(text: str) -> str:
    """Text as it is compared: NFC, stripped, white space collapsed; see the head of this file."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def pair(output: Output, example: Example, labels: Sequence[str]) -> tuple[float, float]:
    """(target, answer) as indices into labels, the answer NONE where it is no label. DataError for an unknown target.

    >>> pair(Output("I cannot say."), Example("Good?", "yes"), ("no", "yes"))
    (1.0, -1.0)
    """
    known = [plain(label) for label in labels]
    target, answer = plain(example.target), plain(output.text)
    if target not in known:
        raise DataError(f"{example.where or 'An example'}: " + unknown("label", example.target, labels))
    return float(known.index(target)), float(known.index(answer) if answer in known else NONE)


def tally(rows: Array, k: int) -> Array:
    """Rows (n, 2) → (n, 3, k) of 0 and 1: is it a hit, a target, an answer of this label?"""
    target, answer = rows.astype(np.intp).T
    targets, answers = np.eye(k)[target], np.eye(k + 1)[answer][:, :k]
    return np.stack([targets * answers, targets, answers], axis=1)


def per_label(rows: ArrayLike, labels: Sequence[str]) -> dict[str, Score]:
    """Recall of each label that occurs as a target, with Wilson's interval and the number of its examples.

    >>> per_label([[0, 0], [0, 1], [1, 1]], ("no", "yes"))["no"].value
    0.5
    """
    hits, targets, _ = tally(checked(rows, "per_label"), len(labels)).sum(0)
    columns = zip(labels, hits, targets, *wilson(hits, np.maximum(targets, 1)), strict=True)
    return {
        label: Score(float(hit / n), float(low), float(high), int(n), _deviation(hit, n))
        for label, hit, n, low, high in columns
        if n
    }


def _deviation(hits: float, n: float) -> float:
    """Standard error of a proportion: √(p (1 − p) / n)."""
    share = hits / n
    return float(np.sqrt(share * (1 - share) / n))


def confusion(rows: ArrayLike, labels: Sequence[str]) -> NDArray[np.intp]:
    """How often each target (a row) got each answer (a column; the last is "none of them"): (K, K + 1).

    >>> confusion([[0, 0], [0, 1], [1, 1], [1, -1]], ("no", "yes")).tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    matrix = np.zeros((len(labels), len(labels) + 1), dtype=np.intp)
    target, answer = checked(rows, "confusion").astype(np.intp).T
    np.add.at(matrix, (target, answer), 1)
    return matrix


def parts(sums: Array) -> Array:
    """Sums of a `tally`, (..., 3 K) → (3, ..., K): hits, targets, answers."""
    return np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)


def _mean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))
