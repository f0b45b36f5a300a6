"""A change that rides on a module, and the switch that picks which change of a module answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from acclimate.errors import ModelError
from acclimate.methods import grouped


def first_input(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """What a module was called with, by place or by name."""
    return cast(Tensor, args[0] if args else next(iter(named.values())))


class Tap:
    """The input that a module was given last, for a delta that rides on another module.

    Where layers are checkpointed, the backward pass must follow its own forward pass: it hears the latest input.
    """

    heard: Tensor | None = None

    def __init__(self, module: nn.Module) -> None:
        self._hook = module.register_forward_pre_hook(self._hear, with_kwargs=True, prepend=True)

    def _hear(self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.heard = first_input(args, named)

    def forget(self) -> None:
        """Let go of activations, which hold a graph; ids are asked for again when layers are computed again."""
        if self.heard is not None and self.heard.is_floating_point():
            self.heard = None

    def remove(self) -> None:
        """Hear nothing more."""
        self._hook.remove()


class Delta(nn.Module):
    """What a method adds to one module: its output `y` for the input `x` becomes `delta(x, y)`.

    carrier: the module it rides on, once it is attached. tap: where `x` comes from, if not from that module.
    """

    tap: Tap | None = None
    _of: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no child of its own child

    @property
    def carrier(self) -> nn.Module:
        """The module that this change rides on. Its `forward` computes what it computes alone."""
        return self._of[0]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(…, d_in), (…, d_out) → (…, d_out). Computed in the dtype of `x`; parameters are float32 masters."""
        return y

    def factors(self) -> grouped.Factors | None:
        """A (rank, d_in) and B (d_out, rank) where the change is y + B A x and nothing else; None where it is another."""
        return None

    def fold(self, module: nn.Module) -> None:
        """Give `module` new weights that compute this change, never writing into the old ones.

        Raises ModelError for a change that no weight can express.
        """
        raise ModelError(f"{type(self).__name__} cannot be merged: no single weight computes it. Keep it attached.")


class Chain(Delta):
    """Several deltas of one name on one module: each changes what the one before it made of the output."""

    def __init__(self, *parts: Delta) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        raise ModelError("A chain is asked part by part.")

    def fold(self, module: nn.Module) -> None:
        for part in self.parts:
            cast(Delta, part).fold(module)


def links(delta: nn.Module) -> list[Delta]:
    """The single deltas that a delta of a `Switch` is made of, in the order they answer."""
    return [cast(Delta, part) for part in delta.parts] if isinstance(delta, Chain) else [cast(Delta, delta)]


@dataclass(frozen=True)
class PerRow:
    """Which of `names` answers for each row. `index`: (batch,), or (1, tokens) for a packed stream; −1 is the base."""

    names: tuple[str, ...]
    index: Tensor

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(place in `names` or −1, how many) of the neighbours that one name answers for, in order.

        >>> import torch
        >>> PerRow(("a", "b"), torch.tensor([1, 1, -1, 0])).runs
        ((1, 2), (-1, 1), (0, 1))
        """
        found, counts = torch.unique_consecutive(self.index, return_counts=True)
        return tuple(zip(found.tolist(), counts.tolist(), strict=True))


class Switch(nn.ModuleDict):
    """The named deltas of one module. `active` is a name, `None` (the base answers), or a choice per row."""

    active: str | PerRow | None = None
    _hooks: tuple[RemovableHandle, ...]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """y as the active changes leave it; what the others heard for it is forgotten."""
        if isinstance(self.active, PerRow):
            y = self._mixed(self.active, x, y)
        elif self.active is not None and self.active in self:
            for delta in links(self[self.active]):
                y = delta(_seen(delta, x, y), y)
        for delta in (link for each in self.values() for link in links(each)):
            if delta.tap is not None:
                delta.tap.forget()
        return y

    def low_rank(self) -> tuple[Tensor, ...] | None:
        """What answers, as the two factors of a product (`Delta.factors`); () where the base does, None for anything else."""
        if not isinstance(self.active, str | None):
            return None
        active = links(self[self.active]) if self.active is not None and self.active in self else []
        if not active:
            return ()
        return active[0].factors() if len(active) == 1 and active[0].tap is None else None

    def _mixed(self, choice: PerRow, x: Tensor, y: Tensor) -> Tensor:
        factors = self._factors(choice) if grouped.serves(x, y) else ()
        if factors:
            return grouped.changed(x, y, _rows(choice.index, y), factors)
        if choice.index.shape == y.shape[: choice.index.ndim] and len(choice.runs) <= 2 * len(choice.names) + 1:
            return self._in_runs(choice, x, y)
        index = _rows(choice.index, y)
        for position, name in enumerate(choice.names):
            rows = index == position
            if name in self and bool(rows.any()):
                for delta in links(self[name]):
                    y = y.index_put((rows,), delta(_seen(delta, x, y)[rows], y[rows]))
        return y

    def _factors(self, choice: PerRow) -> Sequence[grouped.Factors]:
        """Of every name; nothing where one of them is missing here or changes more than a product can."""
        each = [links(self[name]) if name in self else [] for name in choice.names]
        found = [deltas[0].factors() for deltas in each if len(deltas) == 1 and deltas[0].tap is None]
        known = [factors for factors in found if factors is not None]
        return known if len(known) == len(choice.names) else ()

    def _in_runs(self, choice: PerRow, x: Tensor, y: Tensor) -> Tensor:
        """As `_mixed`, where neighbours have the same adapter: views are changed and put together once."""
        axis, sizes = choice.index.ndim - 1, [count for _, count in choice.runs]
        parts, inputs = list(torch.split(y, sizes, axis)), dict[int, tuple[Tensor, ...]]()
        for place, (position, _) in enumerate(choice.runs):
            for delta in (
                links(self[choice.names[position]]) if position >= 0 and choice.names[position] in self else ()
            ):
                seen = _seen(delta, x, y)
                if id(seen) not in inputs:
                    inputs[id(seen)] = torch.split(seen, sizes, axis)
                parts[place] = delta(inputs[id(seen)][place], parts[place])
        return torch.cat(parts, axis)


def _seen(delta: Delta, x: Tensor, y: Tensor) -> Tensor:
    """What a delta is given: the input of the layer, or of the layer that it follows."""
    if delta.tap is None:
        return x
    heard = delta.tap.heard
    if heard is None or heard.shape[: y.ndim - 1] != y.shape[:-1]:
        raise ModelError(
            "A change that follows another layer's input was asked out of turn: run the whole model, "
            "and where layers are checkpointed go back before the next forward pass."
        )
    return heard


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
