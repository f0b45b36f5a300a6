"""AdamW on the trainable tensors, by name, so that its state can be written down and put back exactly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from acclimate.training.paged import PagedAdamW


def adamw(
    parameters: Mapping[str, nn.Parameter],
    rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: float = 0.0,
    pages: Path | None = None,  # a folder: the states lie in a file there
) -> torch.optim.AdamW:
    """Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2. Decay pulls matrices, never biases and norms."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    filled = [group for group in groups if group["params"]]
    if pages is not None:
        return PagedAdamW(filled, rate, betas, eps, pages)
    return torch.optim.AdamW(filled, lr=rate, betas=betas, eps=eps, fused=True)  # one pass over each tensor


def state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Every tensor the optimizer keeps, as `<parameter>/<key>`."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of `state` back; nothing else of an AdamW changes between steps but the rate, which the loop sets."""
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        kept = optimizer.state[parameters[name]]
        if key in kept:  # in its pages
            kept[key].copy_(tensor)
        else:
            kept[key] = tensor.to(parameters[name].device)
