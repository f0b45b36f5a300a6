"""A number for a text."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acclimate.training.fit import Loss


@dataclass(frozen=True)
class Regress:
    """Mean squared error, in the units of the head: standard deviations of the training targets."""

    def __call__(self, model: Any, batch: Any) -> Loss:
        return squared_error(model(batch).squeeze(-1), batch.targets)


def squared_error(answers: Float[Tensor, " n"], targets: Float[Tensor, " n"]) -> Loss:
    """(n,), (n,) → Σ (answer − target)², and n."""
    return Loss((answers - targets.to(answers.dtype)).square().sum(), torch.tensor(len(targets)))
