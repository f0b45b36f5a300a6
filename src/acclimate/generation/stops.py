"""Strings that end a completion, found in its text while it is written.

Text is decoded a few tokens at a time. A character whose bytes are spread over several tokens is waited for, and a stop
string may begin in one token and end in another. The text ends where the first stop string to be complete begins, which
does not depend on how the text was cut into tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from acclimate.errors import InputError

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for bytes that are not (yet) a character


@dataclass(frozen=True)
class Stops:
    """The strings and the tokenizer's `decode` (ids → text)."""

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def __post_init__(self) -> None:
        """InputError for a string that would stop everything at once."""
        if "" in self.strings:
            raise InputError("A stop string is empty; leave it out, or name the text that ends a completion.")

    def begins(self, text: str) -> int:
        """Where the stop string that is complete first begins; the length of the text if there is none."""
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.strings if stop in text]
        return min(found)[1] if found else len(text)

    def text(self, ids: Sequence[int]) -> str:
        """The text of a completion, cut before the stop string that ended it."""
        whole = self.decode(ids)
        return whole[: self.begins(whole)]


@dataclass(frozen=True)
class Read:
    """The text of the ids so far. An id is decoded behind those of the last settled piece, so spaces come out right."""

    settled: str = ""  # cannot change any more
    pending: str = ""  # the rest; ends in an unfinished character
    tail: tuple[int, ...] = ()  # the ids of the last settled piece and all after it
    known: int = 0  # how many of `tail` are settled


def advance(read: Read, token: int, stops: Stops) -> Read:
    """The text with one more token."""
    tail = (*read.tail, token)
    fresh = stops.decode(tail)[len(stops.decode(tail[: read.known])) :]
    if not fresh or fresh.endswith(UNFINISHED):
        return Read(read.settled, fresh, tail, read.known)
    return Read(read.settled + fresh, "", tail[read.known :], len(tail) - read.known)


def stopped(read: Read, stops: Stops) -> bool:
    """Whether a stop string is complete in the text."""
    text = read.settled + read.pending.rstrip(UNFINISHED)
    return stops.begins(text) < len(text)


def pieces(ids: Iterable[int], stops: Stops) -> Iterator[str]:
    """The text of a stream of ids as it becomes certain: whole characters, and nothing that may turn out to be a stop.

    Joined, the pieces are `stops.text(ids)`.
    """
    read, sent = Read(), 0
    for token in ids:
        read = advance(read, token, stops)
        text = read.settled[: stops.begins(read.settled)]
        ready = len(text) - _held(text, stops.strings)
        if ready > sent:
            yield text[sent:ready]
            sent = ready
    text = read.settled + read.pending
    if rest := text[sent : stops.begins(text)]:
        yield rest


def _held(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    return max((n for stop in strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
