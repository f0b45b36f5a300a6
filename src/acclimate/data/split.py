"""Train, dev and test by hash of the prompt: no order, no seed, no neighbour decides where a row goes.

A row stays in its part when the file is shuffled or grows, and rows of one prompt are always in one part.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple

from acclimate.data.examples import Conversation, Document, Example, Message, Row, Tagged
from acclimate.errors import DataError

Part = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Shares:
    """What part of all prompts goes where; together 1."""

    train: float = 0.8
    dev: float = 0.1
    test: float = 0.1


class Parts(NamedTuple):
    """Rows in the order they came, each in the part of its prompt."""

    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]


def plain(prompt: str) -> str:
    """The prompt with runs of white space as one space: what counts as the same prompt."""
    return " ".join(prompt.split())


def part(prompt: str, shares: Shares = Shares()) -> Part:
    """Where a prompt belongs: sha256 as a number in [0, 1), train from below, test from above, dev between.

    >>> part("Is this  review positive?") == part("Is this review positive?")
    True
    """
    digest = sha256(plain(prompt).encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:6]) / 2**48  # 48 bits: exact in a float, never rounded up to 1
    if place < shares.train:
        return "train"
    return "test" if place >= 1 - shares.test else "dev"


def prompt_of(row: Row) -> str:
    """What a row asks: of a conversation, all up to the first user's turn.

    Raises DataError for an Example without a prompt, whose columns only a template can make one of.
    """
    if isinstance(row, Document):
        return row.text
    if isinstance(row, Tagged):
        return " ".join(row.tokens)
    if not isinstance(row, Example):
        return _opening(row.messages if isinstance(row, Conversation) else row.prompt)
    if not row.prompt:
        raise DataError(f"{row.where} has several columns that could be its prompt; a template must say which.")
    return row.prompt


def split(
    rows: Sequence[Row],
    shares: Shares = Shares(),
    prompt: Callable[[Row], str] = prompt_of,
) -> Parts:
    """Every row in its part. `prompt` gives a row's prompt, say as its template renders it.

    Raises DataError when the shares are no shares, or a part with a share would be empty.
    """
    wanted = {"train": shares.train, "dev": shares.dev, "test": shares.test}
    if not all(0 <= share <= 1 for share in wanted.values()) or abs(sum(wanted.values()) - 1) > 1e-9:
        raise DataError(f"Shares of train, dev and test are {wanted}; each is from 0 to 1, and together they are 1.")
    found: dict[str, list[Row]] = {name: [] for name in wanted}
    for row in rows:
        found[part(prompt(row), shares)].append(row)
    for name, share in wanted.items():
        if share and not found[name]:
            prompts = len({plain(prompt(row)) for row in rows})
            raise DataError(
                f"{len(rows)} rows with {prompts} different prompts leave {name} (a share of {share:g}) empty; "
                f"give more rows, a larger share, a file of its own, or a share of 0."
            )
    return Parts(*(tuple(found[name]) for name in ("train", "dev", "test")))


def overlap(train: Iterable[Row], test: Iterable[Row], prompt: Callable[[Row], str] = prompt_of) -> tuple[str, ...]:
    """Prompts that occur in both, once each, in the order of `test`: what a model may have learned by heart."""
    learned = {plain(prompt(row)) for row in train}
    return tuple(dict.fromkeys(asked for row in test if (asked := plain(prompt(row))) in learned))


def _opening(messages: Sequence[Message]) -> str:
    first = next((index for index, message in enumerate(messages) if message.role == "user"), len(messages) - 1)
    return "\n".join(message.content for message in messages[: first + 1])
