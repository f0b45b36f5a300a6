"""How the learning rate moves: pure functions of the step."""

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """How the rate moves over a run of so many steps."""

    def share(self, step: int, steps: int) -> float:
        """What the peak rate is multiplied by at `step`, counted from 0; in [0, 1]."""


def _warm(step: int, steps: int, warmup: float) -> tuple[float, float]:
    """The share reached by warming up (never zero), and how far the rest of the run is, both in [0, 1]."""
    first = round(warmup * steps)
    risen = min(1.0, (step + 1) / first) if first else 1.0
    return risen, min(1.0, max(0.0, (step - first) / max(1, steps - first)))


@dataclass(frozen=True)
class Constant:
    """The same rate after warming up."""

    warmup: float = 0.0  # share of the steps in which the rate rises

    def share(self, step: int, steps: int) -> float:
        return _warm(step, steps, self.warmup)[0]


@dataclass(frozen=True)
class Linear:
    """Down to zero on a line after warming up."""

    warmup: float = 0.1

    def share(self, step: int, steps: int) -> float:
        risen, gone = _warm(step, steps, self.warmup)
        return risen * (1 - gone)


@dataclass(frozen=True)
class Cosine:
    """Down to zero on half a cosine after warming up. Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, one period."""

    warmup: float = 0.1

    def share(self, step: int, steps: int) -> float:
        risen, gone = _warm(step, steps, self.warmup)
        return risen * 0.5 * (1 + math.cos(math.pi * gone))


SCHEDULES = {"constant": Constant, "linear": Linear, "cosine": Cosine}
