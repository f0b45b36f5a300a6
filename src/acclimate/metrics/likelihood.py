"""How probable the model finds a text."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.metrics.metric import Array, Kind, Summed, ratio

MOST = 700.0  # nats a token; float64 ends at e^709, and nothing is to be told apart out there


@dataclass(frozen=True)
class Perplexity(Summed):
    """exp(-Σ log p / Σ tokens) over all tokens of all texts, natural log. It depends on the tokenizer.

    >>> round(Perplexity().combine([[-3 * np.log(8), 3], [-np.log(8), 1]]), 9)
    8.0
    """

    name: ClassVar[str] = "perplexity"
    kind: ClassVar[Kind] = "likelihood"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (1.0, np.inf)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(log-probability, tokens)."""
        return output.logprob, float(output.tokens)

    def value(self, sums: Array) -> Array:
        """exp of the mean surprise a token."""
        return np.exp(np.minimum(ratio(-sums[..., 0], sums[..., 1]), MOST))


@dataclass(frozen=True)
class BitsPerByte(Summed):
    """-Σ log₂ p / Σ bytes of UTF-8: comparable between tokenizers.

    >>> BitsPerByte().combine([[-8 * np.log(2), 4]])
    2.0
    """

    name: ClassVar[str] = "bits_per_byte"
    kind: ClassVar[Kind] = "likelihood"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (0.0, np.inf)

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(log-probability, bytes)."""
        return output.logprob, float(output.bytes)

    def value(self, sums: Array) -> Array:
        """Mean surprise a byte, in bits."""
        return ratio(-sums[..., 0], sums[..., 1] * np.log(2))
