"""Comparisons on their way through a run: batches with their reference, dev losses, held-out rewards, a reward's zero."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import nn

from acclimate.data.examples import Output
from acclimate.errors import ModelError
from acclimate.evaluation.preferences import HeadRewards, PolicyRewards, head_rewards
from acclimate.methods.delta import switch_of
from acclimate.methods.head import Copy
from acclimate.methods.switch import links
from acclimate.models.collate import collate, divide
from acclimate.models.heads import TaskHead, TaskModel
from acclimate.models.logprobs import logprobs
from acclimate.models.modes import evaluating
from acclimate.objectives.kto import KTO, reference_point
from acclimate.run.prepare import Prepared, with_pairs
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared, Pairs, by_document, paired
from acclimate.tokens.schedule import passes, plan
from acclimate.training.reference import base_logprobs, referenced, stands_still, undropped

DEMONSTRATIONS = 500  # training rows whose best completions a reward model's zero is set by


def holds(rows: Sequence[Any]) -> bool:
    """Whether what goes through the model are comparisons as a policy learns from them."""
    return bool(rows) and isinstance(rows[0], Compared)


def batches(
    prepared: Prepared,
    model: nn.Module,
    rows: Sequence[Any],
    cut: Sequence[tuple[int, ...]],
    autocast: torch.dtype | None = None,
) -> list[Pairs]:
    """The batches of one step, each with its reference, and what is one number for the whole step; see `quiet`."""
    quiet(prepared, model)
    made = [batch(prepared, model, [rows[i] for i in part], part) for part in cut]
    if not isinstance(prepared.recipe.objective, KTO):
        return made
    others = [rows[i] for part in cut for i in part if rows[i].other is not None]
    origin = _origin(prepared, model, others, autocast)
    return [replace(each, baseline=origin) for each in made]


def batch(prepared: Prepared, model: nn.Module, rows: Sequence[Compared], numbers: Sequence[int] = ()) -> Pairs:
    """`rows` as one batch, their prompt read once where they have one and the model can; with their reference if needed.

    ModelError where the reference would move with the model, and is not known yet.
    """
    pad = prepared.codec.pad
    made = paired(collate(model, [each for row in rows for each in row.rows], pad, numbers, share=True), rows)
    if made.reference is not None or not prepared.recipe.objective.against:
        return made
    if not stands_still(model):
        raise ModelError(
            "This method moves weights of the model itself, so its reference must be asked before training; "
            "`acclimate run` does. Train another way, or choose a method that leaves the weights alone, such as lora."
        )
    asked = [each for row in rows for each in (row.bare[: len(row.rows)] or row.rows)]
    same = made if not rows[0].bare else collate(model, asked, pad, share=True)
    return replace(made, reference=base_logprobs(model, same, len(asked)))


@torch.no_grad()
def _origin(
    prepared: Prepared, model: nn.Module, rows: Sequence[Compared], autocast: torch.dtype | None
) -> torch.Tensor:
    """KTO's reference point, from the prompts of a step with completions of others."""
    pad, ratios = prepared.codec.pad, []
    sizes = [cast(Encoded, row.other).size for row in rows]
    for part in passes(range(len(rows)), sizes, prepared.recipe.training.tokens_per_pass):
        some = [rows[i] for i in part]
        found = collate(model, [cast(Encoded, row.other) for row in some], pad)
        with evaluating(model), torch.autocast(found.ids.device.type, autocast, enabled=autocast is not None):
            own = by_document(logprobs(model, found), found.owner, len(some))[0]
        if all(row.reference for row in some):
            known = own.new_tensor([row.reference[-1] for row in some])
        else:
            bare = collate(model, [row.bare[-1] for row in some], pad) if some[0].bare else found
            known = base_logprobs(model, bare, len(some))
        ratios.append(own - known)
    return reference_point(torch.cat(ratios) if ratios else torch.zeros(0, device=next(model.parameters()).device))


@torch.no_grad()
def dev_loss(prepared: Prepared, model: nn.Module, autocast: torch.dtype | None = None) -> float:
    """The objective's mean over the dev part, in nats a prompt; KTO's reference point is that of the whole part."""
    rows = prepared.dev.rows
    total = count = 0.0
    with (
        evaluating(model),
        torch.autocast(next(model.parameters()).device.type, autocast, enabled=autocast is not None),
    ):
        parts = divide(model, range(len(rows)), [row.size for row in rows], prepared.recipe.training.tokens_per_pass)
        for each in batches(prepared, model, rows, parts, autocast):
            found = prepared.objective(model, each)
            total, count = total + float(found.total), count + float(found.count)
    return total / count


def quiet(prepared: Prepared, model: nn.Module) -> None:
    """A policy that is held against a reference trains without dropout."""
    if prepared.recipe.objective.against:
        undropped(model)


def with_reference(
    prepared: Prepared,
    model: nn.Module,
    before: Sequence[Output],
    kept: Path,
    stamp: str,
    told: Callable[[str, int], Callable[[int], None]] = lambda what, count: lambda done: None,
    autocast: torch.dtype | None = None,
) -> Prepared:
    """The same inputs with what the base said, where it is needed later. `model` has its method, and has not trained.

    The test part's is what the base `before` was measured to say. The dev part, and what of the training part the steps
    will see, are asked once, whatever the epochs; `kept` holds the answers for another try, another rate, another β.
    """
    if prepared.pairs is None or prepared.head is not None:
        return prepared
    test = tuple(
        row._replace(reference=tuple(output.scores[f"log p {i}"] for i in range(1, len(row.rows) + 1)))
        for row, output in zip(prepared.pairs.test, before[: len(prepared.pairs.test)], strict=True)
    )
    found = replace(prepared.pairs, test=test)
    if prepared.recipe.objective.against:
        planned = _planned(prepared)
        asked = (*(found.train[i] for i in planned), *found.dev)
        known = referenced(
            asked, model, prepared.codec.pad, kept, stamp, autocast, told("reference (rows)", len(asked))
        )
        train = list(found.train)
        for i, row in zip(planned, known, strict=False):
            train[i] = row
        found = replace(found, train=tuple(train), dev=tuple(known[len(planned) :]))
    return with_pairs(prepared, found)


def _planned(prepared: Prepared) -> list[int]:
    """The rows that any step sees."""
    given = prepared.recipe.training
    steps = plan([row.size for row in prepared.train.rows], given.tokens_per_step, given.steps, given.seed)
    return sorted({row for step in steps for row in step})


def answering(prepared: Prepared, model: nn.Module) -> PolicyRewards | HeadRewards:
    """What gives the held-out completions their rewards."""
    assert prepared.pairs is not None
    rows, codec = prepared.pairs.test, prepared.codec
    if prepared.head is not None:
        return HeadRewards(cast(TaskModel, model), rows, codec.pad, len(codec.front))
    return PolicyRewards(model, rows, prepared.recipe.objective, codec.pad)


@torch.no_grad()
def centre(prepared: Prepared, model: nn.Module) -> None:
    """Shift the bias of a trained reward head so that demonstrations score 0 on average. Ouyang et al. 2022, section 3.5.

    The demonstrations are the completions in first place of up to 500 training rows. Whoever loads the head has the shift.
    """
    if prepared.pairs is None or prepared.head is None:
        return
    rows = prepared.pairs.train[:DEMONSTRATIONS]
    rewards = head_rewards(cast(TaskModel, model), rows, prepared.codec.pad, len(prepared.codec.front))
    mean = fmean(
        r
        for row, given in zip(rows, rewards, strict=True)
        for rank, r in zip(row.ranks, given, strict=True)
        if rank == 1
    )
    for bias in _biases(model):
        bias.sub_(mean)
        bias.requires_grad_(True)  # it is part of what is saved


def hold_bias(prepared: Prepared, model: nn.Module) -> None:
    """The bias of a reward head waits for `centre`: comparisons say nothing of it, its gradient is 0."""
    if prepared.pairs is not None and prepared.head is not None:
        for bias in _biases(model):
            bias.requires_grad_(False)


def _biases(model: nn.Module) -> list[nn.Parameter]:
    """The bias of the head that answers: of the copy that trains in its place, else its own."""
    out = cast(TaskHead, cast(TaskModel, model).heads["default"]).out
    switch = switch_of(out)
    copies = [link for each in (switch.values() if switch is not None else ()) for link in links(each)]
    found = [copy.bias for copy in copies if isinstance(copy, Copy)] or [out.bias]
    return [bias for bias in found if bias is not None]
