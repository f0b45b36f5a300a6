"""Reward models: a number for a completion, from comparisons."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from acclimate.objectives.preference import beats, between, shares, weighed
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class Reward:
    """−1/C(K, 2) Σ log σ(r(better) − r(worse)) over all pairs of a prompt, one element. Ouyang et al. 2022, eq. 1.

    ties: pairs of one place are skipped, and the others share the prompt's weight; or they count half in either
    direction, which draws their rewards together.
    """

    ties: Literal["skip", "half"] = "skip"

    def __call__(self, model: Any, batch: Any) -> Loss:
        return ranked(model(batch).squeeze(-1), batch.targets, batch.owner, self.ties == "half")


def ranked(
    rewards: Float[Tensor, " n"], ranks: Float[Tensor, " n"], group: Int[Tensor, " n"], halves: bool = False
) -> Loss:
    """Rewards of completions, their places, their prompts, (n,) each → the sum over prompts, and how many have a pair."""
    counted = beats(ranks, group).to(torch.float64)
    if halves:
        tied = (group[:, None] == group[None]) & (ranks[:, None] == ranks[None])
        counted = counted + (tied & ~torch.eye(len(ranks), dtype=torch.bool, device=ranks.device)) / 2
    return weighed(shares(counted, group), -logsigmoid(between(rewards)), rewards)
