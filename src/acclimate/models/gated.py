"""Gated feed-forward layers that keep less for the way back: gate and up, but not the activation between them.

Of down(act(gate(x)) · up(x)) plain autograd holds three tensors as wide as the layer; the third is made again in a moment
from the first. A fifth of all that a decoder holds of a token, for one activation more.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from acclimate.models import matrices, rotary, rows
from acclimate.models.kernels import using

PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


@contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, layers of `model` that are gated as above hold less; norms and turns pass over numbers once (`rows`).

    What rides on them or on their parts goes on to answer: the parts are called as before. Of a frozen base the bits are the
    same with a graph and without.
    """
    with using(by_token(model.modules())), rotary.quick(model.modules()):
        yield


def quick(model: nn.Module) -> AbstractContextManager[None]:
    """As `lean` where there is no way back; nothing where there is one, which may begin outside."""
    return nullcontext() if torch.is_grad_enabled() else lean(model)


def by_token(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """A forward for every gated layer, every norm and, where the machine has better ones, every product among them."""
    found = tuple(modules)
    gates = {module: _forward(module) for module in found if _gated(module)}
    return {**gates, **rows.norms(found), **matrices.products(found)}


def _gated(module: Any) -> bool:
    if "forward" in vars(module) or not all(hasattr(module, part) for part in PARTS):
        return False
    fixed = not isinstance(module.act_fn, nn.Module) or not list(module.act_fn.parameters())
    return fixed and _known(cast(Hashable, type(module)))


@cache
def _known(kind: Hashable) -> bool:
    """Whether layers of this class compute just that, tried on parts that are told apart; what asks for more does not."""
    parts = SimpleNamespace(
        gate_proj=lambda x: x + 1, up_proj=lambda x: x - 2, down_proj=lambda x: 3 * x, act_fn=torch.sigmoid
    )
    x = torch.linspace(-2, 2, 7)[None]
    try:
        with torch.no_grad():
            return torch.equal(cast(Any, kind).forward(parts, x), 3 * (torch.sigmoid(x + 1) * (x - 2)))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it asks for something else
        return False


def _forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        return module.down_proj(_Gate.apply(module.act_fn, gate, up))  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) · up."""
        ctx.act, ctx.fast = act, isinstance(act, nn.SiLU | SiLUActivation) and rows.serves(gate, up)
        ctx.save_for_backward(gate, up)
        return rows.gate(gate, up) if ctx.fast else act(gate) * up

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, Tensor, Tensor]:
        """Of gate and up; the activation is made again."""
        gate, up = ctx.saved_tensors
        if ctx.fast:
            return None, *rows.gate_slopes(gate, up, slopes[0])
        with torch.enable_grad():
            again = gate.detach().requires_grad_()
            open_ = ctx.act(again)
        (slope,) = torch.autograd.grad(open_, again, slopes[0] * up)
        return None, slope, slopes[0] * open_.detach()
