"""The memory of training, followed on tensors without content: what lives during two updates and a look at the dev part."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acclimate.methods.delta import trainable
from acclimate.models.gated import lean
from acclimate.models.heads import vectors
from acclimate.models.logprobs import hidden_at
from acclimate.run import reference
from acclimate.run.imagined import loss
from acclimate.run.prepare import Prepared
from acclimate.run.rollouts import rolls
from acclimate.run.train import autocast, collated, dev_loss
from acclimate.tokens.batch import Batch
from acclimate.tokens.reading import Sheet
from acclimate.tokens.truncate import Fitted
from acclimate.training import optim

ASKED = 4096  # tokens of the dev part that are looked at together
ROWS = 16  # of it, where a head answers


class Traced(NamedTuple):
    """Bytes. most: of all tensors that live at once, the model's own among them. kept: what one pass keeps to go back."""

    most: int
    kept: int


def traced(prepared: Prepared, model: nn.Module, part: Sequence[int], times: int, frozen: Sequence[int]) -> Traced:
    """Two updates of `times` passes over the rows `part`, which are the heaviest, and a look at the longest dev rows.

    frozen: the rows whose hidden states are computed once and kept, where the trunk stands still. `model` is in the mode it
    trains in; it loses its content, and is of no other use afterwards.
    """
    given = prepared.recipe.training
    batch = collated(prepared, model, [prepared.train.rows[i] for i in part], part)
    mixed = autocast(model, given)
    with lean(model), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved: dict[str, Any] = {k: mode.from_tensor(v) for k, v in vars(batch).items() if isinstance(v, Tensor)}
        own = _hollow(model, mode)
        with Living() as living:
            for tensor in own:
                living.heed(tensor)
            optimizer = None if given.paged else optim.adamw(trainable(model), given.rate)
            hollow = replace(batch, **moved)
            known = _known(prepared, model, hollow, frozen) if frozen else None
            kept = 0
            for _ in range(2):
                for _ in range(times):
                    before = living.now
                    with _mixed(model, mixed):
                        total = _loss(prepared, model, hollow if known is None else replace(hollow, hidden=known[0]))
                    kept = max(kept, living.now - before)
                    total.backward()  # type: ignore[no-untyped-call]
                    del total
                _update(model, optimizer)
            _look(prepared, model)
    return Traced(living.most, kept)


def _loss(prepared: Prepared, model: nn.Module, batch: Batch) -> Tensor:
    if rolls(prepared.recipe):
        return loss(prepared.objective, model, batch)
    return prepared.objective(model, batch).total


def _update(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is not None:
        optimizer.step()
    for parameter in trainable(model).values():
        parameter.grad = None


@torch.no_grad()
def _known(prepared: Prepared, model: Any, batch: Batch, frozen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states of the batch, and room for those of all rows that the run meets."""
    states = vectors(model, batch, model.shape(batch.task)) if isinstance(batch, Sheet) else hidden_at(model, batch)
    places = sum(sum(prepared.train.rows[row].scored) for row in set(frozen))
    return states, states.new_empty(places, states.shape[1])


def _look(prepared: Prepared, model: nn.Module) -> None:
    """The loss on the longest rows of the dev part, as many as go through the model at once."""
    rows = sorted(prepared.dev.rows, key=lambda row: -row.size)
    if not rows:
        return
    room = prepared.recipe.training.tokens_per_pass if reference.holds(rows) else ASKED
    count = ROWS if prepared.head else max(1, room // rows[0].size)
    dev_loss(replace(prepared, dev=Fitted(rows[:count], [], [])), model)


def _mixed(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(next(model.parameters()).device.type, dtype, enabled=dtype is not None)


def _hollow(model: nn.Module, mode: FakeTensorMode) -> list[Tensor]:
    """Take the content out of every tensor of `model`, and return them."""
    fakes: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = mode.from_tensor(tensor.detach())
                    fakes[id(tensor)] = (
                        nn.Parameter(fake, tensor.requires_grad) if table is module._parameters else fake
                    )
                table[name] = fakes[id(tensor)]
    return list(fakes.values())


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that live, as operations make them and let them go. now: at present. most: at any time.

    Tensors without content answer no to every question about their numbers, such as whether an id is out of place, and are
    1 where a number is asked for, such as how many updates there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most = 0, 0
        self._known: set[int] = set()

    def heed(self, tensor: Tensor) -> None:
        """Count the storage of `tensor`, unless it is known, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if given[0].dtype is torch.bool else 1.0 if given[0].is_floating_point() else 1
        found = func(*given, **(named or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.heed(tensor)
        return found
