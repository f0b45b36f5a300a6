"""Tags of words, the entities they spell, and answers that are a span of a text."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from acclimate.data.examples import Example, Output, Tagged
from acclimate.errors import DataError, ModelError
from acclimate.metrics.intervals import wilson
from acclimate.metrics.metric import Array, Kind, Summed, ratio

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


class Entity(NamedTuple):
    """Words `start` to `end` (not included) are one entity of this type."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class EntityF1(Summed):
    """F1 of whole entities, right where first word, last word and type are; micro. Tjong Kim Sang & De Meulder 2003.

    >>> row = EntityF1().row(Output(tags=("B-per", "I-per", "B-loc")), Tagged(("Ada", "B", "Rome"), ("B-per", "O", "B-loc")))
    >>> row, EntityF1().combine([row])
    ((1.0, 2.0, 2.0), 0.5)
    """

    name: ClassVar[str] = "entity_f1"
    kind: ClassVar[Kind] = "tags"

    def row(self, output: Output, example: Example | Tagged) -> tuple[float, float, float]:
        """(entities in both, in the targets, in the answers)."""
        targets, answers = map(entities, tags(output, example, self.name))
        return float(len({*targets} & {*answers})), float(len(targets)), float(len(answers))

    def statistics(self, rows: Array) -> Array:
        """The rows themselves."""
        return rows

    def value(self, sums: Array) -> Array:
        """2 both / (targets + answers)."""
        return ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


@dataclass(frozen=True)
class TagAccuracy(Summed):
    """Share of words whose tag is right.

    >>> TagAccuracy().row(Output(tags=("O", "O")), Tagged(("in", "Rome"), ("O", "B-loc")))
    (1.0, 2.0)
    """

    name: ClassVar[str] = "tag_accuracy"
    kind: ClassVar[Kind] = "tags"

    def row(self, output: Output, example: Example | Tagged) -> tuple[float, float]:
        """(words that are right, words)."""
        targets, answers = tags(output, example, self.name)
        return float(sum(map(str.__eq__, targets, answers))), float(len(targets))

    def statistics(self, rows: Array) -> Array:
        """The rows themselves."""
        return rows


@dataclass(frozen=True)
class SquadF1(Summed):
    """F1 of shared words, clipped, after `normalised`; best reference. Rajpurkar et al. 2016, section 6.1.

    Where the answer or the reference is empty it is 1 if both are: no answer is right where there is none (SQuAD 2.0).

    >>> SquadF1().row(Output("the quick fox!"), Example("Who jumps?", "A quick brown fox"))  # 2 · 2 / (2 + 3)
    (0.8,)
    """

    name: ClassVar[str] = "squad_f1"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """F1 against the reference that gives the most, 0 to 1."""
        words = normalised(output.text).split()
        return (max(_overlap(words, normalised(answer).split()) for answer in example.answers),)


@dataclass(frozen=True)
class SquadExact(Summed):
    """Share of answers equal to a reference after `normalised`. Rajpurkar et al. 2016, section 6.1.

    >>> SquadExact().row(Output("the Eiffel Tower."), Example("What?", "tower", ("tower", "Eiffel tower")))
    (1.0,)
    """

    name: ClassVar[str] = "squad_exact"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 or 0."""
        return (float(normalised(output.text) in map(normalised, example.answers)),)

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """Wilson's."""
        low, high = wilson(np.sum(rows), len(rows), level)
        return float(low), float(high)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that BIO tags spell, as conlleval reads them (CoNLL-2000 and 2003).

    B-x begins one. I-x goes on with one of its own type, and begins one where there is none. Any other tag is outside.

    >>> [tuple(entity) for entity in entities(("B-per", "I-per", "I-loc", "O", "I-loc", "B-loc"))]
    [(0, 2, 'per'), (2, 3, 'loc'), (4, 5, 'loc'), (5, 6, 'loc')]
    """
    found: list[Entity] = []
    for i, (place, _, kind) in enumerate(tag.partition("-") for tag in tags):
        if place == "I" and found and found[-1].end == i and found[-1].type == kind:
            found[-1] = found[-1]._replace(end=i + 1)
        elif place in ("B", "I"):
            found.append(Entity(i, i + 1, kind))
    return found


def tags(output: Output, example: Example | Tagged, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(targets, answers), one tag a word. DataError where the example has no tags, ModelError where the output lacks some."""
    where = example.where or "An example"
    if not isinstance(example, Tagged):
        raise DataError(f"{where} has no tags; {name} needs rows with tokens and tags.")
    if len(output.tags) != len(example.tags):
        raise ModelError(f"{where}: {len(output.tags)} tags came for {len(example.tags)} words; {name} needs one each.")
    return example.tags, output.tags


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and more than one space in a row.

    >>> normalised("The  Dog's  Bowl (an old one)")
    'dogs bowl old one'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _overlap(words: Sequence[str], reference: Sequence[str]) -> float:
    if not words or not reference:
        return float(words == reference)
    return 2 * (Counter(words) & Counter(reference)).total() / (len(words) + len(reference))
