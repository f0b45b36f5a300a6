"""How much better than expected a token was: from rewards and values, or from the other completions of its prompt."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Grid = Float[Tensor, "rows time"]
Mask = Bool[Tensor, "rows time"]
LEAST = 1e-8  # added to a standard deviation that is divided by


def gae(rewards: Grid, values: Grid, mask: Mask, last: Float[Tensor, " rows"], gamma: float, lam: float) -> Grid:
    """Generalised advantages (rows, time), 0 where masked. Schulman et al. 2016, arXiv:1506.02438, eq. 16.

    δₜ = rₜ + γ V(t+1) − V(t); Aₜ = Σ (γλ)ᵏ δₜ₊ₖ. mask: True = a token, from the left. last: the value after a row's last
    token, 0 where the row has ended. What is masked may be anything, NaN included.
    """
    rewards, values = rewards.where(mask, 0), values.where(mask, 0)
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    ends = mask & ~torch.cat([mask[:, 1:], mask.new_zeros(len(mask), 1)], 1)
    following = following.where(~ends, last[:, None].to(values.dtype))
    surprise = (rewards + gamma * following - values).where(mask, 0)
    found, ahead = torch.zeros_like(surprise), surprise.new_zeros(len(surprise))
    for t in reversed(range(surprise.shape[1])):
        ahead = surprise[:, t] + gamma * lam * ahead
        found[:, t] = ahead
    return found.where(mask, 0)


def whiten(x: Grid, mask: Mask, centre: bool = True) -> Grid:
    """x / σ over what is not masked, with mean 0 or (centre False) the mean it had; 0 where masked."""
    kept = x[mask]
    if len(kept) < 2:
        return x.where(mask, 0)
    spread = kept.std(unbiased=False) + LEAST
    return ((x - kept.mean()) / spread + (0 if centre else kept.mean())).where(mask, 0)


def leave_one_out(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """RLOO: each score less the mean of the others of its prompt. Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 0])).tolist()
    [-3.0, 0.0, 3.0]
    """
    total, count = _sums(scores, group)
    return scores - (total - scores) / (count - 1).clamp(min=1)


def relative(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """GRPO: (score − mean) / standard deviation within a prompt. Shao et al. 2024, arXiv:2402.03300, section 4.1.2.

    >>> [round(a, 6) for a in relative(torch.tensor([0.0, 2.0]), torch.tensor([7, 7])).tolist()]
    [-0.707107, 0.707107]
    """
    total, count = _sums(scores, group)
    off = scores - total / count
    squares, _ = _sums(off.square(), group)
    return off / ((squares / (count - 1).clamp(min=1)).sqrt() + LEAST)


def _sums(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """For every element the sum over its group, and how many they are."""
    _, place = torch.unique(group, return_inverse=True)
    count = torch.bincount(place).to(scores.dtype)
    return torch.zeros_like(count).index_add(0, place, scores)[place], count[place]
