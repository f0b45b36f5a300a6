"""VeRA: one random pair of low-rank matrices for all layers, and two learned vectors for each."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.methods.delta import Delta, add_to_weight, attach
from acclimate.methods.targets import find, width
from acclimate.methods.weight import weight_of


@dataclass(frozen=True)
class VeRA:
    """W x + λ_b ⊙ B (λ_d ⊙ A x), A and B frozen and shared. Kopiczko et al. 2024, arXiv:2310.11454, eq. 2.

    λ_b starts at zero, so training starts at the base model. A and B are drawn Kaiming-uniform for the widest layers and
    cut to size for the others; an adapter is stored as its vectors and the seed. d_out + rank numbers a layer.
    """

    rank: int = 256  # rows of A, columns of B
    start: float = 0.1  # of λ_d
    seed: int = 0  # of A and B
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        if self.rank < 1:
            raise RecipeError(f"vera has rank {self.rank}; it is at least 1.")

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Scaled` to every target. Raises RecipeError or ModelError where that cannot be."""
        linears = find(model, self.targets).values()
        shapes = [width(linear) for linear in linears]
        drawn = projections(self.rank, max(s.d_in for s in shapes), max(s.d_out for s in shapes), self.seed)
        moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        for linear, shape in zip(linears, shapes, strict=True):
            like = weight_of(linear)
            a, b = moved.setdefault((like.device, like.dtype), (drawn[0].to(like), drawn[1].to(like)))
            attach(linear, Scaled(a[:, : shape.d_in], b[: shape.d_out], self.start), name)


def projections(rank: int, d_in: int, d_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """A (rank, d_in) and B (d_out, rank): the same for the same seed, and nothing is drawn from the global generator."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.empty(rank, d_in, dtype=torch.float32), torch.empty(d_out, rank, dtype=torch.float32)
    return nn.init.kaiming_uniform_(a, generator=generator), nn.init.kaiming_uniform_(b, generator=generator)


class Scaled(Delta):
    """y + λ_b ⊙ B (λ_d ⊙ A x)."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], start: float) -> None:
        super().__init__()
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)
        self.lambda_d = nn.Parameter(torch.full((len(a),), start, dtype=torch.float32))
        self.lambda_b = nn.Parameter(torch.zeros(len(b), dtype=torch.float32))

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        low = nn.functional.linear(x, self.a.to(x.dtype))
        change = nn.functional.linear((low * self.lambda_d).to(x.dtype), self.b.to(x.dtype))
        return (y + change * self.lambda_b).to(y.dtype)

    def fold(self, module: nn.Module) -> None:
        add_to_weight(module, self.lambda_b[:, None] * self.b @ (self.lambda_d[:, None] * self.a))
