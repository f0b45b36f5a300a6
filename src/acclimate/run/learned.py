"""What a method has to show of what it learned, such as the words nearest to a soft token."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn

from acclimate.models.modes import evaluating
from acclimate.run.prepare import Prepared
from acclimate.run.train import collated

READ = 16  # training rows that are read for it

Learned = Mapping[str, Mapping[str, Mapping[str, float]]]  # title → row → column → number


class Shows(Protocol):
    """A method that can show what it learned."""

    def learned(self, model: nn.Module, read: Callable[[], None], spell: Callable[[int], str]) -> Learned:
        """read(): the model reads some of its training rows. spell(id): the token as text."""


def learned(prepared: Prepared, model: nn.Module) -> Learned:
    """What the recipe's method shows of `model`; empty for methods that have nothing to show."""
    method = prepared.recipe.method
    if not hasattr(method, "learned"):
        return {}

    def read() -> None:
        with evaluating(model), torch.no_grad():
            for row in prepared.train.rows[:READ]:
                prepared.objective(model, collated(prepared, model, [row]))

    tokenizer: Any = prepared.codec.tokenizer
    return cast(Shows, method).learned(model, read, lambda i: str(tokenizer.decode([i])))
