"""Language modelling: the objective of fine-tuning on answers, on conversations and on running text."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.models.logprobs import logprobs
from acclimate.tokens.batch import Batch
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class LM:
    """Mean negative log-likelihood in nats per scored token: −1/N Σ log p(xₜ | x₍<t₎), N over the whole step."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        return by_token(logprobs(model, batch))


@dataclass(frozen=True)
class SequenceLM:
    """As LM, but every row counts the same, however long its answer: the mean over rows of the mean over their tokens."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        return by_row(logprobs(model, batch), batch.owner, len(batch.lengths))


def by_token(logprob: Float[Tensor, " n"]) -> Loss:
    """(n,) → the sum over tokens, and how many there are."""
    return Loss(-logprob.sum(), torch.tensor(len(logprob)))


def by_row(logprob: Float[Tensor, " n"], owner: Int[Tensor, " n"], rows: int) -> Loss:
    """(n,), (n,) → the sum over rows of their means, and how many of the `rows` there are have any."""
    counts = owner.new_zeros(rows).index_add(0, owner, torch.ones_like(owner))
    return Loss(-(logprob / counts[owner]).sum(), (counts > 0).sum())
