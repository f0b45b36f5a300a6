"""NF4: weights of four bits a number, and the linear layer that multiplies by them. Dettmers et al. 2023, arXiv:2305.14314.

A weight is LEVELS[code] · constant of its block of 64. With double quantisation a constant is mean + DYNAMIC[byte] · scale
of its block of 256: 4 + 8/64 + 32/(64 · 256) = 4.127 bits a number; 4 + 32/64 = 4.5 without.
The paper's bytes are FP8. Here they are the 256 steps that its authors' bitsandbytes uses, so both hold the same bits.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from acclimate.errors import ModelError

BLOCK, CONSTANTS = 64, 256  # numbers that share a constant, constants that share a scale

# Appendix E: the quantiles of a normal weight that split [−1, 1] evenly, with 0 among them.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def _dynamic() -> Float[Tensor, "256"]:
    """Dynamic tree quantisation, Dettmers 2016, arXiv:1511.04561: decade 10^(i−6) holds 2^i steps of either sign."""
    edges = [torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32) for i in range(7)]
    steps = torch.cat([10.0 ** (i - 6) * ((edge[:-1] + edge[1:]) / 2) for i, edge in enumerate(edges)])
    return torch.cat([steps, -steps, torch.tensor([0.0, 1.0], dtype=torch.float32)]).sort().values


_LEVELS, _STEPS = torch.tensor(LEVELS, dtype=torch.float32), _dynamic()
_PAIRS = torch.cartesian_prod(_LEVELS, _LEVELS)  # the two levels that each byte means


class Packed(NamedTuple):
    """n numbers in NF4.

    codes: ⌈n/2⌉ bytes, two levels a byte, the first in the high half. constants: ⌈n/64⌉ bytes, or float32 without double
    quantisation, where scales (⌈n/16384⌉, float32) and mean (float32) are absent.
    """

    codes: UInt8[Tensor, " half"]
    constants: Tensor
    scales: Float[Tensor, " groups"] | None
    mean: Float[Tensor, ""] | None


def quantise(weight: Float[Tensor, "..."], double: bool = True) -> Packed:
    """`weight`, read row by row, to the nearest level of each block; the last block may be short.

    Raises ModelError for a weight that holds NaN or infinity.
    """
    wide = weight.detach().float().flatten()
    codes, largest = _nearest(wide, BLOCK, _LEVELS)
    if not bool(largest.isfinite().all()):
        raise ModelError("A weight holds NaN or infinity, which no level of NF4 is near to.")
    codes = nn.functional.pad(codes, (0, len(codes) % 2))
    packed = codes[::2] << 4 | codes[1::2]
    if not double:
        return Packed(packed, largest, None, None)
    mean = largest.mean()
    return Packed(packed, *_nearest(largest - mean, CONSTANTS, _STEPS), mean)


def dequantise(packed: Packed, shape: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """The numbers in `shape`: computed in float32, rounded to `dtype` once."""
    pairs = _PAIRS.to(packed.codes.device).index_select(0, packed.codes.int())
    return _scaled(pairs.flatten()[: prod(shape)], BLOCK, _constants(packed)).view(shape).to(dtype)


def _constants(packed: Packed) -> Float[Tensor, " blocks"]:
    if packed.scales is None or packed.mean is None:
        return packed.constants
    steps = _STEPS.to(packed.constants.device)[packed.constants.int()]
    return _scaled(steps, CONSTANTS, packed.scales) + packed.mean


def _nearest(
    values: Float[Tensor, " n"], size: int, levels: Float[Tensor, " levels"]
) -> tuple[UInt8[Tensor, " n"], Float[Tensor, " blocks"]]:
    """The nearest level of each value over the largest magnitude of its block (the lower of two), and those magnitudes."""
    blocks = _blocks(values, size)
    largest = blocks.abs().amax(1)
    table = levels.to(values.device)
    tiny = torch.finfo(torch.float32).tiny
    codes = torch.bucketize(blocks / largest.clamp(min=tiny)[:, None], (table[:-1] + table[1:]) / 2, out_int32=True)
    return codes.to(torch.uint8).flatten()[: len(values)], largest


def _scaled(values: Float[Tensor, " n"], size: int, by: Float[Tensor, " blocks"]) -> Float[Tensor, " n"]:
    return (_blocks(values, size) * by[:, None]).flatten()[: len(values)]


def _blocks(values: Float[Tensor, " n"], size: int) -> Float[Tensor, "blocks size"]:
    short = -len(values) % size
    return (nn.functional.pad(values, (0, short)) if short else values).view(-1, size)


class NF4Linear(nn.Module):
    """x Wᵀ + bias with W (d_out, d_in) in NF4. W never trains, and no wider copy of it outlives a multiplication.

    `weight` is W in the dtype of the model, made anew at every look, transposed where it came from GPT-2's Conv1D.
    """

    codes: Tensor
    constants: Tensor
    scales: Tensor | None
    mean: Tensor | None
    like: Tensor  # empty: `.to` moves its dtype and device along with the model's

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        bias: nn.Parameter | None = None,
        *,
        double: bool = True,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.transposed = transposed
        self.register_buffer("like", weight.detach().new_empty(0), persistent=False)
        for name, tensor in quantise(weight, double)._asdict().items():
            self.register_buffer(name, tensor)
        self.bias = bias

    @property
    def packed(self) -> Packed:
        """What is held: the module's memory, not copies."""
        return Packed(self.codes, self.constants, self.scales, self.mean)

    @property
    def weight(self) -> Float[Tensor, "rows columns"]:
        """W in the dtype and layout it had. Writing into it changes nothing."""
        matrix = dequantise(self.packed, (self.out_features, self.in_features), self.like.dtype)
        return matrix.T if self.transposed else matrix

    def forward(self, x: Float[Tensor, "*at d_in"]) -> Float[Tensor, "*at d_out"]:
        """Computed in the dtype of `x`, or that of autocast."""
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if x.is_cuda and x.dtype != torch.float64 and _has_bitsandbytes():
            return bitsandbytes_linear(x, self, bias)
        shape = (self.out_features, self.in_features)
        return _Multiplied.apply(x, bias, shape, *self.packed)  # type: ignore[no-any-return, no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NF4Linear":
        """Move with the model, but keep what is held: `.to(torch.bfloat16)` would round the constants."""
        held = self.packed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in held._asdict().items():
            self._buffers[name] = None if tensor is None else tensor.to(self.like.device)
        return self


class _Multiplied(torch.autograd.Function):
    """x Wᵀ + bias that keeps the packed W for the backward pass and dequantises it again there (the paper's eq. 5)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, shape: tuple[int, int], *held: Tensor | None) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*held)
        return nn.functional.linear(x, dequantise(Packed(*held), shape, x.dtype), bias)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of x (through the dequantised weight, made anew) and of the bias; what is packed has none."""
        (gradient,) = gradients
        to_x, to_bias = ctx.needs_input_grad[:2]
        held = Packed(*ctx.saved_tensors)
        return (
            gradient @ dequantise(held, ctx.shape, gradient.dtype) if to_x else None,
            gradient.sum_to_size(gradient.shape[-1:]) if to_bias else None,
            *[None] * (1 + len(held)),
        )


@cache
def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None


def bitsandbytes_linear(x: Tensor, layer: NF4Linear, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias by the kernels of bitsandbytes, over the same bytes that `layer` holds."""
    bnb: Any = import_module("bitsandbytes")
    state = bnb.functional.QuantState
    held, nested = layer.packed, None
    if held.scales is not None:
        nested = state(absmax=held.scales, code=_STEPS.to(x.device), blocksize=CONSTANTS, dtype=torch.float32)
    whole = state(
        absmax=held.constants,
        shape=torch.Size((layer.out_features, layer.in_features)),
        code=_LEVELS.to(x.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=x.dtype,
        offset=held.mean,
        state2=nested,
    )
    return bnb.matmul_4bit(x, held.codes[None], quant_state=whole, bias=bias)  # type: ignore[no-any-return]
