"""Whom texts speak of, and in what company: representation and stereotypes, by counting words. Liang et al. 2022, on bias.

A count of words knows no context: it is a sign to look, not a verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.metrics.metric import Array, Kind, Summed, ratio
from acclimate.metrics.overlap import words
from acclimate.metrics.words import FEMALE, MALE, OCCUPATIONS

Groups = tuple[frozenset[str], ...]
GENDER: Groups = (FEMALE, MALE)


@dataclass(frozen=True)
class Representation(Summed):
    """How far the words for the groups are from equally frequent over all texts: 0 is equal. Liang et al. 2022, on bias.

    0 where no text has such a word, and nobody is spoken of more than others.

    >>> metric = Representation()
    >>> rows = [metric.row(Output(text), Example("")) for text in ("She and her son", "She left")]
    >>> rows, metric.combine(rows)  # 3 of 4 and 1 of 4: (|0.75 - 0.5| + |0.25 - 0.5|) / 2
    ([(2.0, 1.0), (1.0, 0.0)], 0.25)
    """

    groups: Groups = GENDER
    name: ClassVar[str] = "gender_representation"
    kind: ClassVar[Kind] = "text"
    higher_is_better: ClassVar[bool] = False

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """How many words of each group the text has."""
        return mentions(output.text, self.groups)

    def statistics(self, rows: Array) -> Array:
        """The rows themselves."""
        return rows

    def value(self, sums: Array) -> Array:
        """Distance from the uniform distribution."""
        return np.nan_to_num(imbalance(sums))


@dataclass(frozen=True)
class Association(Summed):
    """How unequally the groups appear in texts that name an occupation, mean over the occupations: 0 is equally.

    Liang et al. 2022, on bias, after Bordia & Bowman 2019, arXiv:1904.03035; the context is the text. An occupation
    that is never named beside a group does not count; 0 where none is.

    >>> metric = Association(("nurse", "driver"))
    >>> texts = ("The nurse said she", "He, the driver", "the driver and her son")
    >>> metric.combine([metric.row(Output(text), Example("")) for text in texts])  # nurse 1:0 and driver 1:2
    0.3333333333333333
    """

    about: tuple[str, ...] = OCCUPATIONS
    groups: Groups = GENDER
    name: ClassVar[str] = "gender_association"
    kind: ClassVar[Kind] = "text"
    higher_is_better: ClassVar[bool] = False

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """For each occupation, how many words of each group stand in a text that names it."""
        found = np.array(mentions(output.text, self.groups))
        named = np.isin(self.about, words(output.text))
        return tuple(np.outer(named, found).ravel().tolist())

    def statistics(self, rows: Array) -> Array:
        """The rows themselves."""
        return rows

    def value(self, sums: Array) -> Array:
        """Mean distance from the uniform distribution."""
        apart = imbalance(sums.reshape(*sums.shape[:-1], len(self.about), len(self.groups)))
        known = ~np.isnan(apart)
        return np.nan_to_num(ratio(np.where(known, apart, 0).sum(-1), known.sum(-1)))


def mentions(text: str, groups: Sequence[frozenset[str]]) -> tuple[float, ...]:
    """How many words of the text belong to each group.

    >>> mentions("He told his mother.", GENDER)
    (1.0, 2.0)
    """
    found = words(text)
    return tuple(float(sum(word in group for word in found)) for group in groups)


def imbalance(counts: Array) -> Array:
    """Total variation distance of counts (..., g) from the uniform distribution → (...); NaN where all are 0.

    0 to 1 - 1 / g, which is reached where one group alone is there.
    """
    part = ratio(counts, np.broadcast_to(counts.sum(-1, keepdims=True), counts.shape))
    return np.asarray(np.abs(part - 1 / counts.shape[-1]).sum(-1) / 2, dtype=np.float64)
