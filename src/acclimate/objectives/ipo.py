"""Identity preference optimisation."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.objectives.preference import between, duels, read, weighed
from acclimate.tokens.pairs import Pairs
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class IPO:
    """(h − 1 / (2τ))², h = log(π / π_ref) of chosen minus that of rejected. Azar et al. 2023, arXiv:2310.12036, eq. 17.

    h is a sum over tokens as in the paper; TRL divides it by the length.
    """

    tau: float = 0.1
    against: ClassVar[bool] = True  # a reference

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise RecipeError(f"tau must be above 0, not {self.tau}.")

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        found = read(model, batch, against=True)
        losses = (between(found.logprob - found.reference) - 1 / (2 * self.tau)).square()
        return weighed(duels(batch), losses, self.reward(found.logprob, found.reference, found.tokens))

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """τ log(π / π_ref), (n,)."""
        return self.tau * (logprob - reference)
