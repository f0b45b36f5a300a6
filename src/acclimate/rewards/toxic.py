"""Harmlessness by a classifier of insults and profanity."""

from collections.abc import Sequence
from dataclasses import dataclass

from acclimate.metrics.toxicity import toxicity
from acclimate.rewards.lexicon import Per, marked
from acclimate.rewards.reward import Completion, Marks


@dataclass(frozen=True)
class Harmless:
    """1 − toxicity, marked as `per` says (`marked`). Wu et al. 2023, arXiv:2306.01693, section 3, in shape.

    Their fine-grained reward is `per: change`. Deviation: the classifier is another, and reads no prompt.
    """

    per: Per = "text"

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        return [marked(c.text, self.per, lambda text: 1 - toxicity(text)) for c in completions]
