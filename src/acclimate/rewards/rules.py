"""Rewards that a rule can check: a right answer, a pattern, a length."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from acclimate.errors import DataError, RecipeError
from acclimate.rewards.reward import Completion, Marks, whole

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Answer:
    """1 where the last number written is that of the row's column, or else where the text ends with its words; 0 elsewhere.

    A verifiable reward (Lambert et al. 2024, arXiv:2411.15124, section 6).
    """

    column: str = "answer"

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        return whole([float(self._right(completion)) for completion in completions], completions)

    def _right(self, given: Completion) -> bool:
        if self.column not in given.fields:
            there = ", ".join(given.fields) or "none"
            raise DataError(
                f"{given.where} has no column {self.column}, which the reward compares with; it has: {there}."
            )
        wanted = str(given.fields[self.column]).strip()
        numbers = NUMBER.findall(given.text)
        if NUMBER.fullmatch(wanted):
            return bool(numbers) and float(numbers[-1].replace(",", "")) == float(wanted.replace(",", ""))
        return given.text.strip().rstrip(".").lower().endswith(wanted.lower())


@dataclass(frozen=True)
class Pattern:
    """1 where a regular expression is found in the text, 0 elsewhere."""

    find: str = ""

    def __post_init__(self) -> None:
        try:
            re.compile(self.find)
        except re.error as error:
            raise RecipeError(f"{self.find!r} is no regular expression: {error}.") from None
        if not self.find:
            raise RecipeError("The reward pattern needs `find`, a regular expression.")

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        return whole([float(bool(re.search(self.find, c.text))) for c in completions], completions)


@dataclass(frozen=True)
class Length:
    """−|words − wished| / wished, at least −1: how near the text is to a number of words."""

    words: int = 20

    def __post_init__(self) -> None:
        if self.words < 1:
            raise RecipeError(f"The reward length wishes for words above 0, not {self.words}.")

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        counts = [len(c.text.split()) for c in completions]
        return whole([-min(1.0, abs(n - self.words) / self.words) for n in counts], completions)
