"""The turn by which queries and keys know their places, in one pass over them, compiled on the machine that uses it (rows.cpp).

Su et al. 2021, arXiv:2104.09864, eq. 34, with a head's halves for pairs, as transformers has it: a function that each of its
files of models looks up when it is called. PyTorch passes over the numbers for every sign in the formula, on the way back as
well.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.models import kernels
from acclimate.models.kernels import INT, LONG, POINTER, bound, for_dtype

NAME = "apply_rotary_pos_emb"
ASKED = ("q", "k", "cos", "sin", "unsqueeze_dim")
WIDTH = 32  # of which a head's size has to be a multiple
Heads = Float[Tensor, "rows heads time d"]
Both = tuple[Tensor, Tensor]


@cache
def _function(dtype: torch.dtype, places: torch.dtype) -> Any:
    """The kernel for heads and cosines of these dtypes; None without a compiler, and for others."""
    mixed, takes = (dtype, places) == (torch.bfloat16, torch.float32), (*[POINTER] * 5, *[LONG] * 5, INT, INT)
    if mixed:
        return bound("turn_mixed", *takes)
    return for_dtype("turn", dtype, *takes) if dtype == places else None


@contextmanager
def quick(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the `with`, what turns queries and keys of these modules is this one, where it computes the same."""
    files = (vars(sys.modules.get(name, sys)) for name in {type(module).__module__ for module in modules})
    found = [(file, file[NAME]) for file in files if _known(file.get(NAME))]
    for file, plain in found:
        file[NAME] = _Turning(plain)
    try:
        yield
    finally:
        for file, plain in found:
            file[NAME] = plain


class _Turning(partial[Both]):
    """In the place of `plain`, which answers where the kernel does not."""

    def __new__(cls, plain: Callable[..., Both]) -> "_Turning":
        return super().__new__(cls, _turned, plain)


def _turned(
    plain: Callable[..., Both], query: Heads, key: Heads, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> Both:
    if unsqueeze_dim == 1 and serves(query, key, cos, sin):
        return turn(query, cos, sin), turn(key, cos, sin)
    return plain(query, key, cos, sin, *(() if unsqueeze_dim == 1 else (unsqueeze_dim,)))


def serves(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel can: of dtypes that it knows, on the CPU, cosines for whole heads and for each row or for all.

    Cosines of float32 for heads of bfloat16 are what mixed precision has, where attention rounds what it is given.
    """
    d, alike = query.shape[-1], query.dtype == key.dtype and cos.dtype == sin.dtype
    if query.ndim != 4 or d % WIDTH or not alike or not all(x.is_cpu for x in (query, key, cos, sin)):
        return False
    if query.dtype != cos.dtype and not torch.is_autocast_enabled("cpu"):
        return False
    rows, time = query.shape[0], query.shape[2]
    places = all(x.shape in ((rows, time, d), (1, time, d)) and x.is_contiguous() for x in (cos, sin))
    return (
        places
        and cos.shape == sin.shape
        and key.shape[2:] == query.shape[2:]
        and _function(query.dtype, cos.dtype) is not None
    )


def turn(x: Heads, cos: Float[Tensor, "each time d"], sin: Float[Tensor, "each time d"]) -> Heads:
    """x cos + (−b, a) sin of the halves (a, b) of x, summed in float32; it lies as (rows, time, heads, d)."""
    return _Turn.apply(x, cos, sin)  # type: ignore[no-any-return, no-untyped-call]


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As `turn`."""
        ctx.save_for_backward(cos, sin)
        return _call("forth", x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """Of x alone."""
        return _call("back", slopes[0], *ctx.saved_tensors), None, None


def _call(way: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    rows, heads, time, d = x.shape
    y = x.new_empty(rows, time, heads, d)
    if kernels.content(x):
        steps = torch.tensor([x.stride(0), x.stride(2), x.stride(1)])
        each = time if len(cos) > 1 else 0
        pointers = (part.data_ptr() for part in (x, steps, cos, sin, y))
        _function(x.dtype, cos.dtype)(*pointers, rows, time, heads, d, each, way == "back", torch.get_num_threads())
    return y.transpose(1, 2)


@cache
def _known(plain: Any) -> bool:
    """Whether a function is asked so and turns heads so, tried on small ones; not what stands in another's place already."""
    if not callable(plain) or isinstance(plain, _Turning) or _function(torch.float32, torch.float32) is None:
        return False
    if tuple(signature(plain).parameters) not in (ASKED, ASKED[:4]):
        return False
    query, key = (torch.linspace(-2, 3, n * 96).sin().reshape(1, n, 3, 32) for n in (2, 1))
    angles = torch.linspace(0, 5, 96).reshape(1, 3, 32)
    try:
        found = plain(query, key, angles.cos(), angles.sin())
        wanted = [turn(x, angles.cos(), angles.sin()) for x in (query, key)]
        return all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted, strict=True))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it asks for something else
        return False
