"""What a model could do before it was tuned: ordinary prose to read, and simple questions to answer.

Every run asks them of the base and of the result, and the difference is what the tuning made the model forget
(perplexity of the texts, accuracy on the questions). They are near no task on purpose, and too few to rank models by.
Texts and questions are the project's own words, under its licence (Apache-2.0).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from acclimate.data.examples import Document

_FILE = "general.jsonl"
# Answered freely, before and after, to be looked at. Whoever learned to say a sentiment and nothing else says one here.
OPEN = (
    "My cat is called Charlie and likes to sleep in the sun. What is the name of my cat?",
    "It is raining, so I stay at home today. Where am I?",
    "Name an animal that lives in the sea.",
)
WORDS = 12  # tokens of such an answer


@dataclass(frozen=True)
class Question:
    """A prompt with four choices, one of them right. The prompt does not show them: a model scores each one after it."""

    prompt: str
    choices: tuple[str, ...]
    answer: str
    where: str  # file:line


def texts() -> tuple[Document, ...]:
    """48 pieces of 60 to 110 words, each of another genre."""
    return tuple(Document(row["text"], where) for where, row in _rows("text"))


def instructions() -> tuple[Question, ...]:
    """60 questions: facts, opposites, sums, kinds, translation, phrases, order, reasoning, grammar."""
    return tuple(
        Question(row["prompt"], tuple(row["choices"]), row["answer"], where) for where, row in _rows("instruction")
    )


def _rows(kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(file:line, row) of every row of one kind."""
    lines = files(__package__).joinpath(_FILE).read_text(encoding="utf-8").splitlines()
    rows = [(f"{_FILE}:{number}", json.loads(line)) for number, line in enumerate(lines, start=1)]
    return [(where, row) for where, row in rows if row["kind"] == kind]
