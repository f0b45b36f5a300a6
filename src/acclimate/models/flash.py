"""Attention of a packed stream, compiled on the machine that uses it (flash_float32.cpp, flash_bfloat16.cpp).

Blocks of keys pass by blocks of queries, so that no scores are kept; the way back makes them again from what each query
added up to. Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4; Dao 2023, arXiv:2307.08691, eq. for the way back.
A document whose beginning others share is read with the keys of its ancestors in front of its own.
"""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.models import kernels
from acclimate.models.kernels import FLOAT, INT, POINTER, for_dtype
from acclimate.tokens.tree import Piece

Heads = Float[Tensor, "1 heads time d"]
Groups = Float[Tensor, "1 groups time d"]
WIDTHS = {torch.float32: 16, torch.bfloat16: 64}  # of which a head's size has to be a multiple
MORE = {"attention_forward": 2, "attention_backward": 6}  # tensors that each is given behind what both are


@cache
def built(dtype: torch.dtype) -> bool:
    """Whether there are kernels: a compiler, and for bfloat16 a processor that multiplies pairs of it."""
    return _function("attention_forward", dtype) is not None


@cache
def there(dtype: torch.dtype) -> bool:
    """Whether a trial found them faster than PyTorch's on this machine."""
    name = f"attention_{str(dtype).removeprefix('torch.')}"
    return built(dtype) and bool(kernels.kept(name, lambda: _tried(dtype)))


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return for_dtype(name, dtype, *[POINTER] * 6, FLOAT, INT, INT, *[POINTER] * MORE[name])


def _tried(dtype: torch.dtype) -> int:
    """Forth and back through four documents of 128 tokens, with all threads and by the clock on the wall."""
    pieces = tuple(Piece(start, 128, -1) for start in range(0, 512, 128))
    drawn = torch.linspace(-1, 1, 512 * 8 * 64).sin().reshape(1, 512, 8, 64).to(dtype).transpose(1, 2)
    query, key, value = (part.detach().requires_grad_() for part in torch.split(drawn, [4, 2, 2], dim=1))

    def plain() -> None:
        for q, k, v in zip(*(torch.split(x, 128, dim=2) for x in (query, key, value)), strict=True):
            attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            attended.sum().backward()  # type: ignore[no-untyped-call]

    def fast() -> None:
        attend(query, key, value, pieces, True, 0.125).sum().backward()  # type: ignore[no-untyped-call]

    first, second = kernels.fastest(plain, fast, clock=time.perf_counter, seconds=0.3)
    return int(kernels.WORTH * second < first)


def describe() -> str:
    """What was decided for this machine, in a line."""
    said = {dtype: f"compiled for heads of {width}, {2 * width}, …" for dtype, width in WIDTHS.items()}
    chosen = {str(dtype).removeprefix("torch."): told if there(dtype) else "PyTorch's" for dtype, told in said.items()}
    return "; ".join(f"{name} {told}" for name, told in chosen.items())


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels can: of one dtype that they are chosen for, on the CPU, of heads as wide as they want them."""
    dtype, width = query.dtype, query.shape[-1]
    fits = all(x.dtype == dtype and x.is_cpu and x.shape[-1] == width for x in (query, key, value))
    return fits and dtype in WIDTHS and width % WIDTHS[dtype] == 0 and there(dtype)


def attend(
    query: Heads, key: Groups, value: Groups, pieces: Sequence[Piece], causal: bool, scale: float
) -> Float[Tensor, "1 time heads d"]:
    """Each piece sees itself, and the pieces that it follows; summed in float32, bfloat16 rounded where its file says so."""
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
    _function(name, query.dtype)(*pointers, scale, causal, torch.get_num_threads(), *(x.data_ptr() for x in more))
