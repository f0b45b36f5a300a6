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

    ids: (1, tokens) packed or (rows, time) padded. positions: like ids, counted within each document.
    mask: like ids, 1 = real; None when packed. lengths: of each document. source, source_mask: what an encoder reads.
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

    @property
    def packed(self) -> bool:
        """Whether the documents lie in one stream."""
        return self.mask is None

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(self.lengths) + (int(self.source_mask.sum()) if self.source_mask is not None else 0)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def pack(rows: Sequence[Encoded], numbers: Sequence[int] = ()) -> Batch:
    """One stream. The first id of a document is never scored: nothing comes before it.

    A long stream is rounded up by a document that nobody looks at: matrix libraries keep code and buffers for every
    shape they meet, so that lengths that never recur cost time at each step and memory for good.
    """
    lengths = tuple(len(row.ids) for row in rows)
    starts = [sum(lengths[:i]) for i in range(len(rows))]
    places = [
        (s + t - 1, row.ids[t], r) for r, (s, row) in enumerate(zip(starts, rows, strict=True)) for t in _scored(row)
    ]
    predict, targets, owner = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)
    ids = torch.tensor([i for row in rows for i in row.ids], dtype=torch.long)[None]
    filler = -sum(lengths) % ROUND if sum(lengths) > 2 * ROUND else 0
    ids = torch.cat([ids, ids[:, :1].expand(1, filler)], dim=1)
    positions = torch.cat([torch.arange(n) for n in (*lengths, filler)])[None]
    return Batch(ids, positions, None, lengths, predict, targets, owner, rows=tuple(numbers), filler=filler)


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
