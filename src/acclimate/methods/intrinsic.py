"""Intrinsic dimension: all weights move, but only within a random subspace of a few dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.methods.delta import Delta, add_to_weight, attach
from acclimate.methods.fastfood import project
from acclimate.methods.targets import Width, find, width


@dataclass(frozen=True)
class DID:
    """W = W₀ + P(θ) with one θ of `dimension` numbers for the whole model. Aghajanyan et al. 2020, arXiv:2012.13255, eq. 1.

    P is a Fastfood projection; θ starts at zero, so training starts at the base model. It covers the weights of the
    linear layers inside the model's layers; the paper moves biases, norms and embeddings as well.
    """

    dimension: int = 1000  # numbers that train
    projection: int = 0  # the seed of P, which the artifact holds in its place
    targets: tuple[str, ...] = ("linear",)

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        if self.dimension < 1:
            raise RecipeError(f"did has dimension {self.dimension}; at least one number has to train.")

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Slice` of P(θ) to every target. Raises RecipeError or ModelError where that cannot be."""
        _install(model, self.targets, torch.zeros(self.dimension, dtype=torch.float32), self.projection, {}, name)


@dataclass(frozen=True)
class SAID:
    """W = W₀ + λ P(θ) with a λ for each layer of the model. Aghajanyan et al. 2020, arXiv:2012.13255, eq. 3.

    Of the `dimension` numbers, the last m are the λ of the m layers; they start at one, θ at zero. Otherwise as DID.
    """

    dimension: int = 1000  # numbers that train, the λ among them
    projection: int = 0  # the seed of P, which the artifact holds in its place
    targets: tuple[str, ...] = ("linear",)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Slice` of λ P(θ) to every target. Raises RecipeError or ModelError where that cannot be."""
        layers = dict.fromkeys(layer_of(path) for path in find(model, self.targets))
        free = self.dimension - len(layers)
        if free < 1:
            raise RecipeError(
                f"said has dimension {self.dimension}, and {len(layers)} numbers are the scales of this model's layers; "
                f"at least {len(layers) + 1} have to train."
            )
        start = torch.cat([torch.zeros(free, dtype=torch.float32), torch.ones(len(layers), dtype=torch.float32)])
        scales = {layer: free + i for i, layer in enumerate(layers)}
        _install(model, self.targets, start, self.projection, scales, name)


def layer_of(path: str) -> str:
    """The layer that a module belongs to: its path up to the first number; without one, its own path.

    >>> layer_of("encoder.block.3.layer.0.SelfAttention.q")
    'encoder.block.3'
    """
    parts = path.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: place + 1])


def _install(
    model: nn.Module, targets: Sequence[str], start: Tensor, seed: int, scales: dict[str, int], name: str
) -> None:
    found = find(model, targets)
    total = sum(width(linear).d_in * width(linear).d_out for linear in found.values())
    theta = nn.Parameter(start)
    for stream, (path, linear) in enumerate(found.items()):
        attach(
            linear,
            Slice(theta, len(start) - len(scales), width(linear), total, (seed, stream), scales.get(layer_of(path))),
            name,
        )


class Slice(Delta):
    """y + x ΔWᵀ, with ΔW the part of P(θ) that is this module's. All slices of a model hold the same θ.

    ΔW is computed again at each forward pass and kept for the backward one, like an activation; merged, it costs nothing.
    """

    def __init__(
        self, theta: nn.Parameter, free: int, shape: Width, total: int, drawn: tuple[int, int], scale: int | None
    ) -> None:
        super().__init__()
        self.theta = theta
        self.free, self.shape, self.total, self.scale = free, shape, total, scale
        self.seed, self.stream = drawn

    def change(self) -> Float[Tensor, "d_out d_in"]:
        """ΔW, in θ's dtype."""
        count = self.shape.d_out * self.shape.d_in
        flat = project(self.theta[: self.free], count, self.total, self.seed, self.stream)
        scaled = flat if self.scale is None else flat * self.theta[self.scale]
        return scaled.view(self.shape.d_out, self.shape.d_in)

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        return y + nn.functional.linear(x, self.change().to(x.dtype))

    def fold(self, module: nn.Module) -> None:
        add_to_weight(module, self.change())
