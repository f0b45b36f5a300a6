"""Train an output layer on what its frozen trunk answered once: later passes over the data never run the trunk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acclimate.models.heads import TaskModel, vectors
from acclimate.models.logprobs import hidden_at
from acclimate.models.modes import evaluating
from acclimate.models.outline import outline, trunk_of
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.tokens.reading import Sheet

LIMIT = 1 << 30  # bytes of hidden states that are kept, on the model's device and in its dtype

Part = tuple[int, ...]  # the numbers of the rows that go through the model at once
Collated = Callable[[Part], Batch]


class Reuse(NamedTuple):
    """Whether hidden states can be reused; note: a sentence where a frozen trunk has to run at every step all the same."""

    possible: bool
    note: str = ""


def reuse(model: Any, rows: Sequence[Encoded], cut: Sequence[Sequence[Part]], limit: int = LIMIT) -> Reuse:
    """Whether the steps in `cut` meet rows again whose hidden states stay the same and fit into `limit` bytes."""
    met = [row for parts in cut for part in parts for row in part]
    apart = isinstance(model, TaskModel) or outline(model).apart
    if not apart or len(set(met)) == len(met):
        return Reuse(False)
    trunk = trunk_of(model)
    if any(p.requires_grad for p in trunk.parameters()):
        return Reuse(False)
    if not _steady(trunk):
        return Reuse(False, "The frozen trunk has dropout, so its hidden states are computed again at every step.")
    width, weight = trunk.config.get_text_config().hidden_size, next(trunk.parameters())
    size = sum(sum(rows[row].scored) for row in set(met)) * width * weight.element_size()
    if size > limit:
        note = (
            f"The trunk's hidden states would take {size:,} bytes, {limit:,} may be kept; the trunk runs at every step."
        )
        return Reuse(False, note)
    return Reuse(True)


def cached_groups(
    model: nn.Module, cut: Sequence[Sequence[Part]], collated: Collated, start: int = 0
) -> Iterator[list[Batch]]:
    """The batches of every step after `start`, with the hidden states where the head looks: (n, d), without gradient.

    A row's states come from the batch in which the whole plan meets it first, whether or not that step is run again:
    a resumed run has the same bits.
    """
    first: dict[int, Part] = {}
    for part in (part for parts in cut for part in parts):
        first |= {row: part for row in part if row not in first}
    known: dict[int, Tensor] = {}
    for parts in cut[start:]:
        yield [_filled(model, collated(part), collated, first, known) for part in parts]


def _filled(
    model: nn.Module, batch: Batch, collated: Collated, first: dict[int, Part], known: dict[int, Tensor]
) -> Batch:
    for row in batch.rows:
        if row not in known:
            met = batch if first[row] == batch.rows else collated(first[row])
            known |= {r: states for r, states in _answers(model, met).items() if first[r] == met.rows}
    return replace(batch, hidden=torch.cat([known[row] for row in batch.rows]))


@torch.no_grad()
def _answers(model: Any, batch: Batch) -> dict[int, Tensor]:
    """(places, d) by row; the places of a batch stand in the order of its rows."""
    counts = torch.bincount(batch.owner, minlength=len(batch.rows)).tolist()
    states = vectors(model, batch, model.shape(batch.task)) if isinstance(batch, Sheet) else hidden_at(model, batch)
    # of a row that the batch holds twice, the first; a copy, or one row would keep the batch alive
    return {
        row: piece.clone() for row, piece in reversed(list(zip(batch.rows, torch.split(states, counts), strict=True)))
    }


@torch.no_grad()
def _steady(trunk: Any) -> bool:
    """Whether the trunk, in the mode it is in, answers as it does without dropout: tried on a few ids."""
    place = next(trunk.parameters()).device
    ids = (torch.arange(64, device=place)[None] * 7 + 3) % trunk.config.get_text_config().vocab_size
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        moving = trunk(input_ids=ids).last_hidden_state
    with evaluating(trunk):
        still = trunk(input_ids=ids).last_hidden_state
    return bool((moving - still).abs().max() <= 1e-3 * still.abs().max())
