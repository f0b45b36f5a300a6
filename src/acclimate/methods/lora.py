"""LoRA: learn a low-rank change to a frozen weight."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.methods.delta import Delta, add_to_weight, attach
from acclimate.methods.targets import find, width


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation: W x + (alpha / rank) B A x. Hu et al. 2021, arXiv:2106.09685, eq. 3.

    B starts at zero, so training starts at the base model. A is drawn from Kaiming-uniform as the authors' code does;
    the paper says Gaussian. r (d + k) parameters for a d × k weight.
    """

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # the change is scaled by alpha / rank
    dropout: float = 0.0  # on the input of A, while training
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        if self.rank < 1 or not 0 <= self.dropout < 1:
            bounds = "the rank is at least 1, the dropout at least 0 and below 1"
            raise RecipeError(f"lora has rank {self.rank} and dropout {self.dropout}; {bounds}.")

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `LowRank` to every target. Raises RecipeError or ModelError where that cannot be."""
        for linear in find(model, self.targets).values():
            attach(linear, LowRank(width(linear).d_in, width(linear).d_out, self), name)


class LowRank(Delta):
    """y + (alpha / rank) B A x."""

    def __init__(self, d_in: int, d_out: int, spec: LoRA) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(spec.rank, d_in, dtype=torch.float32))
        self.b = nn.Parameter(torch.zeros(d_out, spec.rank, dtype=torch.float32))
        self.scale = spec.alpha / spec.rank
        self.dropout = nn.Dropout(spec.dropout)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        low = nn.functional.linear(self.dropout(x), self.a.to(x.dtype))
        return y + nn.functional.linear(low, self.b.to(x.dtype)) * self.scale

    def factors(self) -> tuple[Tensor, Tensor] | None:
        plain = type(self).forward is LowRank.forward and not (self.training and self.dropout.p)
        return (self.a, self.scale * self.b) if plain else None

    def fold(self, module: nn.Module) -> None:
        add_to_weight(module, self.scale * self.b @ self.a)
