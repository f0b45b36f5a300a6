"""Let a small change ride on modules of a model, take it off again, or write it into the weight.

A change (a `Delta`) is a child module named `delta` plus one forward hook. It replaces nothing: the base model keeps
its classes, its parameter names and its checkpoint. `requires_grad` is the one record of what trains.
Several changes with different names may ride on one module; `Switch` picks the one that answers, for all rows or for
each row.
Loaded (`names`), trained (`trainable`) and answering (`activate`) are three independent things.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from acclimate.errors import ModelError, UsageError, unknown
from acclimate.methods.nf4 import NF4Linear
from acclimate.methods.switch import Chain as Chain
from acclimate.methods.switch import Delta as Delta
from acclimate.methods.switch import PerRow as PerRow
from acclimate.methods.switch import Switch as Switch
from acclimate.methods.switch import Tap, first_input, links
from acclimate.methods.targets import width


class Method(Protocol):
    """A choice of what trains: opens tensors of a frozen model, or attaches deltas to it under `name`."""

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Raises ModelError, in a sentence, where `model` has nothing that this method could train."""


def attach(module: nn.Module, delta: Delta, name: str = "default", source: nn.Module | None = None) -> None:
    """Let `delta` ride on `module`; it answers at once if it is the first. Its parameters become float32 or float64.

    It is given the input of `source` where that is another module, or an embedding (whose ids may then lie past the
    end of its vocabulary). A second delta of the same name answers after the first.
    """
    check_name(name)
    switch = switch_of(module)
    if switch is None and hasattr(module, "delta"):
        raise ModelError(f"This {type(module).__name__} has a part of its own called delta; nothing can ride on it.")
    if switch is None:
        switch = Switch()
        module.add_module("delta", switch)
        switch.active = name
        enter = [module.register_forward_pre_hook(_known_ids)] if isinstance(module, nn.Embedding) else []
        switch._hooks = (*enter, module.register_forward_hook(_changed, with_kwargs=True))
    delta._of = (module,)
    delta.tap = None if source is None else Tap(source)
    weight = next(t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    wide = torch.promote_types(weight.dtype, torch.float32)
    moved = delta.to(device=weight.device, dtype=wide).train(module.training)
    switch[name] = Chain(*links(switch[name]), moved) if name in switch else moved


def _changed(module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
    """Layers may answer with a tuple, the hidden states first."""
    x, switch = first_input(args, named), cast(Switch, module.delta)
    return (switch(x, output[0]), *output[1:]) if isinstance(output, tuple) else switch(x, output)


def _known_ids(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Ids past the end of the vocabulary mean rows of a delta; the embedding itself is asked for another id there."""
    ids, size = args[0], cast(nn.Embedding, module).num_embeddings
    soft = ids >= size
    if not bool(soft.any()):
        return None
    if bool((soft & ~_answered(cast(Switch, module.delta), ids)).any()):
        raise ModelError(
            f"Id {int(ids.max())} is past the vocabulary of {size}: it is a soft token of an adapter, and the base "
            "model or another adapter answers. Ask those without soft tokens."
        )
    return (ids.masked_fill(soft, 0), *args[1:])


def _answered(switch: Switch, ids: Tensor) -> Tensor:
    """Where, in the shape of `ids`, a change of this embedding answers."""
    active = switch.active
    if not isinstance(active, PerRow):
        return torch.full_like(ids, active is not None and active in switch, dtype=torch.bool)
    known = torch.tensor([*(name in switch for name in active.names), False])  # the last is where −1 points: the base
    here = known[active.index].to(ids.device)
    return here if here.shape == ids.shape else here[:, None].expand_as(ids)


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
            for delta in links(switch[present]):
                if delta.tap is not None:
                    delta.tap.remove()
            del switch[present]
        if not len(switch):
            for hook in switch._hooks:
                hook.remove()
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
    _refuse_packed(carrying)
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
        if all(type(link).fold is Delta.fold for each in cast(Switch, module.delta).values() for link in links(each)):
            continue  # it cannot be merged anyway, and says so itself
        twins = [o for p in module.parameters(recurse=False) for o in owners[id(p)] if o != path]
        if twins:
            raise ModelError(
                f"{path} shares its weight with {twins[0]}: merging would change both. Keep the adapter attached, "
                "or untie the embeddings first."
            )


def _refuse_packed(carrying: Mapping[str, nn.Module]) -> None:
    packed = [path for path, module in carrying.items() if isinstance(module, NF4Linear)]
    if packed:
        raise ModelError(
            f"{packed[0]} holds its weight in four bits, which would round most of the change away. Save the adapter and "
            "let acclimate merge write it into the unquantised base; in Python, open the base anew and give load_adapter "
            "packed=False."
        )


@torch.no_grad()
def add_to_weight(module: nn.Module, change: Tensor) -> None:
    """weight += change, (d_out, d_in), computed in at least float32 and rounded once; GPT-2's Conv1D is transposed."""
    weight = cast(nn.Parameter, module.weight)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    weight.data = (wide + (change.T if width(module).transposed else change)).to(weight.dtype)


def install(
    model: nn.Module, method: Method, name: str = "default", seed: int = 0, beside: Method | None = None
) -> None:
    """Let `method` add its part beside what is there; it answers if it is the first, else what answered goes on.

    beside: another method whose part has the same name, such as the head of a new task.
    The random start depends on `seed` alone, and draws nothing from the global generator.
    """
    check_name(name)
    if name in names(model):
        raise ModelError(f"This model already carries an adapter named {name!r}; detach it or choose another name.")
    answering = next((switch.active for switch in switches(model)), name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators as well
        method.install(model, name)
        if beside is not None:
            beside.install(model, name)
    for switch in switches(model):
        switch.active = answering


def adapt(
    model: nn.Module, method: Method, *, name: str = "default", seed: int = 0, beside: Method | None = None
) -> nn.Module:
    """Freeze `model` with all it carries, let `method` (and `beside`) open or add what it trains, and let that answer."""
    model.requires_grad_(False)
    install(model, method, name, seed, beside)
    if name in names(model):
        activate(model, name)
    return model
