"""Instructions that are too like an earlier one, by ROUGE-L: ours, and rouge_score on every pair."""

from itertools import count
from pathlib import Path
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from acclimate.data.novelty import too_like
from bench.lines import read
from bench.turns import Side

THRESHOLD = 0.7


def ours(folder: Path) -> Side:
    """What `acclimate curate` decides. Units are instructions; parity is which are kept."""
    texts = _texts(folder)
    for number in count():
        found = [hit is None for hit in too_like(texts, THRESHOLD)]
        yield {"kept": found} if not number else {"units": len(texts)}


def rouge_score(folder: Path, words_once: bool = False) -> Side:
    """Every instruction against all that were kept. words_once: each is cut into words once, as an expert would have it."""
    texts = _texts(folder)
    for number in count():
        found = _kept(texts, words_once)
        yield {"kept": found} if not number else {"units": len(texts)}


def _kept(texts: list[str], words_once: bool) -> list[bool]:
    scorer = RougeScorer(["rougeL"], tokenizer=_Cut(texts) if words_once else None)
    kept: list[str] = []
    found = []
    for text in texts:
        new = all(scorer.score(other, text)["rougeL"].fmeasure < THRESHOLD for other in kept)
        kept += [text] if new else []
        found.append(new)
    return found


class _Cut:
    """A tokenizer for rouge_score that knows the words of every text."""

    def __init__(self, texts: list[str]) -> None:
        own = RougeScorer(["rougeL"])._tokenizer
        self._known = {text: own.tokenize(text) for text in texts}

    def tokenize(self, text: str) -> list[str]:
        return self._known[text]


def _texts(folder: Path) -> list[str]:
    return [row["text"] for row in read(folder / "instructions.jsonl")]


WORKS: dict[str, Any] = {"ours": ours, "rouge_score": rouge_score}
