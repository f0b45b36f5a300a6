"""What a decoder does to every token by itself, compiled on the machine that uses it (rows.cpp): norms and gates.

PyTorch passes over the numbers once for every sign in the formula; here they are read once and written once. Norms whose
weight stands still have no gradient of it. On CUDA the same functions are PyTorch's to compile (`compiled`).
"""

from collections.abc import Callable, Hashable, Iterable
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from acclimate.models import compiled, kernels
from acclimate.models.kernels import FLOAT, INT, LONG, POINTER, for_dtype

WIDTH = 16  # of which the numbers of a token have to be a multiple
ARGUMENTS = {
    "norm": (4, 2, True),
    "norm_back": (5, 2, False),
    "norm_weight": (4, 2, False),
    "gate": (3, 1, False),
    "gate_back": (5, 1, False),
}


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    """A kernel for this dtype; None without a compiler, and for other dtypes."""
    pointers, numbers, small = ARGUMENTS[name]
    return for_dtype(name, dtype, *[POINTER] * pointers, *[LONG] * numbers, *[FLOAT] * small, INT)


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels can: of one dtype that they know, as they lie."""
    if tensors[0].is_cuda:
        return compiled.serves(*tensors)
    dtype, width = tensors[0].dtype, tensors[0].shape[-1]
    alike = all(x.is_cpu and x.dtype == dtype and x.is_contiguous() and x.shape[-1] == width for x in tensors)
    return alike and width % WIDTH == 0 and _function("gate", dtype) is not None


def norms(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """A forward for each root-mean-square norm that the kernels may serve."""
    found = {module: _forward(module) for module in modules if is_norm(module)}
    return found if compiled.offered() or _function("norm", torch.float32) is not None else {}


def is_norm(module: Any) -> bool:
    """Whether it computes weight · x / √(mean x² + variance_epsilon), and nobody computes it otherwise at present."""
    weight = getattr(module, "weight", None)
    fits = isinstance(weight, Tensor) and weight.ndim == 1 and hasattr(module, "variance_epsilon")
    return fits and "forward" not in vars(module) and _known(cast(Hashable, type(module)))


@cache
def _known(kind: Hashable) -> bool:
    """Whether modules of this class compute just that and round where the kernels do, tried on a small one."""
    weight, x = torch.linspace(0.5, 2, 16), torch.linspace(-2, 3, 32).reshape(2, 16)
    parts = SimpleNamespace(weight=weight, variance_epsilon=0.1)
    try:
        found = cast(Any, kind).forward(parts, x)
        wanted = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1))
        return isinstance(found, Tensor) and torch.equal(found, wanted)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it asks for something else
        return False


def _forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(hidden_states: Tensor) -> Tensor:
        weight = module.weight
        trains = weight.requires_grad and torch.is_grad_enabled()
        if not serves(hidden_states, weight) or (trains and hidden_states.is_cuda):
            return type(module).forward(module, hidden_states)  # type: ignore[no-any-return]
        return _Norm.apply(hidden_states, weight, module.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """weight · x / √(mean x² + eps) along the last axis."""
        y, scale = norm(x.view(-1, x.shape[-1]), weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Of x, and of the weight where it trains."""
        x, weight, scale = ctx.saved_tensors
        slope = slopes[0].contiguous()
        own = weight_slope(x, weight, slope, scale) if ctx.needs_input_grad[1] else None
        return norm_slope(x, weight, slope, scale), own, None


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """weight · x / √(mean x² + eps) of rows (rows, d), and the factor of each row in float32."""
    if x.is_cuda:
        return compiled.run("norm", x, weight, eps)  # type: ignore[no-any-return]
    y, scale = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
    _call("norm", x, weight, y, scale, numbers=(*x.shape, eps))
    return y, scale


def norm_slope(x: Tensor, weight: Tensor, slope: Tensor, scale: Tensor) -> Tensor:
    """The slope of x, in any shape that ends in d."""
    if x.is_cuda:
        flat = (part.view(-1, x.shape[-1]) for part in (x, slope))
        return compiled.run("norm_back", *flat, weight, scale).view(x.shape)  # type: ignore[no-any-return]
    found = torch.empty_like(x)
    _call("norm_back", x, weight, slope, scale, found, numbers=(len(scale), x.shape[-1]))
    return found


def weight_slope(x: Tensor, weight: Tensor, slope: Tensor, scale: Tensor) -> Tensor:
    """The slope of the weight of a norm, (d,)."""
    found = torch.empty_like(weight)
    _call("norm_weight", x, slope, scale, found, numbers=(len(scale), x.shape[-1]))
    return found


def gate(x: Tensor, up: Tensor) -> Tensor:
    """SiLU(x) · up; SiLU is rounded before it meets up, as models have it."""
    if x.is_cuda:
        return compiled.run("gate", x.view(-1), up.view(-1)).view(x.shape)  # type: ignore[no-any-return]
    y = torch.empty_like(x)
    _call("gate", x, up, y, numbers=(x.numel(),))
    return y


def gate_slopes(x: Tensor, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of x and of up."""
    if x.is_cuda:
        first, second = compiled.run("gate_back", *(part.reshape(-1) for part in (x, up, slope)))
        return first.view(x.shape), second.view(x.shape)
    first, second = torch.empty_like(x), torch.empty_like(x)
    _call("gate_back", x, up, slope.contiguous(), first, second, numbers=(x.numel(),))
    return first, second


def _call(name: str, *tensors: Tensor, numbers: tuple[float, ...]) -> None:
    if kernels.content(tensors[0]):
        function = _function(name, tensors[0].dtype)
        function(*(x.data_ptr() for x in tensors), *numbers, torch.get_num_threads())
