"""What a reward is: marks on a completion, each a score that is earned where a part of the text ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from acclimate.errors import ModelError


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt. fields: the columns of the row that the prompt came from."""

    prompt: str
    text: str
    ended: bool = True  # False: cut off by its length
    fields: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


class Mark(NamedTuple):
    """`score`, earned by what ends before character `end` of the text; the end of the text is the whole of it."""

    end: int
    score: float


Marks = tuple[Mark, ...]


class Reward(Protocol):
    """Scores completions. One mark at the end is a reward for the whole; several are fine-grained (Wu et al. 2023)."""

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]: ...


@dataclass(frozen=True)
class Weighted:
    """Σ weight · reward: the marks of all, each times its weight. Wu et al. 2023, arXiv:2306.01693, section 2."""

    parts: tuple[tuple[float, Reward], ...]

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        found = [(weight, reward(completions)) for weight, reward in self.parts]
        return [
            tuple(Mark(end, weight * score) for weight, marks in found for end, score in marks[i])
            for i in range(len(completions))
        ]


def whole(scores: Sequence[float], completions: Sequence[Completion]) -> list[Marks]:
    """One mark a completion, at its end."""
    return [(Mark(len(c.text), float(s)),) for c, s in zip(completions, scores, strict=True)]


def total(marks: Marks) -> float:
    """What a completion earned in all."""
    return sum(score for _, score in marks)


def checked(found: Sequence[Marks], completions: Sequence[Completion], name: str) -> list[Marks]:
    """The marks, one tuple a completion, within its text and finite. ModelError names the first that is not."""
    if len(found) != len(completions):
        raise ModelError(
            f"The reward {name} scored {len(found)} of {len(completions)} completions; it must score each."
        )
    for completion, marks in zip(completions, found, strict=True):
        for end, score in marks:
            if (
                not min(1, len(completion.text)) <= end <= len(completion.text)
                or score != score
                or abs(score) == float("inf")
            ):
                raise ModelError(
                    f"The reward {name} gave {score} at character {end} of a completion of {len(completion.text)}; a "
                    "score must be finite and lie within the text."
                )
    return list(found)
