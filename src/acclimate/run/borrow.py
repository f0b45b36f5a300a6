"""One base model for many adaptations: lent to each, and bit for bit as before when it comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.methods.delta import base, detach
from acclimate.models.allocator import return_free_pages
from acclimate.models.fingerprint import fingerprint, same_base
from acclimate.run.carry import installed
from acclimate.run.prepare import Prepared


@dataclass(frozen=True)
class _Kept:
    """The modules' tables of parameters, buffers and children, and every parameter's memory; nothing is copied."""

    tables: tuple[tuple[dict[str, Any], dict[str, Any]], ...]  # (the table itself, what it held)
    memory: tuple[tuple[nn.Parameter, Tensor], ...]


@contextmanager
def borrowed(prepared: Prepared, stamp: dict[str, str]) -> Iterator[tuple[Prepared, nn.Module]]:
    """The base with the recipe's method on it, while the block lasts.

    stamp: the fingerprint that the base had, and has again after the block. Raises ModelError where the method does
    not give it back so; the model is of no more use then.
    """
    kept = _keep(prepared.model)
    try:
        changed, model = installed(prepared)
        _copy_what_trains(model, kept)
        yield changed, model
    finally:
        _put_back(prepared.model, kept)
        return_free_pages()
    if not same_base(fingerprint(prepared.model), stamp):
        raise ModelError(
            f"{type(prepared.recipe.method).__name__} wrote into weights of the base model, and they are not as before: "
            "what comes after would start from another model."
        )


def _keep(model: nn.Module) -> _Kept:
    tables: list[dict[str, Any]] = [table for m in model.modules() for table in (m._parameters, m._buffers, m._modules)]
    return _Kept(tuple((table, dict(table)) for table in tables), tuple((p, p.data) for p in model.parameters()))


def _copy_what_trains(model: nn.Module, kept: _Kept) -> None:
    """Weights of the base that a method opened train in a copy: an optimizer writes in place."""
    known = {id(p): data for p, data in kept.memory}
    for parameter in base(model).values():
        data = known.get(id(parameter))
        if parameter.requires_grad and data is not None and parameter.data.data_ptr() == data.data_ptr():
            parameter.data = data.clone()


def _put_back(model: nn.Module, kept: _Kept) -> None:
    detach(model)
    for table, held in kept.tables:
        table.clear()
        table.update(held)
    for parameter, data in kept.memory:
        parameter.data = data
        parameter.grad = None
        parameter.requires_grad_(False)
    model.eval()
