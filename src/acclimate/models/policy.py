"""What a policy says of the tokens it wrote: log-probability, entropy and value, from one pass through the trunk."""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from acclimate.errors import ModelError
from acclimate.models.frozen_head import formed, said, stands_still
from acclimate.models.logprobs import blocks, hidden_at
from acclimate.models.outline import head_of, outline
from acclimate.tokens.batch import Batch, asked

VALUE = "value_head"


class Scored(NamedTuple):
    """Of every scored token, each (n,): natural-log probability, entropy in nats of the choice, value before it."""

    logprob: Tensor
    entropy: Tensor
    value: Tensor


def score(model: nn.Module, batch: Batch, temperature: float = 1.0, spread: bool = False) -> Scored:
    """One pass; the probabilities are those of logits / temperature, as sampled. Values are 0 without a value head.

    spread: whether the entropy is descended too; else it may come without a gradient.
    """
    refuse(model)
    return _scored(model, hidden_at(model, batch), batch.targets, temperature, spread)


def score_to_the_end(model: nn.Module, batch: Batch, temperature: float = 1.0) -> tuple[Scored, Float[Tensor, " rows"]]:
    """As `score`, and (rows,) the value after the last token of every row: what one that was cut off is worth from there."""
    refuse(model)
    if not hasattr(model, VALUE):
        known = score(model, batch, temperature)
        return known, known.value.new_zeros(len(batch.lengths))
    ends = asked(batch, [(row, length, 0, row) for row, length in enumerate(batch.lengths)]).predict
    hidden = hidden_at(model, replace(batch, predict=torch.cat([batch.predict, ends])))
    written, last = torch.split(hidden, [len(batch.predict), len(ends)])
    return _scored(model, written, batch.targets, temperature), values(model, last)


def _scored(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, spread: bool = False) -> Scored:
    pieces = [_piece(head_of(model), h, t, temperature, spread) for h, t in blocks(hidden, targets)]
    logprob, entropy = (torch.cat([piece[i] for piece in pieces]) for i in (0, 1))
    return Scored(logprob, entropy, values(model, hidden))


def values(model: Any, hidden: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """(n, d) → (n,) in at least float32; 0 where the model has no value head."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    head = getattr(model, VALUE, None)
    with torch.autocast(wide.device.type, enabled=False):
        return wide.new_zeros(len(wide)) if head is None else head(wide).squeeze(-1)


def add_value_head(model: nn.Module) -> nn.Linear:
    """A linear value head on the trunk's last hidden states, zero at the start: no value is better than a wrong one."""
    refuse(model)
    width = int(head_of(model).weight.shape[1])
    like = next(model.parameters())
    head = nn.Linear(width, 1, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.add_module(VALUE, head)
    return head


def drop_value_head(model: nn.Module) -> None:
    """Take the value head off: only training needed it."""
    if hasattr(model, VALUE):
        delattr(model, VALUE)


def refuse(model: nn.Module) -> None:
    """ModelError for a model whose head cannot be asked apart from its trunk."""
    if not outline(model).apart:
        raise ModelError(f"{type(model).__name__} hides its last hidden states, which a policy's values are read from.")


def _piece(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, spread: bool) -> tuple[Tensor, Tensor]:
    if not torch.is_grad_enabled():
        return said(head(hidden), targets, temperature)
    if not spread and stands_still(head):
        return formed(cast(nn.Linear, head), hidden, targets, temperature)
    return checkpoint(lambda h: said(head(h), targets, temperature), hidden, use_reentrant=False)  # type: ignore[no-any-return]
