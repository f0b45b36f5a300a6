"""DoRA: learn the length of every row of a weight, and its direction with a low-rank change."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.methods.delta import attach
from acclimate.methods.lora import LoRA, LowRank
from acclimate.methods.targets import find, width
from acclimate.methods.weight import set_weight, weight_of


@dataclass(frozen=True)
class DoRA:
    """Weight-decomposed LoRA: m V / ‖V‖ x with V = W + (alpha / rank) B A. Liu et al. 2024, arXiv:2402.09353, eq. 5.

    ‖V‖ is the length of each row, one number per output, as in the authors' code; eq. 5 writes columns of a transposed
    weight. It is held constant in the backward pass (section 4.3). m starts at ‖W‖ and B at zero: exactly the base.
    d_out numbers more than LoRA. While training with dropout the authors also drop from the input of W; only A's is
    dropped from here.
    """

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # B A is scaled by alpha / rank
    dropout: float = 0.0  # on the input of A, while training
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise RecipeError(
                f"dora has rank {self.rank} and dropout {self.dropout}; the rank is at least 1, "
                "the dropout at least 0 and below 1."
            )

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Decomposed` to every target. Raises RecipeError or ModelError where that cannot be."""
        for linear in find(model, self.targets).values():
            attach(linear, Decomposed(linear, self), name)


class Decomposed(LowRank):
    """(m / ‖V‖) V x + bias, from the layer's own y = W x + bias."""

    def __init__(self, layer: nn.Module, spec: DoRA) -> None:
        super().__init__(width(layer).d_in, width(layer).d_out, LoRA(spec.rank, spec.alpha, spec.dropout))
        weight = weight_of(layer)
        self.to(device=weight.device, dtype=weight.dtype)
        self.m = nn.Parameter(self._lengths(weight))

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        by = self.m / self._lengths(weight_of(self.carrier))
        bias = self.carrier._parameters.get("bias")
        own = y if bias is None else y - bias
        low = nn.functional.linear(self.dropout(x), self.a.to(x.dtype))
        change = nn.functional.linear(low, self.b.to(x.dtype))
        return (y + (by - 1) * own + by * self.scale * change).to(y.dtype)

    def fold(self, module: nn.Module) -> None:
        weight = weight_of(module)
        by = self.m / self._lengths(weight)
        set_weight(module, by[:, None] * (weight + self.scale * self.b @ self.a))

    @torch.no_grad()
    def _lengths(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " d_out"]:
        """‖V‖, in the precision of the weight even under autocast; of an empty row a number that divides its zero."""
        with torch.autocast(weight.device.type, enabled=False):
            lengths: Tensor = torch.linalg.vector_norm(weight + self.scale * self.b @ self.a, dim=1)
        return lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
