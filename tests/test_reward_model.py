"""Reward models: all pairs of a prompt as one element, ties, batches, and a rule that one of them learns (G9, G10, G18)."""

import math
from itertools import combinations

import pytest
import torch

from acclimate.evaluation.preferences import head_rewards
from acclimate.interchange.adapter import heads_beside
from acclimate.methods import LoRA
from acclimate.methods.delta import adapt, trainable
from acclimate.models.heads import TaskModel
from acclimate.objectives import Reward
from acclimate.objectives.reward import ranked
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared, reading
from acclimate.tokens.reading import Shape, sheet
from acclimate.training.fit import fit
from acclimate.training.optim import adamw
from tests import tiny
from tests.compared import PAD, rows_for

SHAPE = Shape("regress", (), "last")


def model_of(build="gpt2", dtype=torch.float64):
    writer = tiny.build(build, dtype)
    made = TaskModel(getattr(writer, writer.base_model_prefix))
    made.add(SHAPE, seed=3)
    with torch.no_grad():
        made.heads["default"].out.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(4))
    return made.to(dtype).eval()


def sheet_of(rows):
    return sheet([reading(row, "last", 0) for row in rows], SHAPE, PAD)


def slow(rewards, ranks, halves=False):
    """−1/C(K, 2) Σ log σ(r_better − r_worse) of one prompt. Ouyang et al. 2022, eq. 1."""
    total, count = 0.0, 0
    for i, j in combinations(range(len(ranks)), 2):
        better, worse = (i, j) if ranks[i] <= ranks[j] else (j, i)
        gap = rewards[better] - rewards[worse]
        if ranks[i] != ranks[j]:
            total, count = total + math.log(1 + math.exp(-gap)), count + 1
        elif halves:
            total, count = total + (math.log(1 + math.exp(-gap)) + math.log(1 + math.exp(gap))) / 2, count + 1
    return total / count if count else None


@pytest.mark.parametrize("halves", [False, True])
def test_all_pairs_of_a_prompt_are_one_element(halves):
    draw = torch.Generator().manual_seed(0)
    sizes = [(1, 2), (2, 1, 3), (1, 2, 2, 4), (3, 1, 1, 2, 5, 5, 4)]
    rewards = [torch.randn(len(ranks), generator=draw, dtype=torch.float64) for ranks in sizes]
    group = torch.tensor([g for g, ranks in enumerate(sizes) for _ in ranks])
    ranks = torch.tensor([float(rank) for ranks in sizes for rank in ranks])
    found = ranked(torch.cat(rewards), ranks, group, halves)
    expected = [slow(r.tolist(), places, halves) for r, places in zip(rewards, sizes, strict=True)]
    assert found.total.item() == pytest.approx(sum(expected), abs=1e-9)
    assert int(found.count) == 4


def test_three_completions_by_hand():
    """Rewards 2, 1, 0 in order: gaps 1, 2, 1 over three pairs."""
    found = ranked(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 0]))
    assert found.total.item() == pytest.approx((2 * 0.31326169 + 0.12692801) / 3, abs=1e-6)
    assert float(found.metrics["pair_accuracy"]) == pytest.approx(1.0)
    assert float(found.metrics["margin"]) == pytest.approx(4 / 3)


def test_a_tie_is_skipped_or_draws_both_together():
    rewards = torch.tensor([1.0, 3.0], requires_grad=True)
    ranks, group = torch.tensor([1.0, 1.0]), torch.tensor([0, 0])
    assert int(ranked(rewards, ranks, group).count) == 0
    found = ranked(rewards, ranks, group, halves=True)
    found.total.backward()
    assert int(found.count) == 1
    assert rewards.grad[0] < 0 < rewards.grad[1]  # the lower one is raised, the higher one lowered


def test_a_wrongly_ranked_pair_gets_more_gradient_than_a_right_one():
    rewards = torch.tensor([-2.0, 2.0, 2.0, -2.0], requires_grad=True)
    ranked(rewards, torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])).total.backward()
    wrong, right = (-rewards.grad[i].item() for i in (0, 2))
    assert wrong == pytest.approx(1 / (1 + math.exp(-4)), abs=1e-6)
    assert right == pytest.approx(1 / (1 + math.exp(4)), abs=1e-6)


@pytest.mark.parametrize("build", ["gpt2", "llama", "t5"])
def test_a_reward_does_not_depend_on_its_batch(build):
    writer = tiny.build(build)
    trunk = writer.get_encoder() if build == "t5" else getattr(writer, writer.base_model_prefix)
    model = TaskModel(trunk)
    model.add(SHAPE, seed=3)
    model.double().eval()
    rows = rows_for(tiny.build("gpt2"))
    together = model(sheet_of(rows)).squeeze(-1)
    for at, each in enumerate(each for row in rows for each in row.rows):
        with torch.no_grad():
            states = trunk(input_ids=torch.tensor([each.ids])).last_hidden_state[0, -1]
            alone = model.heads["default"].out(states)
        assert together[at].item() == pytest.approx(alone.item(), abs=1e-9)
    told = [r for given in head_rewards(model, rows, PAD, budget=60) for r in given]
    assert told == pytest.approx(together.tolist(), abs=1e-9)


@pytest.mark.parametrize("cut", [[5], [1, 4], [2, 2, 1]])
def test_every_cut_into_batches_gives_the_same_step(cut):
    model, rows = model_of(), rows_for(tiny.build("gpt2"))
    parameters = dict(model.named_parameters())
    gradients = []
    for parts in ([5], cut):
        model.zero_grad()
        losses, start = [], 0
        for size in parts:
            losses.append(Reward()(model, sheet_of(rows[start : start + size])))
            losses[-1].total.backward()
            start += size
        assert sum(int(loss.count) for loss in losses) == 5
        gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-9)


def test_longer_is_better_is_learned_from_comparisons():
    """A toy rule: of two completions the one with more tokens was preferred; seen in other ids than those asked about."""
    draw = torch.Generator().manual_seed(0)

    def row(number):
        prompt = torch.randint(3, 40, (4,), generator=draw).tolist()
        sizes = sorted(torch.randperm(9, generator=draw)[:2].tolist(), reverse=True)
        ends = [(*torch.randint(3, tiny.VOCAB, (1 + n,), generator=draw).tolist(), PAD) for n in sizes]
        rows = tuple(Encoded((*prompt, *e), (False,) * 4 + (True,) * len(e)) for e in ends)
        return Compared(rows, (1, 2), f"f:{number}")

    model = model_of("gpt2", torch.float32)
    method = LoRA(rank=8, targets=("linear",))
    model = adapt(model, method, seed=0, beside=heads_beside(model, method))
    model.heads["default"].out.delta["default"].bias.requires_grad_(False)
    batches = [[sheet_of([row(n) for n in range(16)])] for _ in range(80)]
    steps = list(fit(model, batches, Reward(), adamw(trainable(model), 3e-3), rate=lambda i: 3e-3))
    asked = [row(n) for n in range(200)]
    right = [a > b for a, b in head_rewards(model.eval(), asked, PAD)]
    assert sum(right) / len(right) > 0.95
    assert steps[-1].loss < 0.3 < steps[0].loss
