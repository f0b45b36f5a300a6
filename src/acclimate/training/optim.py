"""AdamW on the trainable tensors, by name, so that its state can be written down and put back exactly."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def adamw(
    parameters: Mapping[str, nn.Parameter],
    rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: float = 0.0,
) -> torch.optim.AdamW:
    """Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2. Decay pulls matrices, never biases and norms."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=betas, eps=eps)


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
        parameter = parameters[name]
        place = tensor if key == "step" else tensor.to(parameter.device)
        optimizer.state[parameter][key] = place
