"""Kahneman-Tversky optimisation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.objectives.preference import duels, read, seen
from acclimate.tokens.pairs import Pairs
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class KTO:
    """λ_D (1 − σ(β (r − z₀))) of what is wanted, λ_U (1 − σ(β (z₀ − r))) of what is not, r = log(π / π_ref).

    Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8. The completions in first place are wanted, all others are not; every
    prompt weighs 1. z₀, how far the policy is from the reference, is the mean of r over completions of other prompts, at
    least 0, one number for a whole step however it is cut (the paper takes each micro-batch's own).
    """

    beta: float = 0.1
    desirable: float = 1.0  # λ_D
    undesirable: float = 1.0  # λ_U
    against: ClassVar[bool] = True  # a reference

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        assert batch.ranks is not None
        assert batch.group is not None
        found = read(model, batch, against=True)
        ratio = found.logprob - found.reference
        origin = ratio.new_zeros(()) if batch.baseline is None else batch.baseline.to(ratio.dtype)
        wanted = batch.ranks == 1
        sign = 2 * wanted.to(ratio.dtype) - 1
        scale = torch.where(wanted, ratio.new_tensor(self.desirable), ratio.new_tensor(self.undesirable))
        losses = scale * (1 - torch.sigmoid(sign * self.beta * (ratio - origin)))
        each = 1 / (batch.group[:, None] == batch.group[None]).sum(1).to(ratio.dtype)
        rewards = self.reward(found.logprob, found.reference, found.tokens).detach()
        return Loss((each * losses).sum(), each.sum().round().long(), seen(duels(batch).to(ratio.dtype), rewards))

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """β log(π / π_ref), (n,)."""
        return self.beta * (logprob - reference)


def reference_point(ratios: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """max(0, mean of log(π / π_ref)) over completions of other prompts; 0 without any."""
    return ratios.mean().clamp(min=0) if len(ratios) else ratios.new_zeros(())
