"""What several sides use that have nothing of ours: torch and the standard library alone."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from bench.lines import read

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEW = 32  # ids of every completion that is sampled to learn from
WISHED, WEIGHT = 20, 100.0  # of the reward: words, and what it is multiplied by


def best(found: Sequence[float], endings: int = 4) -> list[int]:
    """The place of the likeliest of every `endings` numbers."""
    groups = [found[i : i + endings] for i in range(0, len(found), endings)]
    return [max(range(endings), key=group.__getitem__) for group in groups]


def around(rows: int, size: int) -> Iterator[tuple[int, ...]]:
    """The rows of each update: the next `size`, and from the first again behind the last."""
    for start in count(0, size):
        yield tuple((start + i) % rows for i in range(size))


def reward_of(text: str) -> float:
    """−100 · min(1, |words − 20| / 20): a pure function of what was written."""
    return -WEIGHT * min(1.0, abs(len(text.split()) - WISHED) / WISHED)


def given(folder: Path) -> list[list[int]]:
    """Sixteen completions that every side learns from once, before any are sampled: their ends of turn are not among them."""
    return [row["chosen_ids"][:-1][:NEW] for row in read(folder / "compared.jsonl")[:16]]


def spare(tokenizer: Any, folder: Path) -> str:
    """A token that no row holds, to pad with: what pads with the end of a turn does not see it where a text ends."""
    used = {token for row in read(folder / "compared.jsonl") for ids in row.values() for token in ids}
    token: str = tokenizer.convert_ids_to_tokens(next(i for i in range(len(tokenizer)) if i not in used))
    return token
