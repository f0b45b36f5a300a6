"""Comparisons of the model's own completions, as they are kept: one file, read by every run that learns from them.

A line holds the prompt and its completions as text, in the shape of any other ranking, and the very ids that were fed and
drawn: a policy learns from these, so that nothing is spelled anew and a completion that was cut off gets no end.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acclimate.data.examples import Message, Ranking
from acclimate.errors import DataError
from acclimate.objectives import GRPO, LM, PPO, RLOO, SequenceLM, Spans
from acclimate.recipe import Recipe
from acclimate.run.parts import Part, Parts, stamp
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared

FILE = "sampled.jsonl"
TEMPLATE = "{{ prompt }}"  # of rows whose prompts have been through the task's already
TEXTS = (LM, SequenceLM, PPO, GRPO, RLOO)  # objectives on rows that are no comparisons


def learns(recipe: Recipe) -> bool:
    """Whether what the recipe learns from are comparisons of the model's own completions."""
    return recipe.data.sampled is not None and not isinstance(recipe.objective, (*TEXTS, Spans))


@dataclass(frozen=True)
class Ranked:
    """The completions of one prompt with the place of each, 1 the best. ids: what was drawn, a terminator included."""

    part: str
    prompt: Encoded
    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Places by reward; equal ones share theirs.

        >>> Ranked("train", Encoded((), ()), (), ("a", "b", "c"), ((), (), ()), (0.5, 2.0, 0.5)).ranks
        (2, 1, 2)
        """
        return tuple(1 + sum(other > mine for other in self.rewards) for mine in self.rewards)

    @property
    def ranking(self) -> Ranking:
        """As a row of data."""
        return Ranking(self.messages, self.completions, self.ranks, self.prompt.where)

    @property
    def compared(self) -> Compared:
        """As ids: what was drawn is scored."""
        return Compared(tuple(continued(self.prompt, drawn) for drawn in self.ids), self.ranks, self.prompt.where)


def continued(prompt: Encoded, drawn: Sequence[int]) -> Encoded:
    """Prompt and completion as one row, the completion scored."""
    scored = (False,) * len(prompt.ids) + (True,) * len(drawn)
    return prompt._replace(ids=(*prompt.ids, *drawn), scored=scored)


def text(rows: Sequence[Ranked]) -> str:
    """The rows as the lines of a file."""
    return "".join(json.dumps(_table(row), ensure_ascii=False) + "\n" for row in rows)


def _table(row: Ranked) -> dict[str, Any]:
    return {
        "part": row.part,
        "where": row.prompt.where,
        "prompt": [{"role": message.role, "content": message.content} for message in row.messages],
        "completions": row.completions,
        "ranking": row.ranks,
        "rewards": row.rewards,
        "prompt_ids": row.prompt.ids,
        "source_ids": row.prompt.source,
        "ids": row.ids,
    }


def kept(folder: Path | None) -> tuple[Ranked, ...]:
    """What was drawn for a folder; none where nothing was yet."""
    if folder is None or not (folder / FILE).exists():
        return ()
    return tuple(_rows((folder / FILE).read_text(encoding="utf-8").splitlines()))


def _rows(lines: Sequence[str]) -> Iterator[Ranked]:
    for line in lines:
        row: Mapping[str, Any] = json.loads(line)
        fed = tuple(row["prompt_ids"])
        prompt = Encoded(fed, (False,) * len(fed), tuple(row["source_ids"]), row["where"])
        said = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        drawn = tuple(map(tuple, row["ids"]))
        yield Ranked(row["part"], prompt, said, tuple(row["completions"]), drawn, tuple(row["rewards"]))


def of(rows: Sequence[Ranked], part: str) -> tuple[Ranked, ...]:
    """The rows of a part. DataError where there is none to learn from."""
    found = tuple(row for row in rows if row.part == part)
    if part == "train" and not found:
        raise DataError(
            "No prompt has completions with different rewards, so there is nothing to compare; sample more."
        )
    return found


def as_parts(rows: Sequence[Ranked]) -> Parts:
    """The comparisons as the data of a run that reads texts."""
    train, dev, test = (_part(name, tuple(row.ranking for row in of(rows, name))) for name in ("train", "dev", "test"))
    return Parts(train, dev, test)


def _part(name: str, rows: tuple[Ranking, ...]) -> Part:
    return Part(f"sampled completions ({name})", rows, stamp(rows), {})
