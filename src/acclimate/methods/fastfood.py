"""A few numbers spread over many by a random matrix that is never held: the Fastfood transform.

Le, Sarlós & Smola 2013, arXiv:1408.3060, eq. 8: a block is S H G Π H B, with H the Hadamard matrix of p rows, p the next
power of two, B random signs, Π a permutation, G normal numbers, S a scale for each row. Blocks stacked give any length.
Li et al. 2018, arXiv:1804.08838, and Aghajanyan et al. 2020, arXiv:2012.13255, take it as the projection of intrinsic
dimension. Of S only the length of the rows is kept, as in their code; Π is drawn once for all blocks of one piece.

The random numbers are a written-down mix of (seed, stream, place) and no generator's stream: torch promises none over
devices and releases, and an artifact that holds a seed has to mean the same for years.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LOW = (1 << 32) - 1
CHUNK = 1 << 16  # numbers that are drawn at a time
RADIX = 5  # log₂ of the rows of H that one matrix product takes
GAMMA, PERMUTED = 0x9E3779B97F4A7C15, 1 << 62  # the step of the counter; where the permutations' counter begins


def project(theta: Float[Tensor, " d"], count: int, total: int, seed: int, stream: int) -> Float[Tensor, " count"]:
    """Numbers of piece `stream` of P θ, which has `total` in all: E ‖P θ‖² = ‖θ‖² over the seeds. P is linear in θ.

    Every row of P is a unit vector times √(p / total), so the columns have length 1 in the mean, as Li et al. ask.
    Nothing random is kept for the backward pass: it is drawn again.
    """
    return cast(Tensor, _Projection.apply(theta, count, total, seed, stream))  # type: ignore[no-untyped-call]


class _Projection(torch.autograd.Function):
    """S H G Π H B θ forwards and its transpose B H Πᵀ G H S backwards: H and the diagonals are symmetric."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, count: int, total: int, seed: int, stream: int) -> Tensor:
        """(d,) → (count,)."""
        ctx.given = (len(theta), count, total, seed, stream)
        size = padded(len(theta))
        order = permutation(seed, stream, size, theta.device)
        filled, made = nn.functional.pad(theta, (0, size - len(theta))), theta.new_empty(count)
        for place, signs, scale in _diagonals(size, count, total, seed, stream, theta):
            block = hadamard(hadamard(signs * filled).index_select(1, order) * scale).flatten()
            made[place : place + len(block)] = block[: count - place]
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """(count,) → (d,)."""
        length, count, total, seed, stream = ctx.given
        size = padded(length)
        back = permutation(seed, stream, size, gradient.device).argsort()
        made = gradient.new_zeros(size)
        for place, signs, scale in _diagonals(size, count, total, seed, stream, gradient):
            piece = gradient[place : place + signs.numel()]
            block = nn.functional.pad(piece, (0, signs.numel() - len(piece))).view(-1, size)
            made += (signs * hadamard((hadamard(block) * scale).index_select(1, back))).sum(0)
        return made[:length], None, None, None, None


def _diagonals(
    size: int, count: int, total: int, seed: int, stream: int, like: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(place of the first number, B, S G) of a few blocks at a time, (blocks, p) each: what is small stays in the cache."""
    for place in range(0, count, max(size, CHUNK)):
        blocks = -(-min(max(size, CHUNK), count - place) // size)
        bits = mixed(seed, stream, blocks * size, like.device, place).view(blocks, size)
        gauss = normal(bits).to(like.dtype)
        yield place, (bits & 1).to(like.dtype) * 2 - 1, gauss / (gauss.norm(dim=1, keepdim=True) * math.sqrt(total))


def permutation(seed: int, stream: int, size: int, device: torch.device) -> Int[Tensor, " p"]:
    """The random order Π of a piece."""
    return mixed(seed, stream, size, device, PERMUTED).argsort(stable=True)


def padded(count: int) -> int:
    """The next power of two.

    >>> [padded(n) for n in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << max(0, count - 1).bit_length()


def hadamard(x: Float[Tensor, "*at p"]) -> Float[Tensor, "*at p"]:
    """H x over the last axis, p a power of two, H of ±1 in Sylvester's order: O(p log p).

    H is the Kronecker product of Hadamard matrices of up to 32 rows, so each factor is one product with a small matrix.
    """
    done, left = 1, x.shape[-1].bit_length() - 1
    y = x.reshape(-1, 1)
    while left:
        bits = min(RADIX, left)
        small = sylvester(bits, x)
        y = y.reshape(-1, 1 << bits, done)
        y = y.reshape(-1, 1 << bits) @ small if done == 1 else small @ y
        done, left = done << bits, left - bits
    return y.reshape(x.shape)


def sylvester(bits: int, like: Tensor) -> Float[Tensor, "p p"]:
    """The Hadamard matrix of 2^bits rows: H₁ = 1, H₂ₙ = [[Hₙ, Hₙ], [Hₙ, −Hₙ]]."""
    matrix = like.new_ones(1, 1)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix


def mixed(seed: int, stream: int, count: int, device: torch.device, start: int = 0) -> Int[Tensor, " count"]:
    """64 random bits for each place from `start` on: the output function of SplitMix64 over a counter.

    Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 13; products wrap around.
    """
    x = torch.arange(start + 1, start + 1 + count, dtype=torch.int64, device=device)
    x.mul_(_signed(GAMMA)).add_(_scalar(seed ^ _scalar(stream)))
    x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(0x94D049BB133111EB))
    return x.bitwise_xor_(_shifted(x, 31))


def normal(bits: Int[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """A standard normal number from bits 8 to 63 of each, in float32: Box & Muller 1958."""
    radius = _shifted(bits, 40).add_(1).float().mul_(2.0**-24)  # in (0, 1]
    angle = _shifted(bits, 8).bitwise_and_(LOW).float().mul_(math.tau * 2.0**-32)
    return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_())


def _scalar(value: int) -> int:
    """One number mixed as `mixed` mixes, as a signed 64-bit one, so that near seeds and streams are unlike."""
    x = (value + GAMMA) & ((1 << 64) - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return _signed(x ^ (x >> 31))


def _signed(value: int) -> int:
    """An unsigned 64-bit number as the signed one of the same bits."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Int[Tensor, "*at"], places: int) -> Int[Tensor, "*at"]:
    """x >> places with zeros coming in; torch's shift brings in the sign."""
    return (x >> places).bitwise_and_((1 << (64 - places)) - 1)
