"""A completion while it is written, and what ends it."""

from dataclasses import dataclass, field, replace

from acclimate.generation.stops import Read, Stops, advance, stopped


@dataclass(frozen=True)
class Generated:
    """One completion.

    ids: without the terminator; with the tokens of the stop string that ended it (`Stops.text` cuts the text).
    logprobs: natural log-probability of each id under the model's own distribution, whatever the sampler made of it.
    finish: stop (a terminator or a stop string) or length. end: the terminator that ended it, -1 without one.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    end: int = -1


@dataclass(frozen=True)
class Ends:
    """What ends a completion, in this order: a terminator, a stop string, its length in tokens."""

    terminators: frozenset[int]
    max_new: int
    stops: Stops | None = None


@dataclass(frozen=True)
class Draft:
    """What one row has written so far."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # of every token drawn: one longer than ids where a terminator ended it
    total: float = 0.0  # their sum
    finish: str = ""  # empty while the row goes on
    read: Read = field(default_factory=Read)
    end: int = -1

    @property
    def generated(self) -> Generated:
        """What is handed to the caller."""
        return Generated(self.ids, self.logprobs[: len(self.ids)], self.finish, self.end)

    def add(self, token: int, logprob: float, ends: Ends) -> "Draft":
        """The draft with one more token drawn."""
        drawn = replace(self, logprobs=(*self.logprobs, logprob), total=self.total + logprob)
        if token in ends.terminators:
            return replace(drawn, finish="stop", end=token)
        read = self.read if ends.stops is None else advance(self.read, token, ends.stops)
        full = "length" if len(drawn.logprobs) >= ends.max_new else ""
        hit = ends.stops is not None and stopped(read, ends.stops)
        return replace(drawn, ids=(*self.ids, token), read=read, finish="stop" if hit else full)
