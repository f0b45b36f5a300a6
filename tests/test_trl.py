"""Losses and gradients are those of TRL on equal inputs, where the definitions agree (recorded by recorded/from_trl.py).

TRL 1.16.0; of PPO, which it has no more, the last release with its first trainer, 0.11.4. Where definitions differ:

- ipo: TRL divides log-ratios by the length; ours is the paper's sum. Equal up to the length where all are of one length.
- orpo: TRL's first term is a mean over the batch's tokens, the prompt's included; ours a mean over prompts of means over the
  completion's. Compared is the odds ratio's term, which TRL computes in float32.
- kto: TRL's z₀ is that of a micro-batch, ours of a step. Equal where a step is one micro-batch.
- dpo: TRL's smoothing is a loss type of its own, `robust`, unbiased under flips; ours is conservative DPO. Compared without.
- simpo: TRL's gamma is ours: β (mean chosen − mean rejected) − γ.
- grpo: TRL adds 1e-4 to the standard deviation of a group, ours 1e-8. Compared from equal advantages on.
- rloo: TRL clips the ratio of a completion; ours does not. Compared without its clip.
- ppo: TRL divides advantages by the sample's standard deviation, n − 1; ours by n. Its value clip, penalty, γ, λ are ours.
"""

import json
import math

import pytest
import torch

from acclimate.models.collate import collate
from acclimate.models.policy import score
from acclimate.objectives import DPO, GRPO, IPO, KTO, ORPO, RLOO, SimPO
from acclimate.objectives.kto import reference_point
from acclimate.objectives.ppo import PPO, Experience, clipped, clipped_square
from acclimate.objectives.reward import ranked
from acclimate.rewards.rollout import Drawn, Rollouts, adapted, lessons
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared, Pairs, paired
from tests.recorded import from_trl
from tests.recorded.from_trl import HERE, TEMPERATURE, WATCHED, model, numbers, pairs, samples

TOLD = {**json.loads((HERE / "trl.json").read_text()), **json.loads((HERE / "trl_ppo.json").read_text())}


def row(prompt, answer):
    return Encoded((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))


def compared_batch(inner, alike=False, **more) -> Pairs:
    """The recorded pairs: chosen and rejected beside each other."""
    rows = [Compared((row(p, a), row(p, b)), (1, 2), "f:1") for p, a, b in pairs(alike)]
    documents = [each for given in rows for each in given.rows]
    made = paired(collate(inner, documents, 0, range(3)), rows)
    return Pairs(**{**vars(made), **more})


def sampled_batch(inner) -> Batch:
    return collate(inner, [row(prompt, answer) for prompt, answer in samples()], 0)


def same(name, inner, loss, bound=1e-9, scale=1.0):
    """The mean loss and its gradient, times `scale`, are those that were recorded."""
    inner.zero_grad()
    mean = loss.total / loss.count
    mean.backward()
    assert mean.item() * scale == pytest.approx(TOLD[name]["loss"], abs=bound)
    known = dict(inner.named_parameters())
    for path in WATCHED:
        wanted = torch.tensor(TOLD[name]["gradient"][path], dtype=torch.float64)
        torch.testing.assert_close(known[path].grad.flatten() * scale, wanted, rtol=0, atol=bound)
        assert wanted.abs().max() > 1e-4


def test_dpo():
    inner = model()
    reference = (-5 + numbers(60, 6)).view(2, 3).T.flatten()  # TRL has all chosen ones first
    same("dpo", inner, DPO(beta=0.3)(inner, compared_batch(inner, reference=reference)))


def test_ipo_of_one_length():
    """(h − n / 2τ)² = n² (h / n − 1 / 2τ)² with n = 4 ids a completion."""
    inner = model()
    reference = (-5 + numbers(60, 6)).view(2, 3).T.flatten()
    loss = IPO(tau=0.3 / 4)(inner, compared_batch(inner, alike=True, reference=reference))
    same("ipo", inner, loss, scale=1 / 16)


def test_kto():
    """z₀ is what TRL found of the completions of other prompts, which ours asks in the same way."""
    inner, rows = model(), samples()
    others = collate(inner, [row(prompt, rows[(i + 2) % 6][1]) for i, (prompt, _) in enumerate(rows)], 0)
    with torch.no_grad():
        each = score(inner, others).logprob
    ratios = torch.zeros(6, dtype=torch.float64).index_add(0, others.owner, each) - (-20 + numbers(62, 6))
    origin = reference_point(ratios)
    assert origin.item() == pytest.approx(TOLD["kto"]["kl"], abs=1e-9)
    batch = compared_batch(inner, reference=-5 + numbers(61, 6), baseline=origin)
    same("kto", inner, KTO(beta=0.3, desirable=1.2, undesirable=0.8)(inner, batch))


def test_simpo():
    inner = model()
    same("simpo", inner, SimPO(beta=2.0, gamma=0.6)(inner, compared_batch(inner)))


def test_orpo_s_odds_ratio():
    inner = model()
    batch = compared_batch(inner)
    both, first = ORPO(weight=0.4)(inner, batch), ORPO(weight=0.0)(inner, batch)
    same("orpo", inner, both.__class__(both.total - first.total, both.count), bound=1e-6)


def experience(inner, advantages) -> Experience:
    """The recorded completions under an older policy, with an advantage each."""
    batch, width = sampled_batch(inner), max(len(answer) for _, answer in samples())
    with torch.no_grad():
        now = score(inner, batch, TEMPERATURE).logprob
    kept = torch.arange(width)[None] < torch.tensor([len(answer) for _, answer in samples()])[:, None]
    old, reference = (now + 0.3 * numbers(seed, 6, width)[kept] for seed in (70, 71))
    zero = torch.zeros_like(now)
    return Experience(batch, old, reference, advantages[batch.owner], zero, zero, temperature=TEMPERATURE, beta=0.1)


@pytest.mark.parametrize(("name", "objective"), [("grpo", GRPO(clip=from_trl.EPSILON)), ("rloo", RLOO())])
def test_without_a_value_head(name, objective):
    inner = model()
    same(name, inner, objective(inner, experience(inner, numbers(72, 6))))


def test_grpo_clips_some_of_these():
    """The comparison reaches both sides of the clip."""
    inner = model()
    found = GRPO(clip=from_trl.EPSILON)(inner, experience(inner, numbers(72, 6)))
    assert 0 < float(found.metrics["clip_fraction"]) < 6


def test_a_reward_model():
    """TRL has the chosen ones first."""
    scores = numbers(80, 6).requires_grad_()
    loss = ranked(scores, torch.tensor([1.0] * 3 + [2.0] * 3), torch.tensor([0, 1, 2] * 2))
    (loss.total / loss.count).backward()
    assert (loss.total / loss.count).item() == pytest.approx(TOLD["reward"]["loss"], abs=1e-9)
    assert scores.grad.tolist() == pytest.approx(TOLD["reward"]["gradient"], abs=1e-9)


# PPO, of TRL 0.11.4

LENGTHS, PENALTY = (4, 1, 6), 0.2


def grids():
    """log π, log reference and values of three completions, and what each earned."""
    kept = torch.arange(6)[None] < torch.tensor(LENGTHS)[:, None]
    return [list(each[kept].split(LENGTHS)) for each in numbers(91, 3, 3, 6)], numbers(90, 3), kept


def test_rewards_advantages_and_returns():
    (logprob, reference, values), scores, _ = grids()
    earned = [torch.zeros(n, dtype=torch.float64) for n in LENGTHS]
    for each, given in zip(earned, scores, strict=True):
        each[-1] = given
    penalised = torch.cat([e - PENALTY * (a - b) for e, a, b in zip(earned, logprob, reference, strict=True)])
    assert penalised.tolist() == pytest.approx(TOLD["ppo"]["rewards"], abs=1e-9)
    drawn = Drawn(logprob, reference, values, [torch.zeros((), dtype=torch.float64)] * 3, (True,) * 3)
    found = lessons(drawn, earned, PPO(gamma=0.9, lam=0.8), PENALTY, 1)
    assert found["returns"].tolist() == pytest.approx(TOLD["ppo"]["returns"], abs=1e-9)
    n = sum(LENGTHS)
    spread = found["advantages"] * math.sqrt((n - 1) / n)  # by n − 1 there
    assert spread.tolist() == pytest.approx(TOLD["ppo"]["advantages"], abs=1e-7)  # 1e-8 stands elsewhere


def test_the_clipped_losses():
    (logprob, _, values), _, kept = grids()
    old, before = torch.cat(logprob), torch.cat(values)
    moved = numbers(92, 2, 3, 6)[:, kept] * 0.3
    now, value = (old + moved[0]).requires_grad_(), (before + moved[1]).requires_grad_()
    advantages, returns = (torch.tensor(TOLD["ppo"][name], dtype=torch.float64) for name in ("advantages", "returns"))
    policy, cut = clipped(now - old, advantages, 0.2)
    loss = (policy + 0.1 * clipped_square(value, before, returns, 0.15)).mean()
    loss.backward()
    assert loss.item() == pytest.approx(TOLD["ppo"]["loss"], abs=1e-9)
    assert now.grad.tolist() == pytest.approx(TOLD["ppo"]["gradient"][0], abs=1e-9)
    assert value.grad.tolist() == pytest.approx(TOLD["ppo"]["gradient"][1], abs=1e-9)
    assert 0 < float(cut.sum()) < len(cut)


def test_the_adapted_penalty():
    how, beta, found = Rollouts(prompts=50, each=1, target=6.0, horizon=500), 0.1, []
    for kl in (12.0, 6.6, 1.0, 5.9):
        beta = adapted(beta, kl, how)
        found.append(beta)
    assert found == pytest.approx(TOLD["ppo"]["betas"], abs=1e-12)
