"""Completions of one prompt that people compared, as rows that stay together in a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acclimate.data.examples import Example, Message, Preference, Ranking
from acclimate.data.template import Segment, Template, dialogue
from acclimate.errors import DataError
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Codec, Encoded, refuse_control_tokens
from acclimate.tokens.reading import Pool, Reading
from acclimate.tokens.truncate import Fitted, Policy, cut_prompt, fit_rows


class Compared(NamedTuple):
    """The completions of one prompt, each as a row with it. `ranks[i]` is the place of `rows[i]`, 1 the best, ties equal.

    other: the prompt with the completion of another one, for objectives that ask how far a policy moved at all.
    reference: Σ log p of the scored tokens of each row (then of `other`) under the reference, in nats, where it is known.
    bare: `rows` (then `other`) as the reference reads them, where an adapter's soft tokens stand in them.
    """

    rows: tuple[Encoded, ...]
    ranks: tuple[int, ...]
    where: str = ""
    other: Encoded | None = None
    reference: tuple[float, ...] = ()
    bare: tuple[Encoded, ...] = ()

    @property
    def every(self) -> tuple[Encoded, ...]:
        """The rows, then `other`."""
        return self.rows if self.other is None else (*self.rows, self.other)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids that are written, one row after the other."""
        return tuple(i for row in self.rows for i in row.ids)

    @property
    def scored(self) -> tuple[bool, ...]:
        """Which of them the loss counts."""
        return tuple(flag for row in self.rows for flag in row.scored)

    @property
    def source(self) -> tuple[int, ...]:
        """What an encoder reads: the prompt."""
        return self.rows[0].source

    @property
    def size(self) -> int:
        """Tokens of the rows in full."""
        return sum(row.size for row in self.rows)

    @property
    def truncated(self) -> int:
        """Tokens that had to be left out."""
        return sum(row.truncated for row in self.rows)


@dataclass(frozen=True)
class Pairs(Batch):
    """Documents that are compared. owner: (n,) the document of each scored place.

    group: (documents,) the prompt of each. ranks: (documents,) its place among the completions of that prompt.
    reference: (documents,) Σ log p under the reference, in nats; None where it was not asked.
    baseline: () KTO's reference point in nats, one for a whole step.
    """

    group: Tensor | None = None
    ranks: Tensor | None = None
    reference: Tensor | None = None
    baseline: Tensor | None = None


def paired(batch: Batch, rows: Sequence[Compared]) -> Pairs:
    """The batch of all documents of `rows`, in their order, with what is known of them."""
    device = batch.ids.device
    group = torch.tensor([g for g, row in enumerate(rows) for _ in row.rows], device=device)
    ranks = torch.tensor([rank for row in rows for rank in row.ranks], device=device)
    known = all(row.reference for row in rows)
    values = [value for row in rows for value in row.reference[: len(row.rows)]]
    reference = torch.tensor(values, dtype=torch.float64, device=device) if known else None
    return Pairs(**vars(batch), group=group, ranks=ranks, reference=reference)


def by_document(
    each: Float[Tensor, " n"], owner: Int[Tensor, " n"], documents: int
) -> tuple[Float[Tensor, " documents"], Float[Tensor, " documents"]]:
    """(n,) numbers of scored tokens → their sum in each document, and how many there are."""
    zeros = each.new_zeros(documents)
    return zeros.index_add(0, owner, each), zeros.index_add(0, owner, torch.ones_like(each))


def compared(row: Preference | Ranking, template: Template, codec: Codec) -> Compared:
    """The row as ids: each completion continues the prompt, scored with its end of turn; nothing follows that.

    DataError for a control token in a text, and for a completion of which nothing is left to score.
    """
    texts, ranks = ((row.chosen, row.rejected), (1, 2)) if isinstance(row, Preference) else (row.completions, row.ranks)
    for text in (*(message.content for message in row.prompt), *texts):
        refuse_control_tokens(codec, text, row.where)
    rows = tuple(_closed(codec.encode(answered(row.prompt, t, template, row.where), row.where)) for t in texts)
    if not all(any(each.scored if each.source else each.scored[1:]) for each in rows):
        raise DataError(f"{row.where} has a completion without a token that the loss would count; it is empty.")
    return Compared(rows, ranks, row.where)


def answered(prompt: Sequence[Message], completion: str, template: Template, where: str) -> tuple[Segment, ...]:
    """A prompt of one turn goes through the template, a longer one needs a chat format; the completion alone is scored."""
    if [message.role for message in prompt] == ["user"]:
        text = prompt[0].content
        return template(Example(text, completion, fields={"prompt": text}, where=where), completion)
    if template.chat is None:
        raise DataError(f"{where} has a prompt of several turns, which needs a chat format; set task.chat to true.")
    read = (Message(message.role, message.content, train=False) for message in prompt)
    return dialogue((*read, Message("assistant", completion)), template.chat, where)


def _closed(row: Encoded) -> Encoded:
    """Without what a format writes behind the end of the turn: it is fed by nobody, and a reward is read at the end."""
    end = max((t + 1 for t, counts in enumerate(row.scored) if counts), default=0)
    return row._replace(ids=row.ids[:end], scored=row.scored[:end])


def dressed(row: Compared, codec: Codec) -> Compared:
    """The row with an adapter's soft tokens in their places; the reference goes on without them."""
    other = None if row.other is None else codec.dressed(row.other)
    return row._replace(rows=tuple(map(codec.dressed, row.rows)), other=other, bare=row.bare or row.every)


def fit_pairs(rows: Sequence[Compared], limit: int, policy: Policy, keep: int = 0) -> tuple[list[Compared], Fitted]:
    """Every completion within `limit` ids, and what it cost. A prompt is cut alike for all its completions."""
    done, told = [], Fitted([], [], [])
    for row in rows:
        excess = max(0, max(len(each.ids) for each in row.rows) - limit) if policy == "truncate-prompt" else 0
        parts = [
            fit_rows([each], min(limit, len(each.ids) - excess) if excess else limit, policy, keep) for each in row.rows
        ]
        if not all(part.rows for part in parts):
            told.dropped.append(row.where)
            continue
        done.append(row._replace(rows=tuple(part.rows[0] for part in parts)))
        if any(part.cut for part in parts):
            told.cut.append(row.where)
    return done, told


def with_others(rows: Sequence[Compared], limit: int, keep: int) -> list[Compared]:
    """Each prompt with the first completion of the next one in the data; without, where there is none or it has no room."""
    return [row._replace(other=_other(row, rows[(i + 1) % len(rows)], limit, keep)) for i, row in enumerate(rows)]


def _other(row: Compared, following: Compared, limit: int, keep: int) -> Encoded | None:
    mine, theirs = row.rows[0], following.rows[0]
    if row.where == following.where:
        return None
    if mine.source:
        return theirs._replace(source=mine.source, where=row.where)
    start, end = mine.scored.index(True), theirs.scored.index(True)
    made = mine._replace(ids=mine.ids[:start] + theirs.ids[end:], scored=mine.scored[:start] + theirs.scored[end:])
    return made if len(made.ids) <= limit else cut_prompt(made, limit, keep)


def reading(row: Compared, pool: Pool, first: int) -> Reading:
    """The row as a reward head reads it: at its end, or at its `first` token where a text is pooled otherwise."""
    ids = tuple(each.ids for each in row.rows)
    places = tuple((len(each) - 1 if pool == "last" else first,) for each in ids)
    types = tuple((0,) * len(each) for each in ids)
    return Reading(ids, types, places, tuple(map(float, row.ranks)), row.where, row.truncated)
