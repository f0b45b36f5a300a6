"""Times of two sides, measured in turns, as ratios with their spread. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

PARITY = 1e-4  # relative, of what both sides must compute alike


@dataclass(frozen=True)
class Times:
    """Seconds and units (tokens, rows, steps) of each repetition; the first, a warm-up, is not among them."""

    seconds: tuple[float, ...]
    units: tuple[float, ...]

    @classmethod
    def of(cls, done: Sequence[Mapping[str, float]]) -> "Times":
        """Of what a side said of each repetition."""
        return cls(tuple(one["seconds"] for one in done), tuple(one["units"] for one in done))

    @property
    def rates(self) -> list[float]:
        """Units a second of each repetition."""
        return [unit / second for unit, second in zip(self.units, self.seconds, strict=True)]

    def table(self, setting_up: float, memory: int) -> dict[str, object]:
        """As `bench.json` has it."""
        rates = self.rates
        return {
            "units_per_second": median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "repetitions": len(rates),
            "setup_seconds": setting_up,
            "peak_memory_bytes": memory,
        }


def ratio(ours: Times, theirs: Times) -> dict[str, float]:
    """How many times as fast we are: the median over repetitions that stood beside each other, the least and the most.

    >>> ratio(Times((1.0, 2.0, 1.0), (8, 8, 8)), Times((4.0, 4.0, 8.0), (8, 8, 8)))
    {'median': 4.0, 'least': 2.0, 'most': 8.0}
    """
    found = [mine / other for mine, other in zip(ours.rates, theirs.rates, strict=True)]
    return {"median": median(found), "least": min(found), "most": max(found)}


def share(done: Sequence[Mapping[str, float]], limits: Mapping[str, Any], precision: str) -> float | None:
    """The median share of the machine's limit: the least seconds that flops or bytes would take, to those taken.

    >>> share([{"seconds": 2.0, "flops": 3e9}], {"gemm_float32": 2e9, "copy_bytes_per_second": 1e9}, "float32")
    0.75
    """
    rates = {"flops": float(limits[f"gemm_{precision}"]), "bytes": float(limits["copy_bytes_per_second"])}
    found = [max(one.get(name, 0.0) / rate for name, rate in rates.items()) / one["seconds"] for one in done]
    return median(found) if any(found) else None


def apart(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, float]:
    """Of everything that both sides say, how far it is apart: relative to the larger for numbers, the share of a list.

    >>> apart({"loss": 2.0, "ids": [1, 2]}, {"loss": 2.5, "ids": [1, 3], "more": 1})
    {'loss': 0.2, 'ids': 0.5}
    """
    return {name: round(_apart(mine, theirs[name]), 9) for name, mine in ours.items() if name in theirs}


def _apart(mine: object, other: object) -> float:
    if isinstance(mine, int | float) and isinstance(other, int | float):
        return abs(mine - other) / max(abs(mine), abs(other), 1e-12)
    if isinstance(mine, list) and isinstance(other, list):
        if len(mine) != len(other):
            return 1.0
        return sum(a != b for a, b in zip(mine, other, strict=True)) / max(len(mine), 1)
    raise TypeError(f"parity compares numbers and lists, not {type(mine).__name__} and {type(other).__name__}.")
