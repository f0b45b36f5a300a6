"""Several adapters of one model trained in one pass: a sweep of ranks or rates in which every trajectory is its own.

The rows of a step stand in one batch once for each adapter, so that what is frozen multiplies them all at once: that pays
where a step is small. Losses, rates, clipping and optimizer states are each adapter's own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from acclimate.errors import ModelError
from acclimate.methods.delta import PerRow, per_row, trainable, using
from acclimate.models.collate import collate
from acclimate.models.gated import lean
from acclimate.models.logprobs import hidden_at
from acclimate.models.outline import outline
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.training.fit import Course, Loss, Objective, Step
from acclimate.training.health import diagnose


def fit_together(
    model: nn.Module,
    courses: Mapping[str, Course],
    groups: Iterable[Sequence[Sequence[Encoded]]],
    objective: Objective,
    pad: int,
) -> Iterator[Mapping[str, Step]]:
    """Descend `objective` for every adapter, whose names `courses` has; after each update what happened to each.

    groups: of every update the rows, cut into what goes through the model at once. Each adapter ends where `fit` would
    have led it alone, but for rounding, and for dropout, which draws other numbers.
    Raises ModelError where something trains besides the adapters, else as `fit`.
    """
    _refuse_others(model, courses)
    for index, group in enumerate(groups, start=1):
        batches = [collate(model, rows, pad) for rows in group]
        with lean(model):
            both = zip(group, batches, strict=True)
            passes = [_descend(model, tuple(courses), rows, batch, objective, pad) for rows, batch in both]
        told = {}
        for place, (name, course) in enumerate(courses.items()):
            with using(model, name):  # for a diagnosis
                sick = partial(diagnose, model, batches, objective, index)
                told[name] = course.update(index, [losses[place] for losses in passes], batches, sick)
        yield told


def own(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The tensors of the adapter called `name` that train, by their names in the model."""
    return {path: parameter for path, parameter in trainable(model).items() if f".delta.{name}." in path}


def _refuse_others(model: nn.Module, courses: Mapping[str, Course]) -> None:
    if not outline(model).apart:
        raise ModelError(
            f"{type(model).__name__} hides its last hidden states; train its adapters one after the other."
        )
    known = {id(parameter) for course in courses.values() for parameter in course.parameters.values()}
    others = [path for path, parameter in trainable(model).items() if id(parameter) not in known]
    if others:
        raise ModelError(
            f"{others[0]} trains and is of none of the adapters {', '.join(courses)}: what they share cannot train for all."
        )


def _descend(
    model: nn.Module, names: Sequence[str], rows: Sequence[Encoded], batch: Batch, objective: Objective, pad: int
) -> list[Loss]:
    """The losses of one pass, in the order of `names`; every adapter has its gradient. Back first to the trunk, then through."""
    every, done, slopes = collate(model, [*rows] * len(names), pad), [], []
    with using(model, _choice(names, every, batch)):
        hidden = hidden_at(model, every)
        for name, part in zip(names, torch.split(hidden.detach(), len(batch.targets)), strict=True):
            with using(model, name):
                loss = objective(model, replace(batch, hidden=part.requires_grad_()))
                loss.total.backward()  # type: ignore[no-untyped-call]
            slopes.append(torch.zeros_like(part) if part.grad is None else part.grad)
            done.append(Loss(loss.total.detach(), loss.count, loss.metrics))
        hidden.backward(torch.cat(slopes))  # type: ignore[no-untyped-call]
    return done


def _choice(names: Sequence[str], every: Batch, batch: Batch) -> PerRow:
    """Who answers in `every`, which holds the rows of `batch` once for each name; nobody for what rounds its length."""
    if not every.packed:
        return per_row([name for name in names for _ in batch.lengths])
    each = sum(batch.lengths)
    rest = every.ids.numel() - each * len(names)
    return per_row([*names, None], [each] * len(names) + [rest])
