"""Attention of a packed stream on CUDA: all documents in one call of PyTorch's kernels for sequences of any lengths.

A piece that follows others is a sequence whose keys are theirs and its own, in order: more keys than queries, the last
query beside the last key. Keys that several pieces see are gathered once for each.
"""

import inspect
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from acclimate.models.kernels import content
from acclimate.tokens.tree import Piece

DTYPES = (torch.bfloat16, torch.float16)
WIDTH, WIDEST = 8, 256  # numbers of a head: of the first a multiple, the second at most
AHEAD, AROUND = (-1, 0), (-1, -1)  # windows: all that stands before a query and it; everything
ASKED = {"scale", "window_size", "enable_gqa"}  # of the kernels' options; before PyTorch 2.12 some have other names


class Layout(NamedTuple):
    """Where each piece's queries and keys begin, and the last ones end.

    queries, keys: (pieces + 1,). places: in the stream, of every key that is seen, piece by piece; None where every piece
    sees itself alone. most_queries, most_keys: of one piece.
    """

    queries: Int32[Tensor, " bounds"]
    keys: Int32[Tensor, " bounds"]
    places: Int[Tensor, " seen"] | None
    most_queries: int
    most_keys: int


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels can: 16 bits a number on a GPU that has them, of heads as wide as they want them."""
    if not all(x.is_cuda and x.dtype == query.dtype and x.shape[-1] == query.shape[-1] for x in (query, key, value)):
        return False
    fits = query.dtype in DTYPES and query.shape[-1] % WIDTH == 0 and query.shape[-1] <= WIDEST
    return fits and query.shape[1] % key.shape[1] == 0 and offered(query.device)


def describe() -> str:
    """What was decided for this machine's GPU, in a line."""
    return "all documents in one call, of 16 bits a number" if offered(torch.device("cuda")) else "piece by piece"


@cache
def offered(device: torch.device) -> bool:
    """Whether PyTorch has the kernels as they are asked here, and the GPU is one that they are for."""
    known = inspect.signature(varlen_attn).parameters.keys()
    return known >= ASKED and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def attend(
    query: Float[Tensor, "1 heads time d"],
    key: Float[Tensor, "1 groups time d"],
    value: Float[Tensor, "1 groups time d"],
    pieces: tuple[Piece, ...],
    causal: bool,
    scale: float,
) -> Float[Tensor, "1 time heads d"]:
    """Each piece sees itself, and the pieces that it follows."""
    found = (layout if content(query) else layout.__wrapped__)(pieces, query.device)
    asked, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    if found.places is not None:
        keys, values = (gathered(x, found.places) for x in (keys, values))
    output = varlen_attn(
        asked, keys, values, found.queries, found.keys, found.most_queries, found.most_keys,
        scale=scale, window_size=AHEAD if causal else AROUND, enable_gqa=asked.shape[1] != keys.shape[1],
    )  # fmt: skip
    assert isinstance(output, Tensor)
    return output[None]


@lru_cache(maxsize=4)
def layout(pieces: tuple[Piece, ...], device: torch.device) -> Layout:
    """Of these pieces, which lie side by side in a stream. Made once for all layers of a step.

    >>> found = layout((Piece(0, 2, -1), Piece(2, 1, 0), Piece(3, 3, 0)), torch.device("cpu"))
    >>> found.queries.tolist(), found.keys.tolist(), found.places.tolist()
    ([0, 2, 3, 6], [0, 2, 5, 10], [0, 1, 0, 1, 2, 0, 1, 3, 4, 5])
    """
    ways: list[tuple[Piece, ...]] = []
    for piece in pieces:
        ways.append((*(ways[piece.parent] if piece.parent >= 0 else ()), piece))
    own, seen = [piece.length for piece in pieces], [sum(piece.length for piece in way) for way in ways]
    places = None
    if own != seen:
        parts = [torch.arange(piece.start, piece.start + piece.length) for way in ways for piece in way]
        places = torch.cat(parts).to(device)
    queries, keys = (torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=device) for n in (own, seen))
    return Layout(queries, keys, places, max(own), max(seen))


def gathered(x: Float[Tensor, "time groups d"], index: Int[Tensor, " seen"]) -> Float[Tensor, "seen groups d"]:
    """The rows of `x` at `index`; what comes back to a row is added up in float32 at least, always in one order."""
    return _Gathered.apply(x, index)  # type: ignore[no-any-return, no-untyped-call]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        """(time, groups, d), (seen,) → (seen, groups, d)."""
        ctx.save_for_backward(index)
        ctx.time = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """Of x."""
        (index,), (slope,) = ctx.saved_tensors, slopes
        wide = slope.to(torch.promote_types(slope.dtype, torch.float32))
        total = wide.new_zeros(ctx.time, *slope.shape[1:])
        return total.index_put_((index,), wide, accumulate=True).to(slope.dtype), None
