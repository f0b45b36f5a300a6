"""Modes of modules: dropout off for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the `with`; every module's mode is as it was found afterwards."""
    with still(model.modules()):
        yield


@contextmanager
def still(modules: Iterable[nn.Module]) -> Iterator[None]:
    """As `evaluating`, for modules that are known."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
