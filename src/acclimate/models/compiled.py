"""What a decoder does to every token by itself, on CUDA: norms and gates, each compiled by PyTorch into a kernel or two.

The functions are plain; `run` runs them compiled, once for all shapes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acclimate.models.kernels import DTYPES, content


def norm(
    x: Float[Tensor, "rows d"], weight: Float[Tensor, " d"], eps: float
) -> tuple[Float[Tensor, "rows d"], Float[Tensor, "rows 1"]]:
    """weight · x / √(mean x² + eps), and the factor of each row in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), scale


def norm_back(
    x: Float[Tensor, "rows d"],
    slope: Float[Tensor, "rows d"],
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "rows 1"],
) -> Float[Tensor, "rows d"]:
    """The slope of x; weight stands still."""
    unit, down = x * scale, weight.to(scale.dtype) * slope
    return ((down - unit * (unit * down).mean(-1, keepdim=True)) * scale).to(x.dtype)


def gate(x: Float[Tensor, " n"], up: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """SiLU(x) · up."""
    return torch.nn.functional.silu(x) * up


def gate_back(
    x: Float[Tensor, " n"], up: Float[Tensor, " n"], slope: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The slopes of x and of up."""
    wide, down = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in (x, slope))
    opened = torch.sigmoid(wide)
    first = down * up * opened * (1 + wide * (1 - opened))
    return first.to(x.dtype), (down * wide * opened).to(x.dtype)


FUNCTIONS: dict[str, Callable[..., Any]] = {"norm": norm, "norm_back": norm_back, "gate": gate, "gate_back": gate_back}


def run(name: str, *given: Any) -> Any:
    """That function, compiled; as it is while memory is forecast. There is no way back through it."""
    function = _made(name) if content(given[0]) else FUNCTIONS[name]
    with torch.no_grad():  # and detached: what trains or not is no reason to compile anew
        return function(*(x.detach() if isinstance(x, Tensor) else x for x in given))


@cache
def _made(name: str) -> Callable[..., Any]:
    return torch.compile(FUNCTIONS[name], dynamic=True)


def serves(*tensors: Tensor) -> bool:
    """Whether they can be compiled for: on CUDA, of one dtype of DTYPES, as they lie."""
    dtype, width = tensors[0].dtype, tensors[0].shape[-1]
    alike = all(x.is_cuda and x.dtype == dtype and x.is_contiguous() and x.shape[-1] == width for x in tensors)
    return alike and dtype in DTYPES and offered()


def describe() -> str:
    """What was decided for this machine's GPU, in a line."""
    return "compiled by PyTorch" if offered() else "the models' own"


@cache
def offered() -> bool:
    """Whether PyTorch compiles for this machine's GPU, tried once on a small tensor."""
    if not torch.cuda.is_available():
        return False
    x = torch.ones(2, 16, dtype=torch.bfloat16, device="cuda")
    try:
        run("norm", x, x[0], 0.1)
    except (RuntimeError, ImportError, OSError):  # no Triton, or no compiler under it
        return False
    return True
