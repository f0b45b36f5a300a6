"""What a model with a task head reads, and where its head looks: ids without an answer to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from acclimate.data.examples import Example, Tagged
from acclimate.data.template import Template
from acclimate.errors import DataError, ModelError, unknown
from acclimate.tokens.batch import Batch, laid, rectangle
from acclimate.tokens.codec import Codec, refuse_control_tokens

Kind = Literal["classify", "regress", "choose", "tag", "extract"]
Pool = Literal["pooler", "first", "mean", "last"]


@dataclass(frozen=True)
class Shape:
    """What a task head answers, and how a text becomes the one vector that it looks at (`tag` and `extract`: every token).

    pooler is the first token through the dense layer that the encoder brings for it; last is the last real token.
    """

    kind: Kind
    labels: tuple[str, ...] = ()  # of classify and tag
    pool: Pool = "first"
    center: float = 0.0  # regress: the number answered is center + scale · output
    scale: float = 1.0
    empty: bool = False  # extract: that there is no answer is an answer too (SQuAD 2.0)

    @property
    def width(self) -> int:
        """Numbers that the head gives for each vector: a logit a label, a start and an end, or one."""
        return len(self.labels) or (2 if self.kind == "extract" else 1)

    @property
    def whole(self) -> bool:
        """Whether a text is one vector."""
        return self.kind not in ("tag", "extract")


class Reading(NamedTuple):
    """One row as it is read: a sequence of ids, or several that are compared (the choices of a question).

    types: the token type of each id. places: the tokens of each sequence that the head looks at.
    targets: a label of each row or word, a number, or places of this row counted from 0 (the right choice; start, end).
    spans: the characters of the context that each place covers, in extraction.
    """

    pieces: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]
    targets: tuple[float, ...] = ()
    where: str = ""
    truncated: int = 0  # tokens that had to be left out
    spans: tuple[tuple[int, int], ...] = ()
    source: tuple[int, ...] = ()  # nothing: what is read stands in ids

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids, one sequence after the other."""
        return tuple(i for piece in self.pieces for i in piece)

    @property
    def scored(self) -> tuple[bool, ...]:
        """Which of the ids the head looks at."""
        return tuple(
            t in at for piece, at in zip(self.pieces, map(set, self.places), strict=True) for t in range(len(piece))
        )

    @property
    def size(self) -> int:
        """Tokens the model computes."""
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class Sheet(Batch):
    """A batch for a task head: a stream, or a padded rectangle.

    predict: (n,) flat places that the head looks at. owner: (n,) the row of each. starts: (rows,) the first n of each row.
    targets: (rows,) labels, numbers or the right choice, (rows, 2) start and end counted from `starts`, or (n,) tags.
    types: like ids; None for a stream in which beginnings are shared. task: the head that is asked.
    """

    types: Tensor | None = None
    starts: Tensor | None = None
    task: str = "default"


def sheet(
    rows: Sequence[Reading], shape: Shape, fill: int, numbers: Sequence[int] = (), task: str = "default"
) -> Sheet:
    """`rows` as one rectangle, padded on the right. The mask comes from lengths, never from the ids."""
    pieces = [(r, piece, at) for r, row in enumerate(rows) for piece, at in zip(row.pieces, row.places, strict=True)]
    ids, mask = rectangle([piece for _, piece, _ in pieces], fill)
    types, _ = rectangle([kinds for row in rows for kinds in row.types], 0)
    lengths, none = tuple(len(piece) for _, piece, _ in pieces), torch.zeros(0, dtype=torch.long)
    positions = torch.arange(ids.shape[1]).expand(len(pieces), -1)
    return _looking(
        Batch(ids, positions, mask, lengths, none, none, none, rows=tuple(numbers)), rows, shape, task, types
    )


def stream(
    rows: Sequence[Reading], shape: Shape, numbers: Sequence[int] = (), least: int = 0, task: str = "default"
) -> Sheet:
    """`rows` as one stream, in which what sequences begin with, `least` ids or more, stands once."""
    made = laid([piece for row in rows for piece in row.pieces], numbers, least)
    kinds = [kind for row in rows for piece in row.types for kind in piece]
    kinds += [0] * (made.ids.numel() - len(kinds))
    return _looking(made, rows, shape, task, None if least else torch.tensor(kinds)[None])


def _looking(batch: Batch, rows: Sequence[Reading], shape: Shape, task: str, types: Tensor | None) -> Sheet:
    """The batch with what the head looks at and what is wanted there."""
    at = [(r, t) for r, row in enumerate(rows) for t in row.places]
    found = [(batch.place(p, t), r) for p, (r, places) in enumerate(at) for t in places]
    predict, owner = torch.tensor(found, dtype=torch.long).reshape(-1, 2).unbind(1)
    counts = torch.tensor([sum(map(len, row.places)) for row in rows])
    looking = {"predict": predict, "targets": _targets(rows, shape), "owner": owner}
    return Sheet(**{**vars(batch), **looking}, types=types, starts=counts.cumsum(0) - counts, task=task)


def _targets(rows: Sequence[Reading], shape: Shape) -> Tensor:
    if shape.kind == "extract":
        return torch.tensor([row.targets for row in rows], dtype=torch.long)
    dtype = torch.float64 if shape.kind == "regress" else torch.long
    return torch.tensor([target for row in rows for target in row.targets], dtype=dtype)


class Frame(NamedTuple):
    """What a tokenizer puts before, between and after two texts, and the token type of the second."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    second: int

    def around(self, first: Sequence[int], second: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(ids, types) of two texts."""
        opening = (*self.before, *first, *self.between)
        closing = (*second, *self.after)
        return (*opening, *closing), (0,) * len(opening) + (self.second,) * len(closing)


def frame(codec: Codec) -> Frame:
    """Ask the tokenizer how it joins two texts; one without a mark after a text (a decoder's) joins them by a line."""
    if not codec.suffix:
        return Frame(codec.prefix, codec.plain("\n"), (), 0)
    tokenizer: Any = codec.tokenizer
    bare = tokenizer.encode("x", add_special_tokens=False)
    asked = tokenizer("x", "x", return_token_type_ids=True)
    ids, types = asked["input_ids"], asked["token_type_ids"]
    found = [i for i in range(len(ids)) if ids[i : i + len(bare)] == bare]
    first, last = found[0] + len(bare), found[-1] + len(bare)
    return Frame(tuple(ids[: found[0]]), tuple(ids[first : found[-1]]), tuple(ids[last:]), int(types[found[-1]]))


@dataclass(frozen=True)
class Reader:
    """Rows to what a task head reads, in at most `limit` tokens.

    columns: the two whose texts are joined as the tokenizer joins two; none: the template's text is read.
    What does not fit is left out and counted: the end of the longer text (Devlin et al. 2018's code), of a decoder, which
    looks at the last token, the beginning; the words at the end; a long context is read in windows that overlap by half.
    """

    codec: Codec
    template: Template
    shape: Shape
    columns: tuple[str, ...]
    limit: int

    def __call__(self, row: Example | Tagged, answered: bool = True) -> list[Reading]:
        """One reading, or in extraction one a window; with its targets where it is `answered`."""
        for text in texts_of(row):
            refuse_control_tokens(self.codec, text, row.where)
        if isinstance(row, Tagged):
            return [self._words(row, answered)]
        if self.shape.kind == "extract":
            return self._windows(row, answered)
        texts = [self._text(row)] if self.shape.kind != "choose" else [(self._text(row)[0], c) for c in choices(row)]
        cut = [self._cut(text) for text in texts]
        targets = (self._target(row),) if answered else ()
        at = tuple((len(ids) - 1 if self.shape.pool == "last" else len(self.codec.front),) for ids, _, _ in cut)
        ids, types = tuple(ids for ids, _, _ in cut), tuple(kinds for _, kinds, _ in cut)
        return [Reading(ids, types, at, targets, row.where, sum(left for *_, left in cut))]

    def _text(self, row: Example) -> tuple[str, ...]:
        if self.columns:
            return tuple(str(row.fields[name]) for name in self.columns)
        return (self.template.question(row),)

    def _target(self, row: Example) -> float:
        if self.shape.kind == "regress":
            return (float(row.target) - self.shape.center) / self.shape.scale
        offered = self.shape.labels or choices(row)
        if row.target not in offered:
            raise DataError(f"{row.where}: " + unknown("label", row.target, offered))
        return offered.index(row.target)

    def _cut(self, texts: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(ids, types, tokens left out) of one text or of two."""
        codec, parts = self.codec, [list(self.codec.plain(text)) for text in texts]
        joint = frame(codec)
        around = codec.kept + len(codec.suffix) if len(parts) == 1 else len(codec.front) + len(sum(joint[:3], ()))
        excess = max(0, sum(map(len, parts)) - (self.limit - around - len(codec.back)))
        for _ in range(excess):
            longest = max(parts, key=len)
            del longest[-1 if codec.suffix else 0]
        if len(parts) == 2:
            ids, types = joint.around(*parts)
        else:
            ids = (*codec.prefix, *parts[0], *codec.suffix)
            types = (0,) * len(ids)
        return self._dressed(ids), self._dressed(types, typed=True), excess

    def _dressed(self, ids: tuple[int, ...], typed: bool = False) -> tuple[int, ...]:
        """With the soft tokens of an adapter around; their type is the first."""
        front, back = self.codec.front, self.codec.back
        return (0,) * len(front) + ids + (0,) * len(back) if typed else front + ids + back

    def _words(self, row: Tagged, answered: bool) -> Reading:
        """The words with a space between; the head looks at the first token of each that leaves one (Devlin 2018, 5.3)."""
        codec = self.codec
        ids, offsets = spelled(codec, " ".join(row.tokens), row.where)
        room = self.limit - codec.kept - len(codec.suffix) - len(codec.back)
        firsts = first_tokens(row.tokens, offsets[:room])
        if not firsts:
            raise DataError(f"{row.where} has no word that the tokenizer knows.")
        body = self._dressed((*codec.prefix, *ids[:room], *codec.suffix))
        known = {label: i for i, label in enumerate(self.shape.labels)}
        targets = [row.tags[w] for w in firsts] if answered else []
        if strange := next((tag for tag in targets if tag not in known), None):
            raise DataError(f"{row.where}: " + unknown("tag", strange, known))
        return Reading(
            (body,), ((0,) * len(body),), (tuple(codec.kept + t for t in firsts.values()),),
            tuple(known[tag] for tag in targets), row.where, max(0, len(ids) - room), tuple((w, w + 1) for w in firsts),
        )  # fmt: skip

    def _windows(self, row: Example, answered: bool) -> list[Reading]:
        """Question and context. The first place is no answer: what a window without the answer is taught to say."""
        question, context = str(row.fields["question"]), str(row.fields["context"])
        codec, joint = self.codec, frame(self.codec)
        asked = codec.plain(question)[: self.limit // 2]
        ids, offsets = spelled(codec, context, row.where)
        joint = joint._replace(after=joint.after or codec.plain("\n"))
        before = len(codec.front) + len(joint.before) + len(asked) + len(joint.between)
        room = self.limit - before - len(joint.after) - len(codec.back)
        wanted = answer_span(row, context) if answered else (0, 0)
        cut = len(codec.plain(question)) - len(asked)
        found = []
        for start in range(0, max(1, len(ids) - room // 2), max(1, room // 2)):
            piece, types = (
                self._dressed(x, typed=i == 1) for i, x in enumerate(joint.around(asked, ids[start : start + room]))
            )
            spans = ((0, 0), *offsets[start : start + room])
            empty = len(codec.front) if codec.suffix else len(piece) - len(codec.back) - 1
            places = (empty, *range(before, before + len(spans) - 1))
            targets = tokens_of(wanted, spans) if answered else ()
            found.append(Reading((piece,), (types,), (places,), targets, row.where, cut, spans))
        return found


def choices(row: Example) -> tuple[str, ...]:
    """The answers a question offers. Raises DataError where it brings none."""
    offered = row.fields.get("choices")
    if not isinstance(offered, list | tuple) or len(offered) < 2:
        raise DataError(f"{row.where} offers no choices; multiple choice needs two or more in its column `choices`.")
    return tuple(map(str, offered))


def spelled(codec: Codec, text: str, where: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """(ids, characters of each) of a text without special tokens."""
    if not codec.tokenizer.is_fast:
        raise ModelError(
            f"{where}: {type(codec.tokenizer).__name__} does not say which characters a token covers, which tagging and "
            "extraction need; use a model with a tokenizer.json."
        )
    made = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return tuple(made["input_ids"]), tuple((int(a), int(b)) for a, b in made["offset_mapping"])


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Word → its first token, for words joined by one space; a word that leaves no token is absent.

    >>> first_tokens(["New", "York"], [(0, 3), (4, 6), (6, 8)])
    {0: 0, 1: 1}
    """
    found: dict[int, int] = {}
    token = begin = 0
    for index, word in enumerate(words):
        end = begin + len(word)
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        if token < len(offsets) and offsets[token][0] < end:
            found[index] = token
        begin = end + 1
    return found


def answer_span(row: Example, context: str) -> tuple[int, int]:
    """The characters of the answer in its context: where the row says, else where it first occurs; (0, 0) for none."""
    if not row.target:
        return 0, 0
    said = row.fields.get("answers")  # (first character, text) each
    start = next((place for place, text in said if text == row.target), -1) if isinstance(said, tuple) else -1
    start = start if start >= 0 else context.find(row.target)
    if start < 0:
        raise DataError(
            f"{row.where}: the answer {row.target[:40]!r} does not occur in its context; extraction copies it."
        )
    return start, start + len(row.target)


def tokens_of(wanted: tuple[int, int], spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last place whose characters overlap those wanted, if all of them are there; otherwise (0, 0).

    >>> tokens_of((4, 8), [(0, 0), (0, 3), (4, 6), (6, 8)]), tokens_of((4, 8), [(0, 0), (0, 3), (4, 6)])
    ((2, 3), (0, 0))
    """
    start, end = wanted
    inside = [p for p, (a, b) in enumerate(spans) if p and a < end and b > start]
    if not inside or spans[inside[0]][0] > start or spans[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def texts_of(row: Example | Tagged) -> list[str]:
    """Every text of a row that a user wrote."""
    if isinstance(row, Tagged):
        return list(row.tokens)
    return [str(value) for value in row.fields.values() if isinstance(value, str)] + [row.prompt]
