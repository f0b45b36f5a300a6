"""Rows of ids become tensors: one packed stream of documents, or a padded rectangle where a model cannot read a stream."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from acclimate.tokens.codec import Encoded

ROUND = 128  # ids by which the length of a long stream grows


@dataclass(frozen=True)
class Batch:
    """Documents side by side, and where the loss looks.

    What all documents of a stream begin with may stand there once, before what is left of each: attention lets every
    document see it, so hidden states and gradients are those of the documents in full.

    ids: (1, tokens) packed or (rows, time) padded. positions: like ids, counted within each document.
    mask: like ids, 1 = real; None when packed. lengths: of each document, without what is shared.
    source, source_mask: what an encoder reads.
    predict: (n,) flat places in ids whose output is scored. targets: (n,) the id wanted there. owner: (n,) the row of each.
    rows: the numbers of the rows in the data, for diagnosis.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    lengths: tuple[int, ...]
    predict: Tensor
    targets: Tensor
    owner: Tensor
    source: Tensor | None = None
    source_mask: Tensor | None = None
    rows: tuple[int, ...] = ()
    hidden: Tensor | None = None  # (n, d): what a frozen trunk answered at `predict`, where it is known already
    filler: int = 0  # ids behind the last document of a stream that only round its length
    shared: int = 0  # ids at the start of a stream that all documents begin with

    @property
    def packed(self) -> bool:
        """Whether the documents lie in one stream."""
        return self.mask is None

    @property
    def tokens(self) -> int:
        """Real tokens of the documents in full, padding not counted."""
        own = sum(self.lengths) + self.shared * len(self.lengths)
        return own + (int(self.source_mask.sum()) if self.source_mask is not None else 0)

    def place(self, row: int, t: int) -> int:
        """Where id t of a document lies in the flattened ids."""
        if not self.packed:
            return row * self.ids.shape[1] + t
        return t if t < self.shared else sum(self.lengths[:row]) + t

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def common(rows: Sequence[Encoded]) -> int:
    """How many ids all rows begin with; every row has one more at least.

    >>> common([Encoded((5, 6, 7), ()), Encoded((5, 6, 8, 9), ())]), common([Encoded((5, 6), ()), Encoded((5, 6), ())])
    (2, 1)
    """
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)  # what these share, all in between do
    most = min(len(row.ids) for row in rows) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def pack(rows: Sequence[Encoded], numbers: Sequence[int] = (), shared: int = 0) -> Batch:
    """One stream, with the first `shared` ids of all documents once. The first id of a document is never scored.

    A long stream is rounded up by a document that nobody looks at: matrix libraries keep code and buffers for every
    shape they meet, so that lengths that never recur cost time at each step and memory for good.
    """
    lengths = tuple(len(row.ids) - shared for row in rows)
    starts = [sum(lengths[:i]) for i in range(len(rows))]
    places = [
        (t - 1 if t <= shared else s + t - 1, row.ids[t], r)
        for r, (s, row) in enumerate(zip(starts, rows, strict=True))
        for t in _scored(row)
    ]
    predict, targets, owner = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)
    ids = torch.tensor([*rows[0].ids[:shared], *(i for row in rows for i in row.ids[shared:])], dtype=torch.long)[None]
    filler = -ids.shape[1] % ROUND if ids.shape[1] > 2 * ROUND else 0
    ids = torch.cat([ids, ids[:, :1].expand(1, filler)], dim=1)
    counted = [torch.arange(shared), *(torch.arange(shared, shared + n) for n in (*lengths, filler))]
    positions = torch.cat(counted)[None]
    return Batch(
        ids, positions, None, lengths, predict, targets, owner, rows=tuple(numbers), filler=filler, shared=shared
    )


def _scored(row: Encoded) -> list[int]:
    return [t for t, counts in enumerate(row.scored) if counts and t]


def pad(rows: Sequence[Encoded], fill: int, numbers: Sequence[int] = ()) -> Batch:
    """A rectangle, padded on the right. The mask comes from lengths, never from the ids."""
    lengths = tuple(len(row.ids) for row in rows)
    width = max(lengths)
    places = [(r * width + t - 1, row.ids[t], r) for r, row in enumerate(rows) for t in _scored(row)]
    predict, targets, owner = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)
    ids, mask = rectangle([row.ids for row in rows], fill)
    positions = torch.arange(width).expand(len(rows), -1)
    return Batch(ids, positions, mask, lengths, predict, targets, owner, rows=tuple(numbers))


def pad_pairs(rows: Sequence[Encoded], fill: int, start: int, numbers: Sequence[int] = ()) -> Batch:
    """For an encoder-decoder: what is read, and what is written shifted right behind `start`, so that every id is scored."""
    lengths = tuple(len(row.ids) for row in rows)
    shifted, mask = rectangle([(start, *row.ids[:-1]) for row in rows], fill)
    width = shifted.shape[1]
    places = [
        (r * width + t, row.ids[t], r) for r, row in enumerate(rows) for t, counts in enumerate(row.scored) if counts
    ]
    predict, targets, owner = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)
    source, source_mask = rectangle([row.source for row in rows], fill)
    positions = torch.arange(width).expand(len(rows), -1)
    return Batch(shifted, positions, mask, lengths, predict, targets, owner, source, source_mask, tuple(numbers))


def rectangle(
    rows: Sequence[Sequence[int]], fill: int, *, left: bool = False
) -> tuple[Int[Tensor, "rows time"], Int[Tensor, "rows time"]]:
    """(rows, time) ids and mask, padded on the right or on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for r, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[r, place] = torch.tensor(row, dtype=torch.long)
        mask[r, place] = 1
    return ids, mask
