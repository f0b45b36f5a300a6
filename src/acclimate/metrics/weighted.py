"""Shared runs of words, each by how much it says among all references: NIST and CIDEr-D.

Both need every reference before the first row: `fitted` reads them, `row` works with what it found (see `metric.fitted`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from typing import ClassVar

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.metrics.metric import Array, Summed
from acclimate.metrics.overlap import mteval_words, words

Run = tuple[str, ...]
LONGEST_NIST, LONGEST_CIDER = 5, 4  # words in a run
BETA = math.log(0.5) / math.log(1.5) ** 2  # Doddington 2002: a text of 2/3 the length keeps half its score
SIGMA = 6.0  # words; Vedantam et al. 2015, for CIDEr-D


@dataclass(frozen=True)
class Nist(Summed):
    """Information of the shared runs of 1 to 5 words, for each run written; short texts lose. Doddington 2002, eq. 3.

    Words are split as mteval-v13a does, in lower case. With several references a run counts as often as in the one that
    has it most, and the length is their mean, as in mteval; nltk takes the best reference for each length of run instead.

    >>> examples = [Example("", "a b"), Example("", "a c")]
    >>> metric = Nist().fitted(examples)
    >>> metric.row(Output("a b"), examples[0])[2:4]  # log₂ 4/2 + log₂ 4/1 of words; log₂ 2/1 of pairs
    (3.0, 1.0)
    >>> metric.combine([metric.row(Output("a b"), examples[0])])  # 3 / 2 + 1 / 1
    2.5
    """

    weights: Mapping[Run, float] | None = field(default=None, repr=False)  # bits of each run of words
    name: ClassVar[str] = "nist"
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def fitted(self, examples: Sequence[Example]) -> "Nist":
        """With the information that each run of words has in all references."""
        return Nist(information([mteval_words(answer) for example in examples for answer in example.answers]))

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """(length, mean length of the references, five sums of information shared, five counts of runs written)."""
        weights = _known(self.weights, self.name)
        text, answers = mteval_words(output.text), [mteval_words(answer) for answer in example.answers]
        shared, written = [], []
        for n in range(1, LONGEST_NIST + 1):
            mine, theirs = runs(text, n), reduce(Counter.__or__, (runs(answer, n) for answer in answers))
            shared.append(sum((weights[run] * count for run, count in (mine & theirs).items()), 0.0))
            written.append(float(mine.total()))
        return float(len(text)), sum(map(len, answers)) / len(answers), *shared, *written

    def value(self, sums: Array) -> Array:
        """exp(BETA log²(length / reference, at most 1)) × Σ over n of information / runs."""
        length, reference = sums[..., 0], sums[..., 1]
        share = np.clip(length / np.maximum(reference, 1e-12), 1e-12, 1)
        gained = (sums[..., 2:7] / np.maximum(sums[..., 7:12], 1)).sum(-1)
        return np.asarray(np.exp(BETA * np.log(share) ** 2) * gained)


@dataclass(frozen=True)
class Cider(Summed):
    """Mean CIDEr-D, 0 to 10: cosine of tf-idf over runs of 1 to 4 words, mean of the references. Vedantam et al. 2015, eq. 4.

    Clipped, and less where the lengths differ (sigma 6). idf is over examples, a run in every one weighs
    nothing: with one example all is 0. Words: any script, lower case, no punctuation, not stemmed.

    >>> examples = [Example("", "a b"), Example("", "c d")]
    >>> metric = Cider().fitted(examples)
    >>> metric.row(Output("a b"), examples[0])  # all of words and of pairs, no longer run: 10 · (1 + 1 + 0 + 0) / 4
    (5.0,)
    """

    weights: Mapping[Run, float] | None = field(default=None, repr=False)  # in how many examples each run of words is
    examples: int = 0
    name: ClassVar[str] = "cider"
    limits: ClassVar[tuple[float, float]] = (0.0, 10.0)

    def fitted(self, examples: Sequence[Example]) -> "Cider":
        """With the number of examples that have each run of words in a reference."""
        seen: Counter[Run] = Counter()
        for example in examples:
            seen.update(set(chain.from_iterable(chain(*_counts(answer)) for answer in example.answers)))
        return Cider(seen, len(examples))

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The score, 0 to 10."""
        seen = _known(self.weights, self.name)
        mine, *theirs = (
            [
                {run: tf * math.log(self.examples / max(1, seen.get(run, 0))) for run, tf in counts.items()}
                for counts in _counts(text)
            ]
            for text in (output.text, *example.answers)
        )
        length = len(words(output.text))
        scores = [
            _cosine(a, b) * math.exp(-((length - len(words(answer))) ** 2) / (2 * SIGMA**2))
            for answer, vectors in zip(example.answers, theirs, strict=True)
            for a, b in zip(mine, vectors, strict=True)
        ]
        return (10 * math.fsum(scores) / len(scores),)


def runs(text: Sequence[str], n: int) -> Counter[Run]:
    """How often each run of n words is there.

    >>> runs(["so", "so", "so"], 2)
    Counter({('so', 'so'): 2})
    """
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def information(references: Sequence[Sequence[str]]) -> dict[Run, float]:
    """Bits of each run of 1 to 5 words: log₂ of how often it stands without its last word, over how often it stands.

    Doddington 2002, eq. 2; of a single word the first number is that of all words.
    """
    counts: Counter[Run] = Counter()
    for words_ in references:
        counts.update(chain.from_iterable(runs(words_, n).elements() for n in range(1, LONGEST_NIST + 1)))
    total = sum(map(len, references))
    return {run: math.log2((counts[run[:-1]] if len(run) > 1 else total) / count) for run, count in counts.items()}


def _counts(text: str) -> list[Counter[Run]]:
    return [runs(words(text), n) for n in range(1, LONGEST_CIDER + 1)]


def _cosine(mine: Mapping[Run, float], theirs: Mapping[Run, float]) -> float:
    """Clipped: a run counts no more than the reference has it."""
    norms = math.hypot(*mine.values()) * math.hypot(*theirs.values())
    return (
        sum(min(mine[run], theirs[run]) * theirs[run] for run in mine.keys() & theirs.keys()) / norms if norms else 0.0
    )


def _known(weights: Mapping[Run, float] | None, name: str) -> Mapping[Run, float]:
    if weights is None:
        raise DataError(f"{name} weighs words by all references; build it with fitted(examples) first.")
    return weights
