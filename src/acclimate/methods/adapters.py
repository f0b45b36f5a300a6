"""Adapters: a small bottleneck after a sublayer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods.delta import Delta, attach
from acclimate.methods.targets import attentions, feed_forwards, norms, width

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Houlsby:
    """h + U gelu(D h) after every attention and feed-forward sublayer, before the residual is added; norms train too.

    Houlsby et al. 2019, arXiv:1902.00751, section 2.1. 2 m d + d + m numbers an adapter. D is drawn from a normal of
    std 0.01 cut off at two std, as in the paper; U starts at zero rather than so drawn, which makes the near-identity
    an identity. GELU is the authors' code's, the paper names none. Their dropout comes before the adapter, the model's
    own comes after it here.
    """

    bottleneck: int = 64  # m, the width inside an adapter

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        check_bottleneck("houlsby", self.bottleneck)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach two adapters to every layer, and a change to every norm. Raises RecipeError or ModelError."""
        for _, last in (*attentions(model), *feed_forwards(model)):
            attach(last, Adapter(width(last).d_out, self.bottleneck, nn.functional.gelu), name)
        for norm in norms(model):
            attach(norm, NormChange(norm), name)


@dataclass(frozen=True)
class Pfeiffer:
    """h + U relu(D h) after every feed-forward sublayer, before the residual is added; norms stay frozen.

    Pfeiffer et al. 2020, arXiv:2005.00052, section 3.2.1. 2 m d + d + m numbers an adapter. Its eq. 1 feeds D with what
    the next norm makes of h plus residual; here with h, as He et al. 2022 compare it, for builds that normalise first.
    The start is that of `Houlsby`.
    """

    bottleneck: int = 64  # m, the width inside an adapter

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        check_bottleneck("pfeiffer", self.bottleneck)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one adapter to every layer. Raises RecipeError or ModelError where that cannot be."""
        for _, last in feed_forwards(model):
            attach(last, Adapter(width(last).d_out, self.bottleneck, nn.functional.relu), name)


def check_bottleneck(method: str, size: int) -> None:
    """Raises RecipeError for a bottleneck without room."""
    if size < 1:
        raise RecipeError(f"{method} has bottleneck {size}; it is at least 1.")


class Bottleneck(nn.Module):
    """U f(D h + d) + u, with U and both biases starting at zero. `down` (m, d_in) is D; `up` (d_out, m) is U.

    D starts as the Houlsby paper's; who wants another start draws it anew.
    """

    def __init__(self, d_in: int, d_out: int, size: int, activation: Activation) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(size, d_in, dtype=torch.float32))
        self.down_bias = nn.Parameter(torch.zeros(size, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(d_out, size, dtype=torch.float32))
        self.up_bias = nn.Parameter(torch.zeros(d_out, dtype=torch.float32))
        self.activation = activation
        nn.init.trunc_normal_(self.down, std=1e-2, a=-2e-2, b=2e-2)

    def forward(self, h: Float[Tensor, "*at d_in"]) -> Float[Tensor, "*at d_out"]:
        inside = self.activation(nn.functional.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype)))
        return nn.functional.linear(inside, self.up.to(inside.dtype), self.up_bias.to(inside.dtype))


class Adapter(Delta):
    """y + U f(D y): in series with its layer."""

    def __init__(self, d: int, size: int, activation: Activation) -> None:
        super().__init__()
        self.inner = Bottleneck(d, d, size, activation)

    def forward(self, x: Tensor, y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        change: Tensor = self.inner(y)
        return y + change


class NormChange(Delta):
    """y (1 + g) + b, b only where the norm has a bias: what new weights of the norm compute, unless its own are zero."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros_like(norm.get_parameter("weight"), dtype=torch.float32))
        biased = norm._parameters.get("bias") is not None
        self.b: nn.Parameter | None = nn.Parameter(torch.zeros_like(self.g)) if biased else None

    def forward(self, x: Tensor, y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        scaled = y * (1 + self.g)
        return (scaled if self.b is None else scaled + self.b).to(y.dtype)

    def fold(self, module: nn.Module) -> None:
        raise ModelError(
            "Adapters cannot be merged: no single weight computes their non-linearity. Keep them attached."
        )
