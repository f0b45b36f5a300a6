"""Reward models of spans: does this part hold an error of this kind?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from acclimate.tokens.feedback import Level
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class Spans:
    """Mean cross-entropy in nats over parts and kinds of error. Wu et al. 2023, arXiv:2306.01693, section 4.2.

    kinds: names and the kinds of error that each stands for, such as relevance: [Irrelevant, Redundant]; without any, every
    kind of the training rows stands for itself.
    Deviation: the head looks at the last token of a part; the paper puts a separator behind it and looks there.
    """

    level: Level = "sentence"
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, model: Any, batch: Any) -> Loss:
        answers = model(batch)
        return segmented(answers, batch.targets.view(answers.shape))


def segmented(answers: Float[Tensor, "n k"], wrong: Int[Tensor, "n k"]) -> Loss:
    """Log-odds of an error and whether there is one, (n, k) each → the sum over both, and n · k."""
    total = binary_cross_entropy_with_logits(answers, wrong.to(answers.dtype), reduction="sum")
    return Loss(total, torch.tensor(wrong.numel()))
