"""Right or wrong by the answer that is found in a longer text, and by what of it counts."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.metrics.intervals import wilson
from acclimate.metrics.metric import Array, Kind

MISSING = "[invalid]"  # what stands for an answer where none is found, as in lm-evaluation-harness


@dataclass(frozen=True)
class Extracted:
    """Share of texts in which the answer found equals the target.

    pattern: what an answer looks like; the whole match, or its first group that holds something. place: which match, 0 the
    first, -1 the last. Without a pattern the text itself is the answer, but for space around it.
    ignored: patterns taken out of answer and target before they are compared. fold: case does not count.
    """

    name: str
    pattern: str = ""
    place: int = 0
    ignored: tuple[str, ...] = ()
    fold: bool = False
    kind: ClassVar[Kind] = "text"
    higher_is_better: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def found(self, text: str) -> str:
        """The answer in a text, or MISSING.

        >>> Extracted("exact_match", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1).found("4 and 5 make 9")
        '9'
        >>> Extracted("exact_match", r"#### (\\\\-?[0-9\\\\.\\\\,]+)").found("It is 9.")
        '[invalid]'
        """
        if not self.pattern:
            return text.strip()
        matches = re.findall(self.pattern, text)
        if not matches:
            return MISSING
        match = matches[self.place]
        parts = [part for part in match if part] if isinstance(match, tuple) else [match]
        return parts[0].strip() if parts else MISSING

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 or 0."""
        return (float(self._compared(self.found(output.text)) == self._compared(example.target)),)

    def combine(self, rows: Array) -> float:
        """The mean of rows (n, 1)."""
        return float(np.mean(rows))

    def resampled(self, rows: Array, counts: Array) -> Array:
        """The mean of each resample: counts (draws, n) → (draws,)."""
        return np.asarray(counts @ rows[:, 0] / counts.sum(1), dtype=np.float64)

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """Wilson's."""
        low, high = wilson(np.sum(rows), len(rows), level)
        return float(low), float(high)

    def _compared(self, text: str) -> str:
        for pattern in self.ignored:
            text = re.sub(pattern, "", text)
        return text.lower() if self.fold else text
