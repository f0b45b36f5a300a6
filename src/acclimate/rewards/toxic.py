"""Harmlessness by a classifier of insults and profanity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from acclimate.metrics.toxicity import toxicity
from acclimate.rewards.lexicon import sentences
from acclimate.rewards.reward import Completion, Mark, Marks, whole


@dataclass(frozen=True)
class Harmless:
    """1 − toxicity of the whole text, or of each sentence. Wu et al. 2023, arXiv:2306.01693, section 3, in shape.

    Deviation: of a sentence its own toxicity, where the paper takes what it changes in that of the text so far.
    """

    per: Literal["text", "sentence"] = "text"

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        if self.per == "text":
            return whole([1 - toxicity(c.text) for c in completions], completions)
        return [tuple(Mark(end, 1 - toxicity(text)) for text, end in sentences(c.text)) for c in completions]
