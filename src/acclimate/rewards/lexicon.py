"""Sentiment by VADER's rated words: the true reward of a controlled experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import sub
from typing import Any, Literal

from acclimate.errors import ModelError
from acclimate.rewards.reward import Completion, Mark, Marks
from acclimate.tokens.feedback import parts

Per = Literal["text", "sentence", "change"]


@dataclass(frozen=True)
class Lexicon:
    """VADER's compound score, −1 to 1, marked as `per` says (`marked`). Hutto & Gilbert 2014.

    positive False: its negative.
    """

    positive: bool = True
    per: Per = "text"

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        sign = 1.0 if self.positive else -1.0
        return [marked(c.text, self.per, lambda text: sign * compound(text)) for c in completions]


def marked(text: str, per: Per, score: Callable[[str], float]) -> Marks:
    """Of a text: its score, that of each sentence, or what each sentence changes in that of the text so far.

    Changes add up to the score of the text, of which the first sentence brings its own (Wu et al. 2023, arXiv:2306.01693,
    section 3.1); the sum of sentences pays for how many there are.

    >>> [(mark.end, mark.score) for mark in marked("No. Yes! No.", "change", lambda text: text.count("Yes"))]
    [(3, 0), (8, 1), (12, 0)]
    """
    if per == "sentence":
        return tuple(Mark(end, score(text[start:end])) for start, end in parts(text, "sentence"))
    ends = [end for _, end in parts(text, "sentence")] if per == "change" else []
    found = [score(text[:end]) for end in ends]
    return tuple(Mark(*each) for each in zip(ends, map(sub, found, (0, *found)))) or (Mark(len(text), score(text)),)


def compound(text: str) -> float:
    """VADER's compound score of a text. ModelError where vaderSentiment is not installed."""
    return float(_analyser().polarity_scores(text)["compound"])


@cache
def _analyser() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ModelError("The reward lexicon needs vaderSentiment: pip install 'acclimate[rewards]'.") from None
    return SentimentIntensityAnalyzer()
