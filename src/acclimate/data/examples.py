"""What a user's file holds, and what a predictor answers: frozen types, no behaviour beyond reading themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `train` says whether the loss may count it (only an assistant's turn ever is)."""

    role: str  # system, user, assistant or tool
    content: str
    train: bool = True


@dataclass(frozen=True)
class Example:
    """One input and the answer wanted: a label or a text. `references` are further answers that are as good."""

    prompt: str
    target: str = ""
    references: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)  # the row as it was read: what a template may name
    where: str = ""  # file:line
    rendered: bool = False  # the prompt is whole: no template is laid over it

    @property
    def answers(self) -> tuple[str, ...]:
        """Every acceptable answer, the target first."""
        return self.references or (self.target,)


@dataclass(frozen=True)
class Conversation:
    """Turns in order; an optional system message first, then user, assistant and tool turns."""

    messages: tuple[Message, ...]
    where: str = ""


@dataclass(frozen=True)
class Document:
    """Running text, every token of which is learned."""

    text: str
    where: str = ""


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, of which people preferred `chosen`."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str = ""


@dataclass(frozen=True)
class Ranking:
    """Several completions of one prompt; `ranks[i]` is the place of `completions[i]`, 1 the best, ties equal."""

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    where: str = ""


@dataclass(frozen=True)
class Span:
    """`completion[start:end]` carries `kind` (an error type, say) and a score."""

    start: int
    end: int
    kind: str
    score: float = -1.0


@dataclass(frozen=True)
class Feedback:
    """What people said about parts of one completion."""

    prompt: tuple[Message, ...]
    completion: str
    spans: tuple[Span, ...]
    where: str = ""


@dataclass(frozen=True)
class Tagged:
    """Words with one tag each (BIO)."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    where: str = ""


Row = Example | Conversation | Document | Preference | Ranking | Feedback | Tagged


@dataclass(frozen=True)
class Output:
    """What a predictor answered to one example.

    text: the label chosen or the text written. scores: natural-log probability of each label, where labels were compared.
    value: the number answered, in regression. tags: one for each word, in tagging.
    logprob, tokens, bytes: sum of the natural-log probabilities of the reference text and its length, where text was scored.
    prompt_ids: the ids that were fed. truncated: how many prompt tokens had to be left out. finish: stop, length or "".
    shots: how many worked examples stood before the question. rationale: what was written on the way to the answer.
    """

    text: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    logprob: float = 0.0
    tokens: int = 0
    bytes: int = 0
    prompt_ids: tuple[int, ...] = ()
    truncated: int = 0
    finish: str = ""
    value: float = 0.0
    tags: tuple[str, ...] = ()
    shots: int = 0
    rationale: str = ""
