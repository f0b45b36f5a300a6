"""Several tasks at once: one trunk, a head each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acclimate.training.fit import Loss, Objective


@dataclass(frozen=True)
class Several:
    """Each batch by the objective of its task. Everything counted weighs the same, whichever task's it is.

    A step whose group of batches holds several tasks descends them together (Caruana 1997, Machine Learning 28).
    """

    of: Mapping[str, Objective]

    def __call__(self, model: Any, batch: Any) -> Loss:
        return self.of[batch.task](model, batch)
