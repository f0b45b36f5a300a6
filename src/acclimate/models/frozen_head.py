"""An output layer that stands still: the gradient of each log-probability is formed where the log-probability is.

The logits of a token give one number, so all that the way back needs of them is one vector: with W the rows of the head,
∂ log p(t) / ∂h = (W_t − Σ p(v) W_v) / temperature. Two products instead of three, and no logits are made again.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.models.logits import survey, surveys

Numbers = Float[Tensor, " n"]


def stands_still(head: nn.Module) -> bool:
    """Whether the head is a plain linear layer that does not train and on which nothing rides."""
    plain = type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
    return plain and not any(parameter.requires_grad for parameter in head.parameters())


def formed(
    head: nn.Linear, hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"], temperature: float = 1.0
) -> tuple[Numbers, Numbers]:
    """(n, d), (n,) → natural-log probability of each target, and the entropy of the choice, which has no gradient here."""
    return _Formed.apply(hidden, targets, head.weight, head.bias, temperature)  # type: ignore[no-any-return, no-untyped-call]


def said(
    logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"], temperature: float = 1.0
) -> tuple[Numbers, Numbers]:
    """(n, vocab), (n,) → log-probability of the targets and entropy of the choice, in at least float32."""
    found = (
        survey(logits, targets, temperature, False) if surveys(logits, targets) else _said(logits, targets, temperature)
    )
    return found[0], found[1]


def _said(
    logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"], temperature: float
) -> tuple[Numbers, Numbers, Float[Tensor, "n vocab"]]:
    """As `said`, and all log-probabilities."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logs = wide - wide.logsumexp(-1, keepdim=True)
    return logs.gather(-1, targets[:, None]).squeeze(-1), -(logs.exp() * logs).sum(-1), logs


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """What `said` finds of the logits, and for the way back one vector of each token's."""
        logits = nn.functional.linear(hidden, weight, bias)
        if surveys(logits, targets):
            chosen, entropy, shares = survey(logits, targets, temperature, True)
            assert shares is not None
        else:
            chosen, entropy, logs = _said(logits, targets, temperature)
            shares = logs.exp_().scatter_add_(-1, targets[:, None], chosen.new_full((len(targets), 1), -1.0))
        ctx.save_for_backward((shares.to(logits.dtype) @ weight).to(hidden.dtype) / -temperature)
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Each token's own vector, as much of it as its log-probability is wanted to rise."""
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None].to(slope.dtype) * slope, None, None, None, None
