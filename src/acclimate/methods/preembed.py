"""Prefix-embedding tuning: learn the vectors of tokens before and after every prompt."""

from dataclasses import dataclass

from torch import nn

from acclimate.methods.soft import add_soft, looked_up, sampled, table_of


@dataclass(frozen=True)
class PreEmbed:
    """l_p vectors before the prompt and l_i after it. Hu et al. 2021, arXiv:2106.09685, section 5.1.

    d (l_p + l_i) parameters. The paper does not say how they start: here as vectors of common words.
    """

    prefix: int = 32  # l_p
    infix: int = 8  # l_i

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Put the soft tokens on the input embedding (an encoder's). Raises RecipeError where that cannot be."""
        table = table_of(model, "preembed", self.prefix, self.infix)
        add_soft(table, looked_up(table, sampled(table, self.prefix + self.infix)), name, back=self.infix)
