"""Mix-and-match adapters: a short prefix for attention, a scaled parallel adapter for the feed-forward sublayer."""

from dataclasses import dataclass

from torch import nn

from acclimate.methods.parallel import ScaledParallel
from acclimate.methods.prefix import Prefix


@dataclass(frozen=True)
class MAM:
    """`Prefix` at every attention and `ScaledParallel` at every feed-forward sublayer, under one name.

    He et al. 2022, arXiv:2110.04366, section 4.6 and table 6: prefix length 30, bottleneck 512, s = 4. In a model
    as narrow as 512 that bottleneck would be no bottleneck; choose a smaller one there.
    """

    length: int = 30
    middle: int = 512  # of the prefix's reparameterisation; 0: keys and values train directly
    bottleneck: int = 512
    scale: float = 4.0

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach both. Raises RecipeError or ModelError where either cannot be."""
        Prefix(self.length, self.middle).install(model, name)
        ScaledParallel(self.bottleneck, self.scale).install(model, name)
