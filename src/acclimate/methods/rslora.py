"""rsLoRA: LoRA whose change does not fade as its rank grows."""

from dataclasses import dataclass

from torch import nn

from acclimate.errors import RecipeError
from acclimate.methods.lora import LoRA


@dataclass(frozen=True)
class RsLoRA:
    """Rank-stabilised LoRA: W x + (alpha / √rank) B A x. Kalajdzievski 2023, arXiv:2312.03732, section 4.

    The same start, number of parameters and merge as LoRA. The paper keeps alpha fixed while the rank changes.
    """

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # the change is scaled by alpha / √rank
    dropout: float = 0.0  # on the input of A, while training
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        """RecipeError for numbers that make no sense."""
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise RecipeError(
                f"rslora has rank {self.rank} and dropout {self.dropout}; the rank is at least 1, "
                "the dropout at least 0 and below 1."
            )

    @property
    def plain(self) -> LoRA:
        """The LoRA that computes the same: its alpha is √rank times as large."""
        return LoRA(self.rank, self.alpha * self.rank**0.5, self.dropout, self.targets)

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach the `LowRank` of LoRA to every target. Raises RecipeError or ModelError where that cannot be."""
        self.plain.install(model, name)
