"""How a row becomes text, and which part of the text the model must produce: the mask travels with the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from acclimate.data.examples import Conversation, Document, Example, Message
from acclimate.data.sandbox import compiled
from acclimate.errors import DataError


class Segment(NamedTuple):
    """A piece of text; `scored` says whether the loss counts it."""

    text: str
    scored: bool


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's own chat template and the special tokens it may name."""

    source: str
    tokens: Mapping[str, str]  # bos_token, eos_token, …

    def render(self, messages: Sequence[Message], *, reply: bool) -> str:
        """The conversation as the model was taught to read it; `reply` opens the assistant's next turn."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        values: dict[str, Any] = {**self.tokens, "messages": turns, "add_generation_prompt": reply}
        return compiled(self.source, strict=False)(
            {**values, "tools": None, "documents": None, "enable_thinking": False}
        )


@dataclass(frozen=True)
class Template:
    """A row's prompt, then its answer. Shots are rows with their answers, before it.

    prompt: Jinja over the row's columns. chat: the tokenizer's format, or None for plain text.
    end: what ends an answer, supervised like the answer (in a chat the format's own end of turn is used).
    words: a verbalizer (Schick & Schütze 2021, arXiv:2001.07676): what is said for a label, the first one in training.
    """

    prompt: str = "{{ prompt }}"
    system: str = ""
    chat: ChatFormat | None = None
    end: str = ""
    between: str = "\n\n"
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def spoken(self, label: str) -> tuple[str, ...]:
        """The words for a label: itself, unless the verbalizer has others."""
        return self.words.get(label, (label,))

    def question(self, example: Example) -> str:
        """The prompt's text, before any chat format."""
        if example.rendered:
            return example.prompt
        try:
            return compiled(self.prompt)({**example.fields, "prompt": example.prompt})
        except DataError as error:
            raise DataError(f"{example.where or 'this example'}: {error}") from None

    def __call__(
        self, example: Example, answer: str | None = None, shots: Sequence[Example] = ()
    ) -> tuple[Segment, ...]:
        """Segments of the whole row; without an `answer` (None: the prompt alone) only what the model is fed."""
        if self.chat is not None:
            return self._in_chat(example, answer, shots)
        shown = "".join(joined(self.question(shot), self.spoken(shot.target)[0]) + self.between for shot in shots)
        prompt = Segment(shown + self.question(example), False)
        return (
            (prompt,)
            if answer is None
            else (prompt, Segment(spaced(prompt.text, answer), True), Segment(self.end, True))
        )

    def _in_chat(self, example: Example, answer: str | None, shots: Sequence[Example]) -> tuple[Segment, ...]:
        turns = [Message("system", self.system)] if self.system else []
        for shot in shots:
            turns += [
                Message("user", self.question(shot)),
                Message("assistant", self.spoken(shot.target)[0], train=False),
            ]
        turns.append(Message("user", self.question(example)))
        if answer is not None:
            turns.append(Message("assistant", answer))
        assert self.chat is not None
        return dialogue(tuple(turns), self.chat, example.where, reply=answer is None)


def spaced(prompt: str, answer: str) -> str:
    """The answer as it continues the prompt: one space between two words, none where the prompt ends a line."""
    return answer if not (prompt and answer) or prompt[-1].isspace() or answer[0].isspace() else " " + answer


def joined(prompt: str, answer: str) -> str:
    """Prompt and answer as one text."""
    return prompt + spaced(prompt, answer)


def dialogue(messages: Sequence[Message], chat: ChatFormat, where: str, *, reply: bool = False) -> tuple[Segment, ...]:
    """A conversation in a chat format: every assistant turn that trains is scored, with its end of turn.

    What comes before an assistant's turn is exactly what the model is fed to write it. A format whose earlier text changes
    when a turn is added (it drops earlier reasoning, say) has no such text for every turn; only its last turn can train.
    """
    segments: list[Segment] = []
    done = ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = chat.render(messages[:index], reply=True)
        after = chat.render(messages[: index + 1], reply=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError(
                f"{where or 'conversation'} turn {index + 1}: this model's chat template rewrites earlier turns, so turn "
                f"{index + 1} has no fixed prompt; split the conversation so that each row ends with the turn to learn."
            )
        segments.append(Segment(before[len(done) :], False))
        segments += _turn(message, after[len(before) :], where, index)
        done = after
    if reply:
        segments.append(Segment(chat.render(messages, reply=True)[len(done) :], False))
    return tuple(s for s in segments if s.text)


def _turn(message: Message, text: str, where: str, index: int) -> list[Segment]:
    """The content, its end of turn (scored like it), and the line break that most formats put between turns (never scored).

    Some formats put a space before the content, or strip it; the model writes what stands there.
    """
    lead = text[: len(text) - len(text.lstrip())]
    content = next(
        (c for c in (message.content, lead + message.content, message.content.strip()) if text.startswith(c)), None
    )
    if content is None:
        content = lead + message.content.strip()
    if not text.startswith(content):
        raise DataError(
            f"{where or 'conversation'} turn {index + 1}: the chat template does not show this turn as it is written."
        )
    ending = text[len(content) :]
    close = ending.rstrip()
    return [Segment(content, message.train), Segment(close, message.train), Segment(ending[len(close) :], False)]


def segments(row: Example | Conversation | Document, template: Template) -> tuple[Segment, ...]:
    """A training row as segments."""
    if isinstance(row, Document):
        return (Segment(row.text, True), Segment(template.end, True))
    if isinstance(row, Conversation):
        if template.chat is None:
            raise DataError(
                f"{row.where or 'this row'} is a conversation, which needs a chat format; set task.chat to true."
            )
        return dialogue(row.messages, template.chat, row.where)
    return template(row, template.spoken(row.target)[0])
