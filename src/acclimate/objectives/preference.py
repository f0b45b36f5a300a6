"""What all objectives on compared completions share: log-probabilities of completions, and who should beat whom."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.models.logprobs import logprobs
from acclimate.tokens.pairs import Pairs, by_document
from acclimate.training.fit import Loss


class Read(NamedTuple):
    """(documents,) logprob: Σ log π in nats. tokens: scored ones. reference: Σ log p of the reference, or zeros.

    each: (n,) log π of every scored token.
    """

    logprob: Tensor
    tokens: Tensor
    reference: Tensor
    each: Tensor


def read(model: nn.Module, batch: Pairs, *, against: bool = False) -> Read:
    """Every completion of the batch. against: the reference is asked for; ModelError where the batch has none."""
    assert batch.ranks is not None
    each = logprobs(model, batch)
    logprob, tokens = by_document(each, batch.owner, len(batch.ranks))
    if against and batch.reference is None:
        raise ModelError("This objective compares the model with its reference, whose log-probabilities are not here.")
    reference = torch.zeros_like(logprob) if batch.reference is None else batch.reference.to(logprob.dtype)
    return Read(logprob, tokens, reference, each)


def duels(batch: Any) -> Float[Tensor, "documents documents"]:
    """[i, j]: 1 / (pairs of the prompt) where completion i was preferred to j, so that every prompt weighs 1."""
    return shares(beats(batch.ranks, batch.group), batch.group)


def beats(ranks: Tensor, group: Int[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """[i, j]: whether i has a better place than j at the same prompt. Ties beat nobody."""
    return (group[:, None] == group[None]) & (ranks[:, None] < ranks[None])


def shares(counted: Tensor, group: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Counted pairs (n, n), as they are or as numbers, over their sum at each prompt; prompts without any stay 0."""
    wide = counted.to(torch.float64)
    same = (group[:, None] == group[None]).to(wide.dtype)
    whole = same @ wide.sum(1)
    return wide / whole.clamp(min=torch.finfo(wide.dtype).tiny)[:, None]


def between(scores: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """(n,) → [i, j]: scores[i] − scores[j]."""
    return scores[:, None] - scores[None]


def weighed(weight: Float[Tensor, "n n"], losses: Float[Tensor, "n n"], rewards: Float[Tensor, " n"]) -> Loss:
    """Σ weight · losses over pairs, counted in prompts; the rewards of both sides, their margin, who is right (ties ½)."""
    weight = weight.to(losses.dtype)
    return Loss((weight * losses).sum(), weight.sum().round().long(), seen(weight, rewards.detach()))


def seen(weight: Float[Tensor, "n n"], rewards: Float[Tensor, " n"]) -> Mapping[str, Tensor]:
    """What a step's log shows, as sums over prompts."""
    margin = between(rewards)
    right = (margin > 0).to(weight.dtype) + (margin == 0).to(weight.dtype) / 2
    return {
        "pair_accuracy": (weight * right).sum(),
        "margin": (weight * margin).sum(),
        "reward_chosen": (weight.sum(1) * rewards).sum(),
        "reward_rejected": (weight.sum(0) * rewards).sum(),
    }


def log_one_minus(logprob: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log(1 − p) of log p; a p that rounds to 1 counts as the largest number below it. Mächler 2012, eq. 7."""
    below = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    near = below > -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, below, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, below))),
    )
