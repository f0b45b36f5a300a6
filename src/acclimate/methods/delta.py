"""Let a small change ride on modules of a model, take it off again, or write it into the weight.

A change (a `Delta`) is a child module named `delta` plus one forward hook. It replaces nothing: the base model keeps
its classes, its parameter names and its checkpoint. `requires_grad` is the one record of what trains.
Several changes with different names may ride on one module; `Switch` picks the one that answers, for all rows or for
each row.
Loaded (`names`), trained (`trainable`) and answering (`activate`) are three independent things.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acclimate.errors import ModelError, UsageError, unknown
from acclimate.methods.targets import width


class Method(Protocol):
    """A choice of what trains: opens tensors of a frozen model, or attaches deltas to it under `name`."""

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Raises ModelError, in a sentence, where `model` has nothing that this method could train."""


class Delta(nn.Module):
    """What a method adds to one module: its output `y` for the input `x` becomes `delta(x, y)`."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(…, d_in), (…, d_out) → (…, d_out). Computed in the dtype of `x`; parameters are float32 masters."""
        return y

    def fold(self, module: nn.Module) -> None:
        """Give `module` new weights that compute this change, never writing into the old ones.

        Raises ModelError for a change that no weight can express.
        """
        raise ModelError(f"{type(self).__name__} cannot be merged: no single weight computes it. Keep it attached.")


@dataclass(frozen=True)
class PerRow:
    """Which of `names` answers for each row. `index`: (batch,), or (1, tokens) for a packed stream; −1 is the base."""

    names: tuple[str, ...]
    index: Tensor


class Switch(nn.ModuleDict):
    """The named deltas of one module. `active` is a name, `None` (the base answers), or a choice per row."""

    active: str | PerRow | None = None
    _hook: RemovableHandle

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if isinstance(self.active, PerRow):
            return self._mixed(self.active, x, y)
        return cast(Tensor, self[self.active](x, y)) if self.active is not None and self.active in self else y

    def _mixed(self, choice: PerRow, x: Tensor, y: Tensor) -> Tensor:
        index = _rows(choice.index, y)
        out = y.clone()
        for position, name in enumerate(choice.names):
            rows = index == position
            if name in self and bool(rows.any()):
                out[rows] = self[name](x[rows], y[rows])
        return out


def _rows(index: Tensor, y: Tensor) -> Tensor:
    if index.shape == y.shape[: index.ndim]:
        return index
    times = len(y) // index.numel()
    if y.ndim != 2 or len(y) != times * index.numel():  # OPT's feed-forward layers see (batch · time, d)
        raise ModelError(
            f"A layer was given {tuple(y.shape[:-1])} positions, the choice of adapters is for {tuple(index.shape)}: "
            "its input is shared by the rows. Run the adapters one after the other."
        )
    return index.flatten().repeat_interleave(times)


def attach(module: nn.Module, delta: Delta, name: str = "default") -> None:
    """Let `delta` ride on `module`; it answers at once if it is the first. Its parameters become float32 or float64."""
    check_name(name)
    weight = next(module.parameters())
    switch = switch_of(module)
    if switch is None and hasattr(module, "delta"):
        raise ModelError(f"This {type(module).__name__} has a part of its own called delta; nothing can ride on it.")
    if switch is None:
        switch = Switch()
        module.add_module("delta", switch)
        switch.active = name
        switch._hook = module.register_forward_hook(_changed, with_kwargs=True)
    if name in switch:
        raise ModelError(f"This {type(module).__name__} already carries a change named {name!r}; detach it first.")
    wide = torch.promote_types(weight.dtype, torch.float32)
    switch[name] = delta.to(device=weight.device, dtype=wide).train(module.training)


def _changed(module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> Tensor:
    x = args[0] if args else next(iter(named.values()))
    return cast(Tensor, cast(Switch, module.delta)(x, output))


def check_name(name: str) -> None:
    """Refuse a name that a child of a module cannot have (UsageError)."""
    if not name.isidentifier() or name.startswith("_") or hasattr(Switch(), name):
        raise UsageError(
            f"An adapter cannot be called {name!r}: a name is letters, digits and _, begins with a letter, and is "
            "no word that modules of torch use themselves (keys, type, train, …)."
        )


def switch_of(module: nn.Module) -> Switch | None:
    """The changes that ride on `module`, if any."""
    switch = getattr(module, "delta", None)
    return switch if isinstance(switch, Switch) else None


def carriers(model: nn.Module, name: str | None = None) -> dict[str, nn.Module]:
    """The modules that carry the change called `name` (any change, without one), by path."""
    switched = [(path, module, switch_of(module)) for path, module in model.named_modules()]
    return {
        path: module for path, module, switch in switched if switch is not None and (name is None or name in switch)
    }


def switches(model: nn.Module) -> list[Switch]:
    """Every `Switch` of `model`, in the model's order."""
    return [module for module in model.modules() if isinstance(module, Switch)]


def names(model: nn.Module) -> tuple[str, ...]:
    """The names of all changes that `model` carries."""
    return tuple(dict.fromkeys(name for switch in switches(model) for name in switch))


def require(model: nn.Module, name: str) -> None:
    """Raise ModelError unless `model` carries a change called `name`."""
    present = names(model)
    if not present:
        raise ModelError(f"{type(model).__name__} carries no adapter, so none called {name!r}.")
    if name not in present:
        raise ModelError(unknown("adapter on this model", name, present))


def activate(model: nn.Module, choice: str | PerRow | None) -> None:
    """Let the change named `choice` answer from now on; `None` is the base model."""
    for name in choice.names if isinstance(choice, PerRow) else () if choice is None else (choice,):
        require(model, name)
    for switch in switches(model):
        switch.active = choice


@contextmanager
def using(model: nn.Module, choice: str | PerRow | None) -> Iterator[nn.Module]:
    """`model` with another choice of change, for as long as the block lasts.

    Where layers are checkpointed the backward pass runs them again, so it belongs inside the block too.
    """
    before = [(switch, switch.active) for switch in switches(model)]
    activate(model, choice)
    try:
        yield model
    finally:
        for switch, active in before:
            switch.active = active


def per_row(chosen: Sequence[str | None], lengths: Sequence[int] | None = None) -> PerRow:
    """The choice for a batch: one name per row, or per document of a packed stream of the given `lengths`."""
    every = tuple(dict.fromkeys(name for name in chosen if name is not None))
    index = torch.tensor([-1 if name is None else every.index(name) for name in chosen])
    return PerRow(every, index if lengths is None else index.repeat_interleave(torch.tensor(lengths))[None])


def base(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the model itself, not those of its changes; a tied tensor is listed once."""
    riding = {id(p) for switch in switches(model) for p in switch.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in riding}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name; a tied tensor is listed once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def disabled(model: nn.Module, originals: Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
    """The base model, for as long as the block lasts: the reference policy of DPO and PPO.

    Where base weights train too (full fine-tuning), `originals` from `snapshot` takes their place.
    """
    moved = {name: p for name, p in base(model).items() if p.requires_grad}
    missing = moved.keys() - (originals or {}).keys()
    if missing:
        raise ModelError(f"{len(missing)} base tensors train, first {min(missing)}: give `disabled` their snapshot.")
    kept = {name: p.data for name, p in moved.items()}
    try:
        for name, p in moved.items():
            p.data = (originals or {})[name]
        with using(model, None):
            yield model
    finally:
        for name, p in moved.items():
            p.data = kept[name]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the base tensors that will train; take it before training."""
    return {name: p.detach().clone() for name, p in base(model).items() if p.requires_grad}


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take the change called `name` (every change, without one) off `model`. What is frozen stays frozen."""
    if name is not None:
        require(model, name)
    for module in carriers(model, name).values():
        switch = cast(Switch, module.delta)
        for present in [key for key in switch if name in (None, key)]:
            del switch[present]
        if not len(switch):
            switch._hook.remove()
            del module.delta


def merge(model: nn.Module, name: str = "default") -> None:
    """Write the change called `name` into the weights it changes, in float32, cast once; then take it off."""
    _fold(model, name)
    detach(model, name)


@contextmanager
def merged(model: nn.Module, name: str = "default") -> Iterator[nn.Module]:
    """`model` with the change written into its weights while the block lasts, and every bit as before after it."""
    originals = _fold(model, name)
    try:
        with using(model, None):
            yield model
    finally:
        _restore(originals)


@torch.no_grad()
def _fold(model: nn.Module, name: str) -> list[tuple[nn.Parameter, Tensor]]:
    require(model, name)
    carrying = carriers(model, name)
    _refuse_twins(model, carrying)
    originals = [(p, p.data) for module in carrying.values() for p in module.parameters(recurse=False)]
    try:
        for module in carrying.values():
            cast(Delta, cast(Switch, module.delta)[name]).fold(module)
    except ModelError:
        _restore(originals)
        raise
    return originals


def _restore(originals: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, data in originals:
        parameter.data = data


def _refuse_twins(model: nn.Module, carrying: Mapping[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    for path, module in carrying.items():
        twins = [o for p in module.parameters(recurse=False) for o in owners[id(p)] if o != path]
        if twins:
            raise ModelError(
                f"{path} shares its weight with {twins[0]}: merging would change both. Keep the adapter attached, "
                "or untie the embeddings first."
            )


@torch.no_grad()
def add_to_weight(module: nn.Module, change: Tensor) -> None:
    """weight += change, (d_out, d_in), computed in at least float32 and rounded once; GPT-2's Conv1D is transposed."""
    weight = cast(nn.Parameter, module.weight)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    weight.data = (wide + (change.T if width(module).transposed else change)).to(weight.dtype)


def install(model: nn.Module, method: Method, name: str = "default", seed: int = 0) -> None:
    """Let `method` add its part beside what is there; it answers if it is the first, else what answered goes on.

    The random start depends on `seed` alone, and draws nothing from the global generator.
    """
    check_name(name)
    if name in names(model):
        raise ModelError(f"This model already carries an adapter named {name!r}; detach it or choose another name.")
    answering = next((switch.active for switch in switches(model)), name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators as well
        method.install(model, name)
    for switch in switches(model):
        switch.active = answering


def adapt(model: nn.Module, method: Method, *, name: str = "default", seed: int = 0) -> nn.Module:
    """Freeze `model` with all it carries, let `method` open or add what it trains, and let that answer."""
    model.requires_grad_(False)
    install(model, method, name, seed)
    if name in names(model):
        activate(model, name)
    return model
