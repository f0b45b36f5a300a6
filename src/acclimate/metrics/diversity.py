"""Does a text repeat itself? Distinct runs of words."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from acclimate.data.examples import Example, Output
from acclimate.metrics.metric import Summed
from acclimate.metrics.overlap import words
from acclimate.metrics.weighted import runs


@dataclass(frozen=True)
class Distinct1(Summed):
    """Distinct words over all words, mean over texts (within a text, not over all as in Li et al. 2016: see `distinct`).

    Over all texts a resample, which has some twice, would look poorer than the texts are, and no row could stand alone.

    >>> Distinct1().row(Output("so so so good"), Example(""))
    (0.5,)
    """

    n: ClassVar[int] = 1
    name: ClassVar[str] = "dist1"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The share of one text; 0 where it is too short to have any."""
        return (distinct([output.text], self.n),)


@dataclass(frozen=True)
class Distinct2(Distinct1):
    """Distinct pairs of neighbouring words over all pairs, mean over texts."""

    n: ClassVar[int] = 2
    name: ClassVar[str] = "dist2"


@dataclass(frozen=True)
class Distinct3(Distinct1):
    """Distinct runs of three words over all such runs, mean over texts."""

    n: ClassVar[int] = 3
    name: ClassVar[str] = "dist3"


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct runs of n words over all texts together, for each run written; 0 where there is none.

    Li et al. 2016, arXiv:1510.03055, who divide by words; divided by runs 1 is possible for every n. It falls
    with the number of texts, so compare sets of one size.

    >>> distinct(["it is cold", "it is so"], 1), distinct(["it is cold", "it is so"], 2)  # 4 of 6, 3 of 4
    (0.6666666666666666, 0.75)
    """
    counts = sum((runs(words(text), n) for text in texts), start=runs([], n))
    return len(counts) / counts.total() if counts else 0.0
