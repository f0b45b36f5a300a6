"""The one training loop. The caller's `for` logs, evaluates, saves and stops."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from acclimate.errors import TrainingError
from acclimate.methods.delta import trainable
from acclimate.models.gated import lean
from acclimate.training.health import Watch, diagnose


@dataclass(frozen=True)
class Loss:
    """A loss before division: `total` is a sum over `count` things (tokens, rows or pairs); metrics are sums as well."""

    total: Tensor
    count: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What is descended: a pure function of the model and a batch."""

    def __call__(self, model: nn.Module, batch: Any) -> Loss: ...


@dataclass(frozen=True)
class Step:
    """One update. index counts from 1; loss is in nats per counted thing; norm is the gradient's before clipping."""

    index: int
    loss: float
    norm: float
    rate: float
    tokens: int
    scored: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    groups: Iterable[Sequence[Any]],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    rate: Callable[[int], float],
    start: int = 0,
    max_norm: float = 1.0,
    autocast: torch.dtype | None = None,
) -> Iterator[Step]:
    """Descend `objective`, one update for every group of batches, and yield what happened.

    The gradient is that of the mean over everything counted in the group, so the result does not depend on how the group
    is cut into batches. Nothing is read ahead: a generator of rollouts samples from the newest weights.
    rate(i): learning rate of the i-th update, from 0. start: how many updates came before (resuming).
    Raises TrainingError with its diagnosis when the run is sick, ModelError when a tensor that should train cannot.
    """
    course = Course(trainable(model), optimizer, rate, max_norm)
    mixed = _Mixed(next(model.parameters()).device.type, autocast)
    for index, group in enumerate(groups, start=start + 1):
        with lean(model):
            done = _descend(model, group, objective, mixed)
        yield course.update(index, done, group, partial(diagnose, model, group, objective, index))


class Course:
    """The updates of some tensors: rate, clipping, optimizer, and a watch over their gradients and their loss."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        max_norm: float = 1.0,
    ) -> None:
        self.parameters, self.optimizer, self.rate, self.max_norm = parameters, optimizer, rate, max_norm
        self.watch = Watch(parameters)

    def update(
        self, index: int, done: Sequence[Loss], group: Sequence[Any], sick: Callable[[str], TrainingError]
    ) -> Step:
        """One step along the gradients that the losses `done` of `group` left behind. sick: what to raise, and why."""
        now = self.rate(index - 1)
        for options in self.optimizer.param_groups:
            options["lr"] = now
        count = sum(float(loss.count) for loss in done)
        total = sum(float(loss.total) for loss in done)
        # a loss of 0 moves nothing: completions that all earned the same
        self.watch.gradients(index, now if total else 0.0)
        if not count:
            raise sick("no token of this batch is counted by the loss")
        norm = _mean_gradient(self.parameters, count, self.max_norm)
        if not (torch.isfinite(torch.tensor(total)) and torch.isfinite(norm)):
            raise sick("the loss or its gradient is not finite")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.watch.loss(index, total / count)
        return Step(index, total / count, float(norm), now, _tokens(group), _scored(group), _means(done, count))


class _Mixed(NamedTuple):
    device: str
    dtype: torch.dtype | None

    def __call__(self) -> Any:
        return torch.autocast(self.device, self.dtype) if self.dtype is not None else nullcontext()


def _descend(model: nn.Module, group: Sequence[Any], objective: Objective, mixed: _Mixed) -> list[Loss]:
    done = []
    for batch in group:
        with mixed():
            loss = objective(model, batch)
        if loss.total.requires_grad:
            loss.total.backward()  # type: ignore[no-untyped-call]
        done.append(Loss(loss.total.detach(), loss.count, loss.metrics))
    return done


@torch.no_grad()
def _mean_gradient(parameters: Mapping[str, nn.Parameter], count: float, max_norm: float) -> Tensor:
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    torch._foreach_div_(gradients, count)
    return nn.utils.clip_grad_norm_(parameters.values(), max_norm)


def _means(done: Sequence[Loss], count: float) -> dict[str, float]:
    names = dict.fromkeys(name for loss in done for name in loss.metrics)
    return {name: sum(float(loss.metrics.get(name, 0)) for loss in done) / count for name in names}


def _tokens(group: Sequence[Any]) -> int:
    return sum(getattr(batch, "tokens", 0) for batch in group)


def _scored(group: Sequence[Any]) -> int:
    return sum(len(batch.targets) for batch in group if hasattr(batch, "targets"))
