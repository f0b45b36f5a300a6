"""Soft tokens: ids past the end of the vocabulary whose vectors are learned.

Masks, positions, the cache and packing then need no special case: whoever renders text puts the ids into it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.methods.delta import Delta, attach, switches
from acclimate.methods.switch import links


class Soft(NamedTuple):
    """The ids of an adapter's soft tokens: those before a prompt, and those after it."""

    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()


class SoftTokens(Delta):
    """Vectors (front + back, d_model) of the ids from `first` on."""

    def __init__(self, start: Float[Tensor, "n d"], first: int, back: int = 0) -> None:
        super().__init__()
        self.rows = nn.Parameter(start)
        self.first, self.back = first, back

    @property
    def soft(self) -> Soft:
        """The ids, in the order of the rows."""
        ids = tuple(range(self.first, self.first + len(self.rows)))
        return Soft(ids[: len(ids) - self.back], ids[len(ids) - self.back :])

    def forward(self, x: Int[Tensor, "*at"], y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        return placed(x, y, self.rows, self.first)


def placed(
    ids: Int[Tensor, "*at"], y: Float[Tensor, "*at d"], rows: Float[Tensor, "n d"], first: int
) -> Float[Tensor, "*at d"]:
    """`y`, with row i where the id is `first` + i."""
    place = ids - first
    ours = (place >= 0) & (place < len(rows))
    return torch.where(ours[..., None], rows[place.clamp(0, len(rows) - 1)].to(y.dtype), y)


def add_soft(embedding: nn.Module, start: Float[Tensor, "n d"], name: str, back: int = 0) -> int:
    """Put soft tokens with these vectors on the input embedding; returns the first of their ids.

    Raises ModelError where the embedding is no table of vectors.
    """
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"The input embedding is a {type(embedding).__name__}; soft tokens need a table of vectors.")
    taken = [link.soft for link in _all(embedding)]
    first = max([embedding.num_embeddings, *(1 + max(s.front + s.back) for s in taken)])
    attach(embedding, SoftTokens(start, first, back), name, source=embedding)
    return first


def _all(model: nn.Module) -> list[SoftTokens]:
    found = [link for switch in switches(model) for delta in switch.values() for link in links(delta)]
    return [link for link in found if isinstance(link, SoftTokens)]


def soft_of(model: nn.Module, name: str | None = None) -> Soft:
    """The soft tokens that must be fed when the adapter `name` (without one: whichever answers) is to be heard."""
    for switch in switches(model):
        wanted = name if name is not None else switch.active
        if isinstance(wanted, str) and wanted in switch:
            for link in links(switch[wanted]):
                if isinstance(link, SoftTokens):
                    return link.soft
    return Soft()
