"""Direct preference optimisation."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from acclimate.errors import RecipeError
from acclimate.objectives.preference import between, duels, read, weighed
from acclimate.tokens.pairs import Pairs
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class DPO:
    """−log σ(r(chosen) − r(rejected)), r = β log(π / π_ref) of the completion. Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

    smoothing: how often people are thought to have erred, conservative DPO (Mitchell 2023). A ranking of K completions
    is all its pairs, of weight 1 together, ties left out.
    """

    beta: float = 0.1
    smoothing: float = 0.0
    against: ClassVar[bool] = True  # a reference

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 0.5:
            raise RecipeError(f"smoothing must be 0 or more and below 0.5, not {self.smoothing}.")

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        found = read(model, batch, against=True)
        rewards = self.reward(found.logprob, found.reference, found.tokens)
        return weighed(duels(batch), smoothed(between(rewards), self.smoothing), rewards)

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """β log(π / π_ref), (n,): the reward that the policy is optimal for, but for what depends on the prompt alone (eq. 5)."""
        return self.beta * (logprob - reference)


def smoothed(margin: Float[Tensor, "n n"], smoothing: float = 0.0) -> Float[Tensor, "n n"]:
    """−(1 − ε) log σ(margin) − ε log σ(−margin)."""
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
