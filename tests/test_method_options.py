"""Every option of every method does something (G34): two adaptations that differ in it alone. New methods need no line."""

from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from acclimate.methods.delta import Method, adapt, trainable
from tests import tiny
from tests.adapted import SPECS, answers, train

BASE: dict[str, dict[str, Any]] = {  # where an option only matters beside another one
    "prompt.words": {"start": "labels", "words": ((4,), (5, 6), (7,))},
    "prompt.start": {"words": ((4,), (5, 6), (7,))},
    "qlora.dropout": {"dropout": 0.2},
}
OPTIONS = [(name, entry.name) for name, spec in SPECS.items() for entry in fields(spec)]  # type: ignore[arg-type]


def other(method: Method, option: str) -> Any:
    """Another value of an option: of its kind, and within what it may be."""
    value, hint = getattr(method, option), get_type_hints(type(method))[option]
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if option == "words":
        return ((8,), (9, 10), (11,))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 4
    return (
        (2 * value or 0.5)
        if isinstance(value, float) and option != "dropout"
        else 0.5
        if option == "dropout"
        else ("query",)
    )


def outcome(method: Method) -> tuple[dict[str, tuple[int, ...]], torch.Tensor]:
    """What trains, and what the model answers after two steps in training mode."""
    model = adapt(tiny.build("llama"), method).train()
    torch.manual_seed(0)
    train(model)
    return {name: tuple(p.shape) for name, p in trainable(model).items()}, answers(model.eval())


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_the_option_changes_what_is_learned(name: str, option: str) -> None:
    method = replace(SPECS[name], **BASE.get(f"{name}.{option}", {}))  # type: ignore[type-var]
    changed = replace(method, **{option: other(method, option)})  # type: ignore[type-var]
    assert getattr(changed, option) != getattr(method, option)
    (shapes, before), (again, same), (new, after) = outcome(method), outcome(method), outcome(changed)
    assert shapes == again
    assert torch.equal(before, same)
    assert new != shapes or not torch.equal(before, after)
