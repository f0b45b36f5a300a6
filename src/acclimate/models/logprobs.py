"""Log-probabilities of the scored tokens of a batch: the one place where logits are made for losses and scores."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from acclimate.models.frozen_head import formed, stands_still
from acclimate.models.gated import quick
from acclimate.models.logits import survey, surveys
from acclimate.models.outline import head_of, is_encoder_decoder, outline, trunk_of
from acclimate.tokens.batch import Batch

Read = Callable[[Tensor, Tensor], Tensor]  # logits (n, vocab) and targets (n,) → a number, or several, for each
ROWS_AT_ONCE = 512  # rows of logits that exist at a time
ROUND = 64  # rows of logits by which their number grows


def logprobs(model: nn.Module, batch: Batch) -> Float[Tensor, " n"]:
    """Natural-log probability of each target, (n,) in float32 (float64 on a float64 model).

    The head is asked at the scored places only. Its logits are made again in the backward pass, or are not needed there
    where it stands still (`frozen_head`), so that tokens × vocabulary is never held.
    """
    return _read(model, batch, _gather)


def judged(model: nn.Module, batch: Batch) -> Float[Tensor, "n 2"]:
    """As `logprobs`, and beside it 1 where the target is the likeliest token, else 0; (n, 2)."""
    return _read(model, batch, _compared)


def _read(model: nn.Module, batch: Batch, read: Read) -> Tensor:
    if not outline(model).apart:
        logits = model(**inputs(model, batch)).logits
        return read(logits.flatten(0, 1)[batch.predict], batch.targets)
    count = len(batch.targets)
    spare = (0, -count % ROUND if count > ROUND else 0)  # rows that round the head's shape, and are left out again
    targets = nn.functional.pad(batch.targets, spare)
    hidden = nn.functional.pad(hidden_at(model, batch), (0, 0, *spare))
    pieces = [_piece(head_of(model), h, t, read) for h, t in blocks(hidden, targets)]
    return torch.cat(pieces)[:count] if pieces else read(hidden.new_zeros(0, 1, dtype=torch.float32), targets)


def hidden_at(model: nn.Module, batch: Batch) -> Float[Tensor, "n d"]:
    """(n, d): the trunk's last hidden states at `batch.predict`, or what the batch knows of them already."""
    if batch.hidden is not None:
        return batch.hidden
    with quick(model):
        states: Tensor = trunk_of(model)(**inputs(model, batch)).last_hidden_state
    return states.flatten(0, 1)[batch.predict]


def blocks(hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states and targets, so many rows at a time that their logits fit."""
    return zip(torch.split(hidden, ROWS_AT_ONCE), torch.split(targets, ROWS_AT_ONCE), strict=True)


def _piece(head: nn.Module, hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"], read: Read) -> Tensor:
    if not torch.is_grad_enabled():
        return read(head(hidden), targets)
    if read is _gather and stands_still(head):
        return formed(cast(nn.Linear, head), hidden, targets)[0]
    return checkpoint(lambda h: read(head(h), targets), hidden, use_reentrant=False)  # type: ignore[no-any-return]


def _gather(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(n, vocab), (n,) → (n,): log softmax at the target, in at least float32."""
    if surveys(logits, targets):
        return survey(logits, targets, 1.0, False)[0]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.gather(-1, targets[:, None]).squeeze(-1) - wide.logsumexp(-1)


def _compared(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    return torch.stack([values := _gather(logits, targets), (logits.argmax(-1) == targets).to(values)], dim=-1)


def inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the model's forward takes for this batch."""
    if is_encoder_decoder(model):
        return {
            "input_ids": batch.source,
            "attention_mask": batch.source_mask,
            "decoder_input_ids": batch.ids,
            "decoder_attention_mask": batch.mask,
            "use_cache": False,
        }
    if batch.packed:
        return {
            "input_ids": batch.ids,
            "position_ids": batch.positions,
            "document_pieces": batch.pieces,
            "use_cache": False,
        }
    return {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
