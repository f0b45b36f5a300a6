"""Rows of ids become tensors: one packed stream of documents, or a padded rectangle where a model cannot read a stream."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from acclimate.tokens.codec import Encoded
from acclimate.tokens.tree import Piece, tree

ROUND = 128  # ids by which the length of a long stream grows


@dataclass(frozen=True)
class Batch:
    """Documents side by side, and where the loss looks.

    What documents of a stream begin with may stand there once, before what is left of each: attention lets every one of
    them see it, so hidden states and gradients are those of the documents in full.

    ids: (1, tokens) packed or (rows, time) padded. positions: like ids, counted within each document.
    mask: like ids, 1 = real; None when packed. lengths: of each document in full.
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
    pieces: tuple[Piece, ...] = ()  # of a stream; behind the documents' own may stand one that only rounds its length
    leaves: tuple[int, ...] = ()  # the piece that each document ends in

    @property
    def packed(self) -> bool:
        """Whether the documents lie in one stream."""
        return self.mask is None

    @property
    def tokens(self) -> int:
        """Real tokens of the documents in full, padding not counted."""
        return sum(self.lengths) + (int(self.source_mask.sum()) if self.source_mask is not None else 0)

    @property
    def streamed(self) -> int:
        """Ids that a stream holds of its documents: what several begin with counts once."""
        return sum(piece.length for piece in self.pieces[: max(self.leaves) + 1])

    def place(self, row: int, t: int) -> int:
        """Where id t of a document lies in the flattened ids."""
        if not self.packed:
            return row * self.ids.shape[1] + t
        piece, end = self.pieces[self.leaves[row]], self.lengths[row]
        while t < end - piece.length:
            piece, end = self.pieces[piece.parent], end - piece.length
        return piece.start + t - (end - piece.length)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def pack(rows: Sequence[Encoded], numbers: Sequence[int] = (), least: int = 0) -> Batch:
    """One stream, in which what rows begin with, `least` ids or more, stands once. The first id of a document is never scored."""
    made = laid([row.ids for row in rows], numbers, least)
    return asked(made, [(r, t, row.ids[t], r) for r, row in enumerate(rows) for t in _scored(row)])


def laid(rows: Sequence[tuple[int, ...]], numbers: Sequence[int] = (), least: int = 0) -> Batch:
    """The ids of documents as one stream, in which nothing is scored yet.

    A long stream is rounded up by a document that nobody looks at: matrix libraries keep code and buffers for every
    shape they meet, so that lengths that never recur cost time at each step and memory for good.
    """
    found = tree(rows, least)
    filler = -len(found.ids) % ROUND if len(found.ids) > 2 * ROUND else 0
    pieces = (*found.pieces, Piece(len(found.ids), filler, -1)) if filler else found.pieces
    ids = torch.tensor([*found.ids, *found.ids[:1] * filler], dtype=torch.long)[None]
    positions = torch.cat([torch.arange(depth, depth + p.length) for p, depth in zip(pieces, _depths(pieces))])[None]
    lengths, none = tuple(map(len, rows)), torch.zeros(0, dtype=torch.long)
    made = Batch(ids, positions, None, lengths, none, none, none, rows=tuple(numbers))
    return replace(made, pieces=pieces, leaves=found.leaves)


def asked(batch: Batch, questions: Sequence[tuple[int, int, int, int]]) -> Batch:
    """The batch with other questions: (document, the place t in it, the id wanted there, its owner) each."""
    found = [(batch.place(row, t - 1), wanted, owner) for row, t, wanted, owner in questions]
    predict, targets, owners = torch.tensor(found, dtype=torch.long, device=batch.ids.device).reshape(-1, 3).unbind(1)
    return replace(batch, predict=predict, targets=targets, owner=owners)


def _depths(pieces: Sequence[Piece]) -> list[int]:
    """How many ids of its documents stand before each piece."""
    depths: list[int] = []
    for piece in pieces:
        depths.append(0 if piece.parent < 0 else depths[piece.parent] + pieces[piece.parent].length)
    return depths


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
