"""Products of many rows with weights that stand still, in bfloat16, compiled on the machine that uses them (matrices.cpp).

For processors with tiles (AMX), and there for weights as narrow as a trial finds worth it: of some shapes PyTorch's library
leaves all rows to one thread.
"""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.models import kernels
from acclimate.models.kernels import INT, LONG, POINTER, bound

LEAST, STEP = 128, 32  # rows; of which both sides of the weights have to be a multiple
PROBED = (576, 1536)  # columns; fewer gain as much as 576


@cache
def _function() -> Any:
    """The kernel, where the processor has tiles that the system gives, and a compiler is at hand."""
    given = bound("tiles_given", gives=INT)
    return bound("matrices", *[POINTER] * 3, *[LONG] * 3, INT, INT) if given is not None and given() else None


@cache
def limit() -> int:
    """The most columns of a product that this machine is asked for here; 0 for none."""
    return 0 if _function() is None else kernels.kept("matrices", _tried)


def _tried() -> int:
    """With all threads and by the clock on the wall: how PyTorch shares out its work is what is asked."""
    x, most = torch.linspace(-1, 1, 896 * 1536).sin().reshape(896, 1536).bfloat16(), 0
    for n in PROBED:
        weight = torch.linspace(-1, 1, n * 1536).cos().reshape(n, 1536).bfloat16()
        works = (lambda: nn.functional.linear(x, weight), lambda: product(x, weight, True))  # noqa: B023
        plain, fast = kernels.fastest(*works, clock=time.perf_counter, seconds=0.3)
        if kernels.WORTH * fast > plain:
            return most
        most = n
    return most


def describe() -> str:
    """What was decided for this machine, in a line."""
    return f"bfloat16 compiled up to {limit()} columns" if limit() else "PyTorch's"


def product(x: Tensor, weight: Tensor, across: bool) -> Tensor:
    """x weightᵀ of a weight (n, k), or with `across` false x weight of a weight (k, n): (…, k) → (…, n). Without a graph."""
    k, n = weight.shape if not across else weight.shape[::-1]
    y = x.new_empty(*x.shape[:-1], n)
    if kernels.content(x):
        _function()(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // k, k, n, across, torch.get_num_threads()
        )
    return y


def products(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """A forward for each plain linear layer that the kernel may serve on its way or back; empty where it serves none."""
    if not limit():
        return {}
    plain = [module for module in modules if type(module) is nn.Linear and "forward" not in vars(module)]
    return {module: _forward(module) for module in plain if _fits(module)}


def _fits(module: nn.Linear) -> bool:
    weight, known = module.weight, module.bias is None and module.weight.is_cpu and module.weight.is_contiguous()
    fits = weight.shape[0] % STEP == weight.shape[1] % STEP == 0 and min(weight.shape) <= limit()
    return known and fits and weight.dtype == torch.bfloat16


def _forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        weight = module.weight
        many = input.numel() >= LEAST * weight.shape[1] and input.dtype == weight.dtype and input.is_contiguous()
        if not many or (torch.is_grad_enabled() and weight.requires_grad):
            return nn.functional.linear(input, weight)
        return _Product.apply(input, weight)  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _Product(torch.autograd.Function):
    """x weightᵀ of a weight that stands still; each way by whoever is quicker."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(…, k), (n, k) → (…, n)."""
        ctx.save_for_backward(weight)
        return product(x, weight, True) if len(weight) <= limit() else nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """Of x alone."""
        (weight,) = ctx.saved_tensors
        if weight.shape[1] > limit():
            return slopes[0] @ weight, None
        return product(slopes[0].contiguous(), weight, False), None
