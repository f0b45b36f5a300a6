"""Tiny models that a method has trained, and what the suites ask about them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acclimate.methods import Full, Head, LoRA
from acclimate.methods.delta import Method, adapt, trainable
from tests import tiny

SPECS: dict[str, Method] = {"full": Full(), "head": Head(), "lora": LoRA(rank=2, targets=("linear",))}
RIDING = ("head", "lora")  # what rides on the base and leaves its tensors alone
KEY_BIAS = ("k_proj.bias", "key.bias")  # adds the same to every score of a row: softmax cancels it
SGD: Callable[..., torch.optim.Optimizer] = torch.optim.SGD

every_method = pytest.mark.parametrize("method", SPECS)
riding_method = pytest.mark.parametrize("method", RIDING)
every_build = pytest.mark.parametrize("build", tiny.BUILDS)


def some_ids(rows: int = 3, time: int = 7) -> Tensor:
    return torch.randint(3, tiny.VOCAB, (rows, time), generator=torch.Generator().manual_seed(7))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """A weighted sum of all log-probabilities, so that nothing is left out by symmetry."""
    logprobs = tiny.logits(model, ids).double().log_softmax(-1)
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (logprobs * weights).mean()


def train(
    model: nn.Module, steps: int = 2, kind: Callable[..., torch.optim.Optimizer] = SGD, rate: float = 1.0
) -> None:
    optimizer = kind(trainable(model).values(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, some_ids()).backward()
        optimizer.step()


def adapted(build: str, method: str, dtype: torch.dtype = torch.float64, name: str = "default") -> nn.Module:
    model = adapt(tiny.build(build, dtype), SPECS[method], name=name)
    train(model)
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {n for n in before if not torch.equal(before[n], after[n])}


def close(a: Tensor, b: Tensor, relative: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= relative * b.abs().max())


def checkpoint_layers(model: nn.Module) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@torch.no_grad()
def answers(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    return tiny.logits(model, some_ids() if ids is None else ids)
