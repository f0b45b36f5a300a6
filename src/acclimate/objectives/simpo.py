"""Simple preference optimisation: the mean log-probability is the reward, and there is no reference."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from acclimate.objectives.preference import between, duels, read, weighed
from acclimate.tokens.pairs import Pairs
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class SimPO:
    """−log σ(r(chosen) − r(rejected) − γ), r = β log π / |y|. Meng et al. 2024, arXiv:2405.14734, eq. 6."""

    beta: float = 2.0
    gamma: float = 1.0
    against: ClassVar[bool] = False  # a reference

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        found = read(model, batch)
        rewards = self.reward(found.logprob, found.reference, found.tokens)
        return weighed(duels(batch), -logsigmoid(between(rewards) - self.gamma), rewards)

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """β log π / |y|, (n,)."""
        return self.beta * logprob / tokens
