"""Objectives on comparisons against loops written from the papers, numbers by hand, and every cut of a step (G9, G15)."""

import math
from dataclasses import fields, replace
from itertools import combinations

import pytest
import torch

from acclimate.errors import ModelError, RecipeError
from acclimate.methods import LoRA
from acclimate.methods.delta import adapt, trainable
from acclimate.models.collate import collate
from acclimate.objectives import DPO, IPO, KTO, OBJECTIVES, ORPO, PreferredFT, SimPO, Unlikelihood
from acclimate.objectives.kto import reference_point
from acclimate.objectives.preference import log_one_minus
from acclimate.training.fit import fit
from tests import tiny
from tests.compared import batch_of, known, logprobs_of, rows_for

WRITERS = ["llama", "gpt2", "t5"]
ORIGIN = 0.7
LLAMA = 1e-4  # its norms are float32 on any model: what is read once has its gradient rounded once
FAMILY = {
    "dpo": DPO(beta=0.3),
    "cdpo": DPO(beta=0.3, smoothing=0.1),
    "ipo": IPO(tau=0.2),
    "kto": KTO(beta=0.3, desirable=1.2, undesirable=0.8),
    "simpo": SimPO(beta=2.0, gamma=0.6),
    "orpo": ORPO(weight=0.4),
    "unlikelihood": Unlikelihood(alpha=0.5),
}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def pairs_of(ranks):
    """Every (better, worse) of one prompt."""
    both = [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]]
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in both]


def dpo(tokens, reference, ranks, beta=0.3, flip=0.0):
    """Rafailov et al. 2023, eq. 7; Mitchell 2023, eq. 3."""
    losses = []
    for w, x in pairs_of(ranks):
        inside = beta * (sum(tokens[w]) - reference[w]) - beta * (sum(tokens[x]) - reference[x])
        losses.append(-(1 - flip) * math.log(sigmoid(inside)) - flip * math.log(sigmoid(-inside)))
    return losses


def ipo(tokens, reference, ranks):
    """Azar et al. 2023, eq. 17."""
    ratio = [sum(t) - r for t, r in zip(tokens, reference, strict=True)]
    return [(ratio[w] - ratio[x] - 1 / (2 * 0.2)) ** 2 for w, x in pairs_of(ranks)]


def kto(tokens, reference, ranks):
    """Ethayarajh et al. 2024, eq. 8: λ_y − v(x, y)."""
    losses = []
    for t, r, rank in zip(tokens, reference, ranks, strict=True):
        ratio = sum(t) - r
        wanted = 1.2 - 1.2 * sigmoid(0.3 * (ratio - ORIGIN))
        losses.append(wanted if rank == 1 else 0.8 - 0.8 * sigmoid(0.3 * (ORIGIN - ratio)))
    return losses


def simpo(tokens, reference, ranks):
    """Meng et al. 2024, eq. 6."""
    mean = [sum(t) / len(t) for t in tokens]
    return [-math.log(sigmoid(2.0 * mean[w] - 2.0 * mean[x] - 0.6)) for w, x in pairs_of(ranks)]


def orpo(tokens, reference, ranks):
    """Hong et al. 2024, eq. 3, 6, 7."""
    chance = [math.exp(sum(t) / len(t)) for t in tokens]
    odds = [p / (1 - p) for p in chance]
    return [-math.log(chance[w]) - 0.4 * math.log(sigmoid(math.log(odds[w] / odds[x]))) for w, x in pairs_of(ranks)]


def unlikelihood(tokens, reference, ranks):
    """Welleck et al. 2019, eq. 3, with the rejected completion's tokens as the negative candidates."""
    losses = []
    for w, x in pairs_of(ranks):
        wanted = -sum(tokens[w]) / len(tokens[w])
        losses.append(wanted - 0.5 * sum(math.log(1 - math.exp(y)) for y in tokens[x]) / len(tokens[x]))
    return losses


SLOW = {
    "dpo": dpo,
    "cdpo": lambda *given: dpo(*given, flip=0.1),
    "ipo": ipo,
    "kto": kto,
    "simpo": simpo,
    "orpo": orpo,
    "unlikelihood": unlikelihood,
}


def with_origin(batch):
    return replace(batch, baseline=torch.tensor(ORIGIN, dtype=torch.float64))


@pytest.mark.parametrize("build", WRITERS)
@pytest.mark.parametrize("name", FAMILY)
def test_the_loss_is_that_of_the_paper(name, build):
    model = tiny.build(build)
    rows = rows_for(model)
    means = []
    for row in rows:
        tokens = [logprobs_of(model, each) for each in row.rows]
        losses = SLOW[name](tokens, [known(row, i) for i in range(len(tokens))], row.ranks)
        means.append(sum(losses) / len(losses))
    found = FAMILY[name](model, with_origin(batch_of(model, rows)))
    assert int(found.count) == len(rows)
    assert found.total.item() == pytest.approx(sum(means), rel=0, abs=1e-9)


def test_preferred_ft_is_language_modelling_of_what_was_chosen():
    model = tiny.build("llama")
    chosen = [row.rows[row.ranks.index(1)] for row in rows_for(model)]
    tokens = [x for row in chosen for x in logprobs_of(model, row)]
    found = PreferredFT()(model, collate(model, chosen, 2))
    assert (found.total / found.count).item() == pytest.approx(-sum(tokens) / len(tokens), abs=1e-9)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("build", WRITERS)
@pytest.mark.parametrize("cut", [[1, 4], [1, 1, 1, 1, 1]])
def test_every_cut_into_batches_gives_the_same_step(name, build, cut):
    base = adapt(tiny.build(build), LoRA(rank=2), seed=1)
    with torch.no_grad():
        for parameter in trainable(base).values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    rows = rows_for(base)
    told = []
    for parts in ([5], cut):
        start, batches = 0, []
        for size in parts:
            batches.append(with_origin(batch_of(base, rows[start : start + size], share=len(parts) > 1)))
            start += size
        total, count, metrics = 0.0, 0, {}
        for batch in batches:
            loss = FAMILY[name](base, batch)
            loss.total.backward()
            total, count = total + loss.total.item(), count + int(loss.count)
            metrics = {key: metrics.get(key, 0.0) + float(value) for key, value in loss.metrics.items()}
        gradients = {n: p.grad / count for n, p in trainable(base).items()}
        told.append((total / count, {k: v / count for k, v in metrics.items()}, gradients))
        base.zero_grad()
    assert told[0][0] == pytest.approx(told[1][0], abs=1e-9)
    assert told[0][1] == pytest.approx(told[1][1], abs=1e-9)
    bound = LLAMA if build == "llama" else 1e-9
    for key, gradient in told[0][2].items():
        torch.testing.assert_close(told[1][2][key], gradient, rtol=bound, atol=bound)


def test_the_loss_types_differ():
    model = tiny.build("llama")
    batch = with_origin(batch_of(model, rows_for(model)))
    values = [objective(model, batch).total.item() for objective in FAMILY.values()]
    assert all(abs(a - b) > 1e-3 for a, b in combinations(values, 2))


# Numbers by hand


def at_start(objective, model, rows):
    """The loss where the policy is its own reference."""
    batch = batch_of(model, rows)
    own = [sum(logprobs_of(model, each)) for row in rows for each in row.rows]
    return objective(model, replace(batch, reference=torch.tensor(own, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (DPO(), math.log(2)),
        (DPO(beta=7.0, smoothing=0.3), math.log(2)),
        (IPO(tau=0.1), 25.0),
        (IPO(tau=0.5), 1.0),
        (KTO(), 0.5),
        (KTO(desirable=2.0, undesirable=1.0), 0.75),
    ],
)
def test_a_policy_that_is_its_reference_has_a_known_loss(objective, value):
    model = tiny.build("llama")
    found = at_start(objective, model, rows_for(model, sizes=((1, 2), (2, 1))))
    assert (found.total / found.count).item() == pytest.approx(value, abs=1e-9)
    assert float(found.metrics["margin"]) == pytest.approx(0, abs=1e-9)


def test_the_gradient_at_the_start_is_half_beta_times_the_difference_of_scores():
    """∇ = −β σ(0) (∇ log π(chosen) − ∇ log π(rejected)). Rafailov et al. 2023, section 4."""
    model = tiny.build("gpt2").requires_grad_(True)
    rows = rows_for(model, sizes=((1, 2),))
    at_start(DPO(beta=0.4), model, rows).total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row, sign in zip(rows[0].rows, (-1, 1), strict=True):
        ids = torch.tensor([row.ids])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        (sign * 0.5 * 0.4 * logprobs[torch.tensor(row.scored[1:])].sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-9)


def test_swapping_chosen_and_rejected_negates_the_margin_exactly():
    model = tiny.build("llama")
    rows = rows_for(model, sizes=((1, 2),))
    swapped = [row._replace(ranks=(2, 1)) for row in rows]
    one, other = (DPO()(model, batch_of(model, some)).metrics for some in (rows, swapped))
    assert float(one["margin"]) == -float(other["margin"]) != 0
    assert float(one["reward_chosen"]) == float(other["reward_rejected"])
    assert {float(one["pair_accuracy"]), float(other["pair_accuracy"])} == {0.0, 1.0}


def test_tied_completions_are_no_pair_and_a_prompt_of_ties_does_not_count():
    model = tiny.build("llama")
    rows = rows_for(model, sizes=((1, 1), (1, 2)))
    both, one = (DPO()(model, batch_of(model, some)) for some in (rows, rows[1:]))
    assert int(both.count) == int(one.count) == 1
    assert both.total.item() == pytest.approx(one.total.item(), abs=1e-9)


def test_dpo_asks_for_its_reference_and_simpo_does_not():
    model = tiny.build("llama")
    batch = batch_of(model, rows_for(model), reference=False)
    with pytest.raises(ModelError, match="compares the model with its reference"):
        DPO()(model, batch)
    assert torch.equal(SimPO()(model, batch).total, SimPO()(model, batch_of(model, rows_for(model))).total)


def test_kto_measures_from_how_far_the_policy_has_moved():
    assert float(reference_point(torch.tensor([1.0, 2.0, 6.0]))) == 3.0
    assert float(reference_point(torch.tensor([-4.0, 1.0]))) == 0.0
    assert float(reference_point(torch.tensor([]))) == 0.0


def test_one_minus_p_is_exact_at_both_ends():
    logprob = torch.tensor([-1e-12, -0.3, -0.9, -60.0], dtype=torch.float64, requires_grad=True)
    found = log_one_minus(logprob)
    expected = [math.log(1e-12), math.log(1 - math.exp(-0.3)), math.log(1 - math.exp(-0.9)), -math.exp(-60.0)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    found.sum().backward()
    assert bool(torch.isfinite(logprob.grad).all())
    assert bool(torch.isfinite(log_one_minus(torch.zeros(3))).all())  # p rounded to 1


@pytest.mark.parametrize("smoothing", [0.5, -0.1])
def test_a_smoothing_that_forgets_who_was_preferred_is_refused(smoothing):
    with pytest.raises(RecipeError, match="smoothing must be 0 or more"):
        DPO(smoothing=smoothing)


def test_ipo_refuses_a_tau_of_nothing():
    with pytest.raises(RecipeError, match="above 0"):
        IPO(tau=0.0)


@pytest.mark.parametrize("name", FAMILY)
def test_each_learns_what_was_preferred(name):
    """Eight steps on one batch: the loss falls, and every reward of the pairs is in order."""
    model = adapt(tiny.build("llama"), LoRA(rank=4), seed=0)
    rows = rows_for(model, sizes=((1, 2), (2, 1), (1, 2)))
    batch = batch_of(model, rows, reference=False)
    own = [sum(logprobs_of(model, each)) for row in rows for each in row.rows]
    batch = replace(batch, reference=torch.tensor(own, dtype=torch.float64))
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    steps = list(fit(model, [[batch]] * 8, FAMILY[name], optimizer, rate=lambda i: 0.01))
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].metrics["margin"] > steps[0].metrics["margin"]


def test_every_option_moves_the_loss():
    model = tiny.build("llama")
    batch = with_origin(batch_of(model, rows_for(model)))
    for kind in (DPO, IPO, KTO, SimPO, ORPO, Unlikelihood):
        for entry in fields(kind):
            before, after = (
                kind()(model, batch).total,
                kind(**{entry.name: entry.default + 0.15})(model, batch).total,
            )
            assert abs((before - after).item()) > 1e-6, entry.name
    assert {"dpo", "ipo", "kto", "simpo", "orpo", "unlikelihood", "preferred_ft", "reward"} <= OBJECTIVES.keys()
