"""Words and characters shared with a reference: ROUGE, BLEU, chrF, TER, METEOR."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.metrics.metric import Array, Summed, ratio

CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # scripts written without spaces: one character, one word
WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")


@dataclass(frozen=True)
class Rouge1(Summed):
    """ROUGE-1: F1 of shared words, clipped; best reference. Lin 2004, section 2.

    A word counts as often as the reference has it: four times "cold" shares one word of four, not four.

    >>> row = Rouge1().row
    >>> row(Output("cold cold cold cold"), Example("", "It is cold outside"))
    (0.25,)
    >>> round(row(Output("It is cold outside"), Example("", "It is very cold outside"))[0], 2)
    0.89
    """

    name: ClassVar[str] = "rouge1"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """F1 against the reference that gives the most, 0 to 1."""
        return (rouge(self.name, output, example),)


@dataclass(frozen=True)
class Rouge2(Summed):
    """ROUGE-2: F1 of shared pairs of neighbouring words, clipped; best reference. Lin 2004, section 2.

    >>> round(Rouge2().row(Output("It is cold outside"), Example("", "It is very cold outside"))[0], 2)
    0.57
    """

    name: ClassVar[str] = "rouge2"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """F1 against the reference that gives the most, 0 to 1."""
        return (rouge(self.name, output, example),)


@dataclass(frozen=True)
class RougeL(Summed):
    """ROUGE-L: F1 of the longest common subsequence of words over the whole text; best reference. Lin 2004, section 3.

    >>> round(RougeL().row(Output("It is cold outside"), Example("", "It is very cold outside"))[0], 2)
    0.89
    """

    name: ClassVar[str] = "rougeL"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """F1 against the reference that gives the most, 0 to 1."""
        return (rouge(self.name, output, example),)


@dataclass(frozen=True)
class Bleu(Summed):
    """Corpus BLEU, 0 to 100, as sacreBLEU computes it: 13a words, mixed case, exponential smoothing.

    Papineni et al. 2002; Post 2018. 13a finds no words where the script has no spaces; use chrf there.
    """

    name: ClassVar[str] = "bleu"
    limits: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """(length, closest reference's length, four counts of matching n-grams, four of all n-grams)."""
        found = _bleu().corpus_score([output.text], [[answer] for answer in example.answers])
        return tuple(map(float, (found.sys_len, found.ref_len, *found.counts, *found.totals)))

    def value(self, sums: Array) -> Array:
        """Brevity penalty × geometric mean of the precisions; the k-th one without a match counts as 1 / 2^k matches.

        Smoothing: Chen & Cherry 2014, WMT, method 3.
        """
        length, reference = np.maximum(sums[..., 0], 1), sums[..., 1]
        matches, ngrams = sums[..., 2:6], sums[..., 6:10]
        missing = matches == 0
        credit = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matches)
        precision = np.log(credit / np.maximum(ngrams, 1)).mean(-1)
        penalty = np.minimum(1 - reference / length, 0)
        defined = (ngrams > 0).all(-1) & ~missing.all(-1)
        return np.where(defined, 100 * np.exp(penalty + precision), 0.0)


@dataclass(frozen=True)
class Chrf(Summed):
    """chrF2, 0 to 100: F-score of shared runs of 1 to 6 characters, recall counted twice; any script. Popović 2015."""

    name: ClassVar[str] = "chrf"
    limits: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        """For each length of run: how many the output has, the best reference has, both have."""
        mine = list(_runs(output.text))
        found = np.array([[_shared(a, b) for a, b in zip(mine, _runs(answer))] for answer in example.answers])
        best = int(np.argmax(self.value(found.reshape(len(found), -1))))
        return tuple(found[best].ravel().tolist())

    def value(self, sums: Array) -> Array:
        """F2 of precision and recall, each the mean over the lengths that both sides have."""
        counts = sums[..., :18].reshape(*sums.shape[:-1], 6, 3)
        both = (counts[..., :2] > 0).all(-1)
        shared, lengths = np.where(both, counts[..., 2], 0), np.maximum(both.sum(-1), 1)
        precision = (shared / np.maximum(counts[..., 0], 1)).sum(-1) / lengths
        recall = (shared / np.maximum(counts[..., 1], 1)).sum(-1) / lengths
        return 100 * np.nan_to_num(ratio(5 * precision * recall, 4 * precision + recall))


@dataclass(frozen=True)
class Ter(Summed):
    """Edits for each 100 words of the reference, moved runs of words one edit, as sacreBLEU counts. Snover et al. 2006.

    Of several references the nearest counts, over their mean length. Words are split at spaces, in lower case.

    >>> row = Ter().row(Output("outside it is cold"), Example("", "it is very cold outside"))
    >>> row, Ter().combine([row])  # one move, one word put in
    ((2.0, 5.0), 40.0)
    """

    name: ClassVar[str] = "ter"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(edits to the nearest reference, mean length of the references in words)."""
        found = _ter().corpus_score([output.text], [[answer] for answer in example.answers])
        return float(found.num_edits), float(found.ref_length)

    def statistics(self, rows: Array) -> Array:
        """The rows themselves."""
        return rows

    def value(self, sums: Array) -> Array:
        """100 edits / length; where all references are empty, 100 for any edit and 0 for none."""
        edits, length = sums[..., 0], sums[..., 1]
        return 100 * np.where(length > 0, ratio(edits, length), np.sign(edits))


@dataclass(frozen=True)
class Meteor(Summed):
    """Mean METEOR: recall-heavy F of aligned words, less for every break in their order; best reference. Lavie & Agarwal 2007.

    Through nltk, alpha 0.9, beta 3, gamma 0.5. Words go together that are equal or have one Porter stem. The stage of
    synonyms is left out: no package holds WordNet, and a score must not depend on what is installed beside us.

    >>> [score] = Meteor().row(Output("it is cold outside"), Example("", "it is very cold outside"))
    >>> round(score, 6)  # F = 10 · 1 · 0.8 / (0.8 + 9 · 1) = 0.816327, two runs of 4 words: · (1 - (2 / 4)³ / 2)
    0.765306
    """

    name: ClassVar[str] = "meteor"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The score against the reference that gives the most, 0 to 1."""
        return (meteor(words(output.text), [words(answer) for answer in example.answers]),)


def words(text: str) -> list[str]:
    """Words of any script in lower case, without punctuation.

    >>> words("It's cold, 我!")
    ['it', 's', 'cold', '我']
    """
    return WORD.findall(text.lower())


def mteval_words(text: str) -> list[str]:
    """Words and punctuation in lower case, split as mteval-v13a does.

    >>> mteval_words("It's $5.50, OK?")
    ["it's", '$', '5.50', ',', 'ok', '?']
    """
    return str(_mteval()(text.lower())).split()


def meteor(text: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR of words in lower case, 0 to 1; the best over the references."""
    from nltk.translate.meteor_score import meteor_score

    return float(meteor_score(references, text, wordnet=_NoSynonyms()))


class _NoSynonyms:
    """Stands where nltk expects WordNet."""

    def synsets(self, word: str) -> list[Any]:
        """None of any word."""
        return []


def rouge(kind: str, output: Output, example: Example) -> float:
    """F1 of rouge1, rouge2 or rougeL, 0 to 1, the best over the answers, through Google's rouge_score.

    Words are stemmed (Porter), as most papers report. rouge_score sees a–z and 0–9 alone, so that a perfect answer in
    Russian or Chinese would score 0: references whose letters are mostly others are split into words of any script.
    """
    return max(
        float(_scorer(kind, _is_latin(answer)).score(answer, output.text)[kind].fmeasure) for answer in example.answers
    )


@dataclass(frozen=True)
class _Words:
    """The tokenizer that rouge_score asks, remembering what it split: each text is asked for by three metrics."""

    latin: bool

    def tokenize(self, text: str) -> list[str]:
        """Words of a text."""
        return list(_split(text, self.latin))


@lru_cache(maxsize=4096)
def _split(text: str, latin: bool) -> tuple[str, ...]:
    return tuple(_stemmer().tokenize(text) if latin else words(text))


def _is_latin(text: str) -> bool:
    letters = [letter.isascii() for letter in text if letter.isalpha()]
    return 2 * sum(letters) >= len(letters)


# rouge_score imports nltk, a second's work: only who asks for ROUGE waits.
@cache
def _stemmer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@cache
def _scorer(kind: str, latin: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_Words(latin))


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


@cache
def _mteval() -> Any:
    return _bleu().tokenizer


@cache
def _ter() -> Any:
    from sacrebleu.metrics.ter import TER

    return TER()


def _runs(text: str) -> Iterator[Counter[str]]:
    """Counts of the runs of 1, 2, … 6 characters, white space left out."""
    letters = "".join(text.split())
    for n in range(1, 7):
        yield Counter(letters[i : i + n] for i in range(len(letters) - n + 1))


def _shared(mine: Counter[str], theirs: Counter[str]) -> tuple[float, float, float]:
    """(mine, theirs, both); runs that the reference is too short to have do not count against the output."""
    return float(mine.total() if theirs else 0), float(theirs.total()), float((mine & theirs).total())
