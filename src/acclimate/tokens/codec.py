"""One tokenizer, one renderer: segments become ids and a mask, the same for training, evaluation, chat and serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from acclimate.data.template import ChatFormat, Segment
from acclimate.errors import DataError, ModelError

PLAIN_CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


class Encoded(NamedTuple):
    """One row of ids. `scored[i]` says whether the loss counts `ids[i]`. An encoder-decoder reads `source` and writes `ids`."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    source: tuple[int, ...] = ()
    where: str = ""
    truncated: int = 0  # tokens that had to be left out

    @property
    def size(self) -> int:
        """Tokens the model computes."""
        return len(self.ids) + len(self.source)


@dataclass(frozen=True)
class Codec:
    """A tokenizer's conventions, found out by asking it.

    prefix, suffix: what it puts around a text (BOS, or [CLS] … [SEP]). terminators: the ids that end an answer.
    reads: whether the model reads the prompt with an encoder of its own (T5, BART).
    """

    tokenizer: Any
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    terminators: frozenset[int]
    pad: int
    eos_text: str
    anchor: str  # text after which a continuation is spelled as inside a sentence; "" where none is needed
    reads: bool = False
    front: tuple[int, ...] = ()  # soft tokens of an adapter, before every row
    back: tuple[int, ...] = ()  # soft tokens between the prompt and the answer

    @property
    def kept(self) -> int:
        """Ids at the start of a row that no cut may take."""
        return len(self.front) + len(self.prefix)

    def plain(self, text: str) -> tuple[int, ...]:
        """The ids of a text, without special tokens around it."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()

    def continuation(self, text: str) -> tuple[int, ...]:
        """The ids of a text that follows another one: no space is put before it that it does not have."""
        if not self.anchor or not text:
            return self.plain(text)
        lead = self.plain(self.anchor)
        whole = self.plain(self.anchor + text)
        return whole[len(lead) :] if whole[: len(lead)] == lead else self.plain(text)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of `ids`; special tokens are left out unless asked for."""
        soft = {*self.front, *self.back}
        known = [i for i in ids if i not in soft]
        return str(self.tokenizer.decode(known, skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def chat(self) -> ChatFormat:
        """The tokenizer's chat template, or a plain one for a model that has none."""
        tokens = {k: v for k, v in self.tokenizer.special_tokens_map.items() if isinstance(v, str)}
        template = getattr(self.tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        return ChatFormat(template or PLAIN_CHAT, {**tokens, "eos_token": self.eos_text})

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer brings a chat template of its own."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, segments: Sequence[Segment], where: str = "") -> Encoded:
        """ids and mask. Each side of a boundary between unscored and scored text is spelled on its own."""
        runs = _runs(segments)
        if self.reads:
            return self.dressed(self._apart(runs, where))
        ids: list[int] = []
        scored: list[bool] = []
        for index, (text, counts) in enumerate(runs):
            piece = self.continuation(text) if index else self._first(text)
            ids += piece
            scored += [counts] * len(piece)
        return self.dressed(Encoded(tuple(ids), tuple(scored), where=where))

    def dressed(self, row: Encoded) -> Encoded:
        """The row with the soft tokens in their places; they make no further token count in the loss."""
        if not (self.front or self.back):
            return row
        if row.source or self.reads:
            return row._replace(source=self.front + row.source + self.back)
        end = row.scored.index(True) if True in row.scored else len(row.scored)
        scored = (False, *row.scored[1:])
        return row._replace(
            ids=self.front + row.ids[:end] + self.back + row.ids[end:],
            scored=(False,) * len(self.front) + scored[:end] + (False,) * len(self.back) + scored[end:],
        )

    def _first(self, text: str) -> tuple[int, ...]:
        """The start of a sequence: with the tokenizer's BOS exactly once, also where the text already has it."""
        ids = self.plain(text)
        return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def _apart(self, runs: Sequence[Segment], where: str) -> Encoded:
        source = "".join(text for text, counts in runs if not counts)
        ids = tuple(i for text, counts in runs if counts for i in self.plain(text))
        return Encoded(ids, (True,) * len(ids), self.prefix + self.plain(source) + self.suffix, where)


def _runs(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbours that are alike become one; spaces at the end of a prompt move to what is scored after it."""
    runs: list[Segment] = []
    for text, counts in segments:
        if runs and runs[-1].scored == counts:
            runs[-1] = Segment(runs[-1].text + text, counts)
        elif text:
            runs.append(Segment(text, counts))
    for i in range(1, len(runs)):
        kept = runs[i - 1].text.rstrip(" ")
        if runs[i].scored and not runs[i - 1].scored and kept:
            moved = runs[i - 1].text[len(kept) :]
            runs[i - 1], runs[i] = Segment(kept, False), Segment(moved + runs[i].text, True)
    return [run for run in runs if run.text]


def codec(tokenizer: Any, *, reads: bool = False, terminators: frozenset[int] = frozenset()) -> Codec:
    """Ask a Hugging Face tokenizer for its conventions."""
    bare = tokenizer.encode("x", add_special_tokens=False)
    dressed = tokenizer.encode("x", add_special_tokens=True)
    start = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), 0)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else getattr(tokenizer, "sep_token_id", None)
    if eos is None:
        raise ModelError("This tokenizer has no end-of-text token, so nothing could learn to stop; set eos_token.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    return Codec(
        tokenizer=tokenizer,
        prefix=tuple(dressed[:start]),
        suffix=tuple(dressed[start + len(bare) :]),
        terminators=terminators | {int(eos)},
        pad=int(pad),
        eos_text=str(tokenizer.convert_ids_to_tokens(int(eos))),
        anchor=_anchor(tokenizer),
        reads=reads,
    )


def _anchor(tokenizer: Any) -> str:
    """Sentencepiece tokenizers put a space before every text; after an anchor they do not."""
    alone = tokenizer.encode("x", add_special_tokens=False)
    for anchor in ("\n", "=", ":"):
        lead = tokenizer.encode(anchor, add_special_tokens=False)
        both = tokenizer.encode(anchor + "x", add_special_tokens=False)
        if both[: len(lead)] == lead:
            return "" if both[len(lead) :] == alone else anchor
    return ""


def refuse_control_tokens(codec: Codec, text: str, where: str) -> None:
    """A user's text must not hold the tokens that end a turn: the model would read them as commands."""
    if token := control_token(codec, text):
        raise DataError(f"{where} contains the control token {token!r}, which would end or open a turn; take it out.")


def control_token(codec: Codec, text: str) -> str:
    """The first of the tokenizer's special tokens that a text spells out; "" where it holds none."""
    return next((token for token in codec.tokenizer.all_special_tokens if token and token in text), "")
