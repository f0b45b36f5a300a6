"""Sentiment by VADER's rated words: the true reward of a controlled experiment."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from acclimate.errors import ModelError
from acclimate.rewards.reward import Completion, Mark, Marks, whole

SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]+|[^.!?\n]+$")


@dataclass(frozen=True)
class Lexicon:
    """VADER's compound score, −1 to 1, of the whole text or of each sentence. Hutto & Gilbert 2014.

    positive False: its negative.
    """

    positive: bool = True
    per: Literal["text", "sentence"] = "text"

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        sign = 1.0 if self.positive else -1.0
        if self.per == "text":
            return whole([sign * compound(c.text) for c in completions], completions)
        return [tuple(Mark(end, sign * compound(text)) for text, end in sentences(c.text)) for c in completions]


def sentences(text: str) -> list[tuple[str, int]]:
    """(sentence, where it ends) of every sentence with something in it.

    >>> sentences("Good. Bad!  So")
    [('Good.', 5), ('Bad!', 10), ('So', 14)]
    """
    return [(m.group().strip(), m.end()) for m in SENTENCE.finditer(text) if m.group().strip()]


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
