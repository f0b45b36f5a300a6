"""One of several: the right choice of a question, the right start and end of an answer in its context."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acclimate.training.fit import Loss


@dataclass(frozen=True)
class Pick:
    """Multiple choice: −log p(right), p a softmax over the scores of a question's choices. Radford et al. 2018, 3.3."""

    def __call__(self, model: Any, batch: Any) -> Loss:
        logprob = within(model(batch).squeeze(-1), batch.owner, batch.starts)
        return picked(logprob, batch.targets + batch.starts)


@dataclass(frozen=True)
class Extract:
    """Extraction: −½ (log p(start) + log p(end)), each a softmax over a window. Devlin et al. 2018, section 4.2.

    The first place of a window stands for "not here", which a window without the answer is taught (ibid., 4.3).
    """

    def __call__(self, model: Any, batch: Any) -> Loss:
        logits = model(batch)
        both = [
            picked(within(logits[:, i], batch.owner, batch.starts), batch.targets[:, i] + batch.starts) for i in (0, 1)
        ]
        return Loss((both[0].total + both[1].total) / 2, both[0].count)


def within(scores: Float[Tensor, " n"], owner: Int[Tensor, " n"], starts: Int[Tensor, " rows"]) -> Float[Tensor, " n"]:
    """(n,), the row of each (n,), the first of each row (rows,) → (n,): log-softmax of the scores of each row."""
    low = scores.new_full((len(starts),), -torch.inf)
    top = low.scatter_reduce(0, owner, scores.detach(), "amax")
    total = torch.zeros_like(low).index_add(0, owner, (scores - top[owner]).exp())
    return scores - (top + total.log())[owner]


def picked(logprob: Float[Tensor, " n"], at: Int[Tensor, " rows"]) -> Loss:
    """(n,), (rows,) → −Σ logprob[at], and how many rows there are."""
    return Loss(-logprob[at].sum(), torch.tensor(len(at)))
