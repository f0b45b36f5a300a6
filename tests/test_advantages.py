"""Advantages: against the sums of the papers, term by term; what is masked may be anything."""

import math

import pytest
import torch

from acclimate.objectives.advantages import gae, leave_one_out, relative, whiten


def slow(rewards, values, last, gamma, lam):
    """Schulman et al. 2016, eq. 16, written out: Σ (γλ)ᵏ (r + γ V' − V)."""
    n = len(rewards)
    after = [*values[1:], last]
    surprises = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * surprises[t + k] for k in range(n - t)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.0, 0.5), (1.0, 1.0)])
def test_generalised_advantages_are_the_papers_sums(gamma, lam):
    torch.manual_seed(0)
    lengths, last = (5, 1, 3), (0.7, 0.0, -0.2)
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    found = gae(rewards, values, mask, torch.tensor(last, dtype=torch.float64), gamma, lam)
    for row, length in enumerate(lengths):
        wanted = slow(rewards[row, :length].tolist(), values[row, :length].tolist(), last[row], gamma, lam)
        assert found[row, :length].tolist() == pytest.approx(wanted, abs=1e-12)
        assert found[row, length:].abs().sum() == 0


def test_with_gamma_and_lambda_1_returns_are_what_is_still_to_come():
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 0.25, 0.125]])
    found = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1), 1.0, 1.0)
    assert (found + values)[0].tolist() == [3.0, 2.0, 2.0]
    greedy = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1), 0.0, 1.0)
    assert greedy[0].tolist() == [0.5, -0.25, 1.875]


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e9])
def test_what_is_masked_changes_nothing(poison):
    torch.manual_seed(1)
    rewards, values = torch.randn(2, 2, 4)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    clean = gae(rewards, values, mask, torch.zeros(2), 1.0, 0.9)
    bad = [grid.masked_fill(~mask, poison) for grid in (rewards, values)]
    assert torch.equal(gae(*bad, mask, torch.zeros(2), 1.0, 0.9), clean)
    assert torch.equal(whiten(bad[0], mask), whiten(rewards, mask))


def test_whitening_keeps_or_removes_the_mean():
    x, mask = torch.tensor([[1.0, 3.0], [5.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    sd = math.sqrt(8 / 3)
    assert whiten(x, mask)[mask].tolist() == pytest.approx([-2 / sd, 0, 2 / sd], abs=1e-6)
    assert whiten(x, mask, centre=False)[mask].tolist() == pytest.approx([3 - 2 / sd, 3, 3 + 2 / sd], abs=1e-6)
    alone = torch.tensor([[True, False], [False, False]])
    assert whiten(x, alone).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_baselines_of_a_group_in_any_order():
    scores, group = torch.tensor([1.0, 10.0, 3.0, 20.0, 5.0]), torch.tensor([4, 9, 4, 9, 4])
    assert leave_one_out(scores, group).tolist() == [-3.0, -10.0, 0.0, 10.0, 3.0]
    assert relative(scores, group).tolist() == pytest.approx([-1, -math.sqrt(0.5), 0, math.sqrt(0.5), 1], abs=1e-6)
    assert relative(torch.tensor([2.0, 2.0]), torch.tensor([0, 0])).tolist() == [0.0, 0.0]
    assert leave_one_out(torch.tensor([2.0]), torch.tensor([0])).tolist() == [2.0]
