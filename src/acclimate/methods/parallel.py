"""Parallel adapters: a small bottleneck beside the feed-forward sublayer."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from acclimate.methods.adapters import Bottleneck, check_bottleneck
from acclimate.methods.delta import Delta, attach
from acclimate.methods.targets import feed_forwards, width


@dataclass(frozen=True)
class Parallel:
    """FFN(x) + U relu(D x). He et al. 2022, arXiv:2110.04366, section 4.1 and table 1.

    x is what the feed-forward sublayer is given, after the norm where that comes first. 2 m d + d + m numbers a layer.
    D is drawn as LoRA's A and U starts at zero, as in the authors' code, whose dropout inside the bottleneck is left out.
    """

    bottleneck: int = 64  # m, the width inside an adapter

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        check_bottleneck("parallel", self.bottleneck)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one adapter to every layer. Raises RecipeError or ModelError where that cannot be."""
        beside_feed_forwards(model, self.bottleneck, 1.0, name)


@dataclass(frozen=True)
class ScaledParallel:
    """FFN(x) + s U relu(D x): `Parallel` with LoRA's scaling, which He et al. 2022 find best at s = 4 (section 4.5)."""

    bottleneck: int = 64  # m, the width inside an adapter
    scale: float = 4.0  # s

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        check_bottleneck("scaled_parallel", self.bottleneck)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one adapter to every layer. Raises RecipeError or ModelError where that cannot be."""
        beside_feed_forwards(model, self.bottleneck, self.scale, name)


def beside_feed_forwards(model: nn.Module, size: int, scale: float, name: str) -> None:
    """Attach one `ParallelAdapter` to every feed-forward sublayer, from the input of its first matrix to its output."""
    for first, last in feed_forwards(model):
        attach(last, ParallelAdapter(width(first).d_in, width(last).d_out, size, scale), name, source=first)


class ParallelAdapter(Delta):
    """y + s U relu(D x), x being the input of the sublayer that ends here."""

    def __init__(self, d_in: int, d_out: int, size: int, scale: float) -> None:
        super().__init__()
        self.inner = Bottleneck(d_in, d_out, size, nn.functional.relu)
        self.scale = scale
        nn.init.kaiming_uniform_(self.inner.down, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        change: Tensor = self.inner(x)
        return y + self.scale * change
