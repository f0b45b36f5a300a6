"""Attention of a packed stream in bfloat16, compiled on the machine that uses it (flash.cpp), where it multiplies pairs.

Blocks of keys pass by blocks of queries, so that no scores are kept; the way back makes them again from what each query
added up to. Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4; Dao 2023, arXiv:2307.08691, eq. for the way back.
A document whose beginning others share is read with the keys of its ancestors in front of its own.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from acclimate.models import kernels
from acclimate.models.kernels import FLOAT, INT, POINTER, bound
from acclimate.tokens.tree import Piece

Heads = BFloat16[Tensor, "1 heads time d"]
Groups = BFloat16[Tensor, "1 groups time d"]
WIDTH = 64  # of which a head's size has to be a multiple
MORE = {"attention_forward": 2, "attention_backward": 6}  # tensors that each is given behind what both are


def there() -> bool:
    """Whether this processor multiplies pairs of bfloat16, and a compiler is at hand."""
    return _function("attention_forward") is not None


@cache
def _function(name: str) -> Any:
    return bound(name, *[POINTER] * 6, FLOAT, INT, INT, *[POINTER] * MORE[name])


def describe() -> str:
    """What was decided for this machine, in a line."""
    return f"bfloat16 compiled, for heads of {WIDTH}, {2 * WIDTH}, … numbers" if there() else "PyTorch's"


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels can: bfloat16 on the CPU, of heads as wide as they want them."""
    fits = all(x.dtype == torch.bfloat16 and x.is_cpu and x.shape[-1] == query.shape[-1] for x in (query, key, value))
    return fits and query.shape[-1] % WIDTH == 0 and there()


def attend(
    query: Heads, key: Groups, value: Groups, pieces: Sequence[Piece], causal: bool, scale: float
) -> BFloat16[Tensor, "1 time heads d"]:
    """Each piece sees itself, and the pieces that it follows; summed in float32, rounded where `flash.cpp` says so."""
    return _Attend.apply(query, key, value, tuple(pieces), causal, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], causal: bool, scale: float
    ) -> Tensor:
        """(1, time, heads, d); of every query the logarithm of what its scores add up to is kept."""
        asked = [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)]
        _, heads, time, d = query.shape
        output, total = query.new_empty(1, time, heads, d), query.new_empty(heads, time, dtype=torch.float32)
        _call("attention_forward", asked, pieces, causal, scale, [output, total])
        ctx.save_for_backward(*asked, output, total)
        ctx.how = pieces, causal, scale
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Of query, key and value; heads that share keys add up what they want of them."""
        *asked, output, total = ctx.saved_tensors
        _, heads, time, d = asked[0].shape
        groups = asked[1].shape[1]
        query = torch.empty_like(output)
        key, value = (output.new_zeros(heads, time, d, dtype=torch.float32) for _ in range(2))
        pieces, causal, scale = ctx.how
        more = [output, total, slopes[0].contiguous(), query, key, value]
        _call("attention_backward", asked, pieces, causal, scale, more)
        both = (x.view(groups, -1, time, d).sum(1).to(output.dtype)[None] for x in (key, value))
        return query.transpose(1, 2), *both, None, None, None


def _call(
    name: str, asked: Sequence[Tensor], pieces: Sequence[Piece], causal: bool, scale: float, more: Sequence[Tensor]
) -> None:
    query, key = asked[0], asked[1]
    if not kernels.content(query):
        return
    steps = torch.tensor([step for x in asked for step in (x.stride(2), x.stride(1))])
    where = torch.tensor(pieces)
    sizes = torch.tensor([len(pieces), query.shape[2], query.shape[1], key.shape[1], query.shape[3]])
    pointers = (x.data_ptr() for x in (*asked, steps, where, sizes))
    _function(name)(*pointers, scale, causal, torch.get_num_threads(), *(x.data_ptr() for x in more))
