"""From logits to the next token: what is penalised, sharpened and cut off, and how one of the rest is drawn.

Filters are pure functions of logits (rows, vocab) and return logits, with -inf where a token is ruled out.
A draw is one number per row and step that depends on the seed, the row and the step alone, turned into a token by the
inverse of the cumulative distribution in the order of the ids: the batch a row happens to be in cannot change it.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acclimate.errors import InputError
from acclimate.models.logits import drawn, likeliest

LEADING = 1024  # a nucleus is looked for among this many tokens before the whole vocabulary is ranked


class Sampler(Protocol):
    """Picks one token a row."""

    def __call__(self, logits: Tensor, seen: Tensor, draws: Tensor) -> Tensor:
        """ids (rows,) from logits (rows, vocab), seen (rows, vocab) True = fed already, draws (rows,) in [0, 1)."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The likeliest token; the lowest id among equals."""

    def __call__(self, logits: Tensor, seen: Tensor, draws: Tensor) -> Tensor:
        """ids (rows,) int64."""
        return likeliest(logits)


@dataclass(frozen=True)
class Sample:
    """Repetition penalty, then temperature, then top-k, then nucleus, then one draw."""

    temperature: float = 1.0  # logits are divided by it
    top_k: int = 0  # 0: every token
    top_p: float = 1.0  # 1: every token
    repetition_penalty: float = 1.0  # 1: none

    def __post_init__(self) -> None:
        """InputError for a constant outside its range."""
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; it must be above 0 (Greedy() is its limit at 0).")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; it must be 0 (every token) or the number of tokens to keep.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (every token).")
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 is none).")

    def shaped(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Logits (rows, vocab) of the distribution that is drawn from: what a token must be scored under as sampled."""
        logits = penalise(logits, seen, self.repetition_penalty) / self.temperature
        return nucleus(top(logits, self.top_k), self.top_p)

    def __call__(self, logits: Tensor, seen: Tensor, draws: Tensor) -> Tensor:
        """ids (rows,) int64."""
        return invert(self.shaped(logits, seen), draws)


@dataclass(frozen=True)
class Beam:
    """Beam search (beam.py): the score is the sum of log-probabilities over length ** length_penalty."""

    width: int = 5
    length_penalty: float = 1.0  # above 0 long completions gain, below 0 they lose, 0 compares plain sums

    def __post_init__(self) -> None:
        """InputError for a constant outside its range."""
        if self.width < 1:
            raise InputError(f"The beam's width is {self.width}; it must be at least 1.")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"The beam's length_penalty is {self.length_penalty}; it must be a finite number.")


LIMA = Sample(temperature=0.7, top_p=0.9, repetition_penalty=1.2)  # Zhou et al. 2023, arXiv:2305.11206, section 3


def penalise(
    logits: Float[Tensor, "rows vocab"], seen: Bool[Tensor, "rows vocab"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Seen tokens lose: a positive logit is divided by the penalty, a negative one multiplied.

    Keskar et al. 2019, arXiv:1909.05858, section 4.1, whose plain division would favour seen tokens below 0.
    `seen` counts the prompt, as the authors' code does.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top(logits: Float[Tensor, "rows vocab"], k: int) -> Float[Tensor, "rows vocab"]:
    """Exactly the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833, section 5.4); the lowest ids among equals."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k).values[:, -1:]
    return logits.where(_first(logits, threshold, torch.full_like(threshold, k)), -math.inf)


def nucleus(logits: Float[Tensor, "rows vocab"], p: float) -> Float[Tensor, "rows vocab"]:
    """The fewest likeliest tokens whose mass reaches p, the one that crosses it included; the lowest ids among equals.

    Holtzman et al. 2019, arXiv:1904.09751, section 3.1, eq. 2.
    """
    if p == 1:
        return logits
    mass = logits.double().softmax(-1)
    return logits.where(_first(mass, *_crossing(mass, p, LEADING)), -math.inf)


def invert(logits: Float[Tensor, "rows vocab"], draws: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The first id whose cumulative probability, in the order of the ids, exceeds the draw in [0, 1)."""
    return drawn(logits, draws)


def uniforms(seed: int, row: int, count: int) -> Tensor:
    """(count,) float64 in [0, 1): the numbers of steps 0, 1, … of this row; a counter keyed by seed and row (Philox).

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key = np.array([seed % 2**64, row], dtype=np.uint64)
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(count))


def _crossing(mass: Tensor, p: float, leading: int) -> tuple[Tensor, Tensor]:
    """(rows, 1) each: the mass of the token at which the ranked sum reaches p, and how many tokens that takes."""
    ranked = mass.topk(min(leading, mass.shape[-1])).values
    total = ranked.cumsum(-1)
    count = (total - ranked < p).sum(-1, keepdim=True)
    threshold = ranked.gather(-1, count - 1)
    short = total[:, -1] < p
    if leading < mass.shape[-1] and bool(short.any()):
        threshold[short], count[short] = _crossing(mass[short], p, mass.shape[-1])
    return threshold, count


def _first(values: Tensor, threshold: Tensor, count: Tensor) -> Tensor:
    """True for what lies above the threshold, and for as many equal to it, lowest ids first, as make up the count."""
    above, equal = values > threshold, values == threshold
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
