"""Texts that say something new: none is too like one that was kept before it."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import LCSseq
from rouge_score.tokenizers import DefaultTokenizer
from scipy.sparse import csr_matrix

ROWS = 256  # texts whose words in common with all others are counted at once
FIRST = 0x20000  # characters from here stand for words: none of them is half of a pair


def too_like(texts: Sequence[str], threshold: float = 0.7, known: Sequence[str] = ()) -> list[int | None]:
    """For each text the place in (*known, *texts) of a kept one with ROUGE-L ≥ threshold; None: it is new, and kept.

    Wang et al. 2022, arXiv:2212.10560, section 2.2, where the order decides as here. Words as rouge_score finds them, F
    computed as it does. All of `known` is kept. Few pairs are compared: two texts share at least as many words as their
    longest common subsequence has, and that must be half of threshold · (their words).

    >>> too_like(["Write a poem.", "List three fish.", "Write a short poem."])
    [None, None, 0]
    """
    words = [DefaultTokenizer(use_stemmer=False).tokenize(text) for text in (*known, *texts)]
    spelled = _as_characters(words)
    lengths = np.array([len(each) for each in words])
    kept = np.arange(len(words)) < len(known)
    found: list[int | None] = []
    for row, shared in _shared(words, len(known)):
        wanted = np.maximum(1, np.ceil(threshold * (lengths[row] + lengths[:row]) / 2 - 1e-6))
        near = np.flatnonzero(kept[:row] & (shared[:row] >= wanted))
        hit = next((int(other) for other in near if _rouge(spelled[row], spelled[other]) >= threshold), None)
        found.append(hit)
        kept[row] = hit is None
    return found


def _shared(words: Sequence[Sequence[str]], first: int) -> Iterator[tuple[int, Int[np.ndarray, " texts"]]]:
    """From `first` on, each text's place and how many words it has in common with every text, repeated ones counted.

    The second "the" of a text is another thing than its first, so that a product of zeros and ones counts.
    """
    numbers: dict[tuple[str, int], int] = {}
    things = [
        [numbers.setdefault((word, n), len(numbers)) for word, count in Counter(each).items() for n in range(count)]
        for each in words
    ]
    ends = np.cumsum([0, *map(len, things)])
    flat = np.array([number for each in things for number in each], dtype=np.int32)
    has = csr_matrix((np.ones(len(flat), dtype=np.int32), flat, ends), shape=(len(words), max(1, len(numbers))))
    others = has.T.tocsr()
    for start in range(first, len(words), ROWS):
        block = (has[start : start + ROWS] @ others).toarray()
        yield from enumerate(block, start)


def _as_characters(words: Sequence[Sequence[str]]) -> list[str]:
    """Each text with a character for a word: subsequences of strings are found fast."""
    numbers: dict[str, int] = {}
    return ["".join(chr(FIRST + numbers.setdefault(word, len(numbers))) for word in each) for each in words]


def _rouge(one: str, other: str) -> float:
    """ROUGE-L's F of two texts with words. Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, eqs. 2–4."""
    common = LCSseq.similarity(one, other)
    precision, recall = common / len(one), common / len(other)
    return 2 * precision * recall / (precision + recall) if common else 0.0
