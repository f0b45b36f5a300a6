"""Odds-ratio preference optimisation: fine-tuning on what was chosen, and odds against what was not."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from acclimate.objectives.preference import between, duels, log_one_minus, read, weighed
from acclimate.tokens.pairs import Pairs
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class ORPO:
    """−log P(chosen) − λ log σ(log odds(chosen) − log odds(rejected)), P = exp(log π / |y|), odds = P / (1 − P).

    Hong et al. 2024, arXiv:2403.07691, eq. 3, 6, 7. The first term is a mean within each completion, so that every prompt
    weighs 1 (the authors' code takes the mean over a batch's tokens).
    """

    weight: float = 0.1  # λ
    against: ClassVar[bool] = False  # a reference

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        found = read(model, batch)
        odds = self.reward(found.logprob, found.reference, found.tokens)
        losses = -(found.logprob / found.tokens)[:, None] - self.weight * logsigmoid(between(odds))
        return weighed(duels(batch), losses, odds)

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log odds, (n,)."""
        return logprob / tokens - log_one_minus(logprob / tokens)
