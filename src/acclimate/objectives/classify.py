"""Labels of texts, and tags of words."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acclimate.training.fit import Loss


@dataclass(frozen=True)
class Classify:
    """Cross-entropy of the right label in nats: −1/Σw Σ w_y log p(y | x), over texts or over words.

    weights: one for each label, or none. The sum of the weights is what is counted, so the mean over a step is torch's
    weighted mean however the step is cut.
    """

    weights: tuple[float, ...] = ()

    def __call__(self, model: Any, batch: Any) -> Loss:
        return cross_entropy(model(batch), batch.targets, self.weights)


def cross_entropy(logits: Float[Tensor, "n k"], targets: Int[Tensor, " n"], weights: tuple[float, ...] = ()) -> Loss:
    """(n, k), (n,) → the weighted sum over n, and the sum of the weights."""
    logprob = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    if not weights:
        return Loss(-logprob.sum(), torch.tensor(len(targets)))
    weight = logits.new_tensor(weights)[targets]
    return Loss(-(weight * logprob).sum(), weight.sum())


def balanced(counts: tuple[int, ...]) -> tuple[float, ...]:
    """n / (k n_c) for each label c: every label weighs the same in all. One that never occurs weighs nothing.

    King & Zeng 2001, Political Analysis 9, as scikit-learn's "balanced" has it.

    >>> balanced((1, 3))
    (2.0, 0.6666666666666666)
    """
    n, k = sum(counts), len(counts)
    return tuple(n / (k * count) if count else 0.0 for count in counts)
