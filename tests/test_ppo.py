"""Rollouts and what is descended on them: the papers' sums term by term, exact ratios, rewards on the right token."""

import math
from dataclasses import replace

import pytest
import torch

from acclimate.data.template import Segment
from acclimate.evaluation.predictor import bare
from acclimate.methods import Full, LoRA
from acclimate.methods.delta import adapt, disabled, snapshot
from acclimate.models.logprobs import logprobs
from acclimate.models.policy import add_value_head, drop_value_head, score
from acclimate.objectives.ppo import GRPO, PPO, RLOO, Pretraining, clipped, clipped_square, schulman
from acclimate.rewards import rollout
from acclimate.rewards.reward import Mark, Weighted, whole
from acclimate.rewards.rollout import Prompt, Rollouts, adapted, collect, experiences, once, place_of, settled
from acclimate.tokens.batch import pack
from acclimate.tokens.codec import Encoded, codec
from acclimate.training.fit import fit
from tests import spelling, tiny
from tests.test_feedback import bytes_of

READER = codec(spelling.byte_level(template=None))
TEXTS = ("the quick brown fox", "is this good?", "a", "user: hello there")
PROMPTS = [Prompt(bare(READER, (Segment(text, False),), text), text, i) for i, text in enumerate(TEXTS)]
HOW = Rollouts(prompts=4, each=2, epochs=2, parts=2, max_new_tokens=6, temperature=0.7, beta=0.1)


def policy(method=None, dropout=0.0, valued=True, seed=0):
    torch.manual_seed(seed)
    model = tiny.llama(vocab=len(READER.tokenizer), dropout=dropout).double()
    adapt(model, method or LoRA(rank=4, dropout=dropout), seed=seed)
    if valued:
        add_value_head(model)
        torch.nn.init.normal_(model.value_head.weight)
    return model


def moved(model):
    """The policy somewhere else than where it started, so that it and its reference differ."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def letters(completions):
    """Two marks: what stands in the first half, and in all."""
    return [
        (
            Mark(max(min(1, len(c.text)), len(c.text) // 2), 0.5 * len(set(c.text[: len(c.text) // 2]))),
            Mark(len(c.text), 1.0),
        )
        for c in completions
    ]


def length(completions):
    return whole([0.1 * len(c.text) for c in completions], completions)


def gathered(model, learner, how=HOW, reward=letters, seed=3, originals=None, beta=0.1):
    return collect(model, PROMPTS, reward, learner, how, READER, beta=beta, seed=seed, originals=originals or {})


@pytest.mark.parametrize("method", [LoRA(rank=4, dropout=0.3), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("learner", [PPO(), GRPO(), RLOO()], ids=["ppo", "grpo", "rloo"])
def test_on_the_policy_that_sampled_every_ratio_is_1_and_the_reference_is_near_by_nothing(method, learner):
    model = policy(method, dropout=0.3, valued=learner.valued)
    originals = {k: v for k, v in snapshot(model).items() if not k.startswith("value_head")}
    buffer = gathered(model, learner, originals=originals)
    assert buffer.told["rollout_kl"] == pytest.approx(0, abs=1e-9)
    model.eval()
    for given in experiences(model, buffer, range(len(buffer.rows)), HOW, READER, budget=40):
        now = score(model, given.batch, HOW.temperature)
        assert (now.logprob - given.logprob).abs().max() <= 1e-9
        assert (now.value - given.values).abs().max() <= 1e-9


def test_what_is_sampled_has_the_probability_that_sampling_gave_it():
    """At temperature 1 the numbers of decoding and those of the training pass are the same numbers."""
    model, how = policy().eval(), replace(HOW, temperature=1.0)
    from acclimate.rewards.rollout import sampled

    buffer = gathered(model, PPO(), how)
    asked = [p for p in PROMPTS for _ in range(how.each)]
    for row, written in enumerate(sampled(model, asked, how, READER, seed=3)):
        mine = buffer.columns["logprob"][buffer.part(row)].tolist()
        assert mine[: len(written.ids)] == pytest.approx(list(written.logprobs), abs=1e-9)
        assert len(mine) == len(written.ids) + (written.finish == "stop" and written.end >= 0)


def test_rewards_advantages_and_returns_by_a_loop_over_tokens():
    model = moved(policy().eval())
    learner, beta = PPO(gamma=0.9, lam=0.8), 0.3
    buffer = gathered(model, learner, beta=beta)
    every, wanted_returns = [], []
    for encoded in buffer.rows:
        batch = pack([encoded])
        with torch.no_grad():
            now = score(model, batch, HOW.temperature)
            values = {n: p.data for n, p in model.named_parameters() if n.startswith("value_head")}
            with disabled(model, values):
                then = score(model, batch, HOW.temperature)
        n, start = len(batch.targets), len(encoded.ids) - len(batch.targets)
        text = READER.decode(encoded.ids[start:])
        ended = encoded.ids[-1] in READER.terminators
        tokens = encoded.ids[start:-1] if ended else encoded.ids[start:]
        earned = [0.0] * n
        half = max(1, len(text) // 2)
        at = next((t for t in range(n) if READER.decode(tokens[: t + 1]).startswith(text[:half])), n - 1)
        earned[at if half < len(text) else n - 1] += 0.5 * len(set(text[: len(text) // 2]))
        earned[-1] += 1.0
        kl = (now.logprob - then.logprob).tolist()
        rewards = [e - beta * k for e, k in zip(earned, kl, strict=True)]
        value = now.value.tolist()
        assert sum(rewards) == pytest.approx(sum(earned) - beta * sum(kl), abs=1e-9)
        ahead, advantages = 0.0, []
        for t in reversed(range(n)):
            after = value[t + 1] if t + 1 < n else 0.0
            ahead = rewards[t] + 0.9 * after - value[t] + 0.9 * 0.8 * ahead
            advantages.insert(0, ahead)
        every += advantages
        wanted_returns += [a + v for a, v in zip(advantages, value, strict=True)]
    mean = sum(every) / len(every)
    sd = math.sqrt(sum((a - mean) ** 2 for a in every) / len(every))
    assert buffer.columns["advantages"].tolist() == pytest.approx([(a - mean) / (sd + 1e-8) for a in every], abs=1e-6)
    assert buffer.columns["returns"].tolist() == pytest.approx(wanted_returns, abs=1e-6)


def test_one_mark_at_the_end_is_scalar_ppo_and_several_rewards_are_their_weighted_sum():
    model = moved(policy())
    at_end = gathered(model, PPO(), reward=length)
    both = gathered(model, PPO(), reward=Weighted(((0.25, length), (0.75, length))))
    for name, column in at_end.columns.items():
        assert torch.allclose(column, both.columns[name], atol=1e-9), name


def test_what_is_cut_off_ends_or_goes_on():
    model = moved(policy())
    ends, on = (gathered(model, PPO(truncated=how, gamma=1.0, lam=1.0), reward=length) for how in ("ends", "goes on"))
    cut = [row for row, encoded in enumerate(ends.rows) if encoded.ids[-1] not in READER.terminators]
    assert cut
    for row in range(len(ends.rows)):
        part = ends.part(row)
        change = on.columns["returns"][part] - ends.columns["returns"][part]
        assert torch.allclose(change, change[0].expand_as(change), atol=1e-6)
        assert (change.abs().max() > 1e-3) == (row in cut)


def test_a_cut_completion_may_cost_something():
    model = moved(policy())
    free, dear = (gathered(model, RLOO(), replace(HOW, unended=cost), reward=length) for cost in (0.0, -3.0))
    assert dear.told["reward"] == pytest.approx(free.told["reward"] - 3 * (1 - free.told["ended"]), abs=1e-5)


@pytest.mark.parametrize(("learner", "in_rows"), [(PPO(entropy=0.01), False), (GRPO(), True), (RLOO(), True)])
def test_the_gradient_does_not_depend_on_how_the_update_is_cut(learner, in_rows):
    model = moved(policy(valued=learner.valued))
    buffer = gathered(model, learner)
    moved(model)
    gradients = []
    for budget in (10_000, 25):
        model.zero_grad()
        done = [learner(model, e) for e in experiences(model, buffer, range(8), HOW, READER, budget)]
        whole_count = sum(float(loss.count) for loss in done)
        (sum(loss.total for loss in done) / whole_count).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert whole_count == (8 if in_rows else sum(buffer.lengths))
    assert torch.allclose(*gradients, atol=1e-10)
    assert gradients[0].abs().max() > 1e-4


@pytest.mark.parametrize("learner", [GRPO(), RLOO()], ids=["grpo", "rloo"])
@pytest.mark.parametrize("budget", [10_000, 25])
def test_what_is_learned_from_once_is_learned_without_asking_before(monkeypatch, learner, budget):
    """The same completions, gradients and KL as where the policy is asked first; of one update every ratio is 1."""
    how, found, seen = replace(HOW, epochs=1, parts=1, beta=0.0 if learner.in_reward else 0.1), [], []
    asked = rollout.policy.score_to_the_end
    monkeypatch.setattr(rollout.policy, "score_to_the_end", lambda *given: (seen.append(given), asked(*given))[1])
    assert once(how, learner)
    for own in (True, False):
        monkeypatch.setattr(rollout, "once", lambda *_, own=own: own)
        model = moved(policy(valued=False))
        buffer = gathered(model, learner, how, beta=how.beta)
        assert ("rollout_kl" in buffer.told) == bool(seen) == (not own)
        model.zero_grad()
        done = [learner(model, e) for e in experiences(model, buffer, range(8), how, READER, budget, own)]
        sum(loss.total for loss in done).backward()
        metrics = {name: sum(float(loss.metrics[name]) for loss in done) / 8 for name in done[0].metrics}
        metrics |= {"total": sum(float(loss.total.detach()) for loss in done), **buffer.told}
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((gradient, metrics, buffer.columns["advantages"]))
    (mine, said, better), (wanted, told, best) = found
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(better, best)
    assert said.keys() == told.keys()
    assert said == pytest.approx(told, abs=1e-6)  # told in float32
    assert abs(told["rollout_kl"]) > 1e-3


def test_who_has_to_be_asked_before():
    single = Rollouts(epochs=1, parts=1, beta=0.1)
    assert once(single, GRPO())
    assert once(replace(single, beta=0.0), RLOO())
    for how, learner in (
        (single, PPO()),  # values
        (single, RLOO()),  # the penalty is in the reward
        (replace(single, target=1.0), GRPO()),  # the next penalty is made of this KL
        (replace(single, epochs=2), GRPO()),
        (replace(single, parts=2), GRPO()),
    ):
        assert not once(how, learner)


def test_the_losses_by_hand():
    change = torch.tensor([math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5)])
    loss, cut = clipped(change, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    assert loss.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8])
    assert cut.tolist() == [1.0, 0.0, 0.0, 1.0]
    value = clipped_square(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), 0.2)
    assert value.tolist() == pytest.approx([0.5 * 0.64, 0.5 * 1.0])
    assert schulman(torch.tensor([0.0]), torch.tensor([math.log(2)])).item() == pytest.approx(1 - math.log(2))


def test_the_ptx_gradient_is_that_of_ppo_plus_gamma_times_that_of_the_text():
    model, learner, gamma = moved(policy()), PPO(), 0.7
    buffer = gathered(model, learner)
    given = experiences(model, buffer, range(8), HOW, READER, 10_000)
    text = pack([Encoded(tuple(range(5, 25)), (True,) * 20), Encoded(tuple(range(9, 16)), (False,) * 2 + (True,) * 5)])
    tokens, mine = len(text.targets), sum(buffer.lengths)

    def gradient(losses):
        model.zero_grad()
        losses.backward()
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])

    alone = gradient(sum(learner(model, e).total for e in given) / mine)
    of_text = gradient(-logprobs(model, text).mean())
    group = [*given, Pretraining(text, gamma * mine / tokens)]
    losses = [learner(model, part) for part in group]
    both = gradient(sum(loss.total for loss in losses) / sum(float(loss.count) for loss in losses))
    assert torch.allclose(both, alone + gamma * of_text, atol=1e-10)


def test_beta_follows_the_kl():
    how = Rollouts(prompts=10, each=1, target=2.0, horizon=100)
    assert adapted(0.1, 2.0, how) == 0.1
    assert adapted(0.1, 2.2, how) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapted(0.1, 0.0, how) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert adapted(0.1, 99.0, replace(how, target=0.0)) == 0.1


def test_marks_land_on_the_token_that_writes_the_character_before_their_end():
    ids = READER.plain("the quick brown fox")
    text = READER.decode(ids)
    for end in range(1, len(text) + 1):
        t = place_of(end, settled(ids, text, READER))
        assert len(READER.decode(ids[: t + 1])) >= end
        assert t == 0 or len(READER.decode(ids[:t])) < end


@pytest.mark.parametrize("text", ["🦊é好a", "a🦊. 好!", "né, 🦊🦊 quick", "好"])
def test_a_mark_lands_on_the_token_that_completes_its_character(text):
    """Against the bytes: a character is there when its last one is. Before that decoding shows U+FFFD in its place."""
    ids = READER.plain(text)
    pieces = [bytes_of(READER, [token]) for token in ids]
    assert b"".join(pieces) == text.encode()
    assert any("\ufffd" in READER.decode(ids[:t]) for t in range(1, len(ids)))
    found = settled(ids, text, READER)
    for end in range(1, len(text) + 1):
        t, wanted = place_of(end, found), len(text[:end].encode())
        before, after = (len(b"".join(pieces[:n])) for n in (t, t + 1))
        assert before < wanted <= after


def test_a_mark_on_a_character_that_was_cut_off_lands_on_the_last_token():
    ids = READER.plain("a🦊")[:-1]
    text = READER.decode(ids)
    assert text.endswith("\ufffd")
    assert place_of(1, settled(ids, text, READER)) == 0
    assert settled(ids, text, READER)[-1] == len(text)


def test_the_value_head_goes_as_it_came():
    model = policy(valued=False)
    before = {name for name, _ in model.named_parameters()}
    add_value_head(model)
    assert {name for name, _ in model.named_parameters()} - before == {"value_head.weight", "value_head.bias"}
    drop_value_head(model)
    assert {name for name, _ in model.named_parameters()} == before


WISHED = set("aeiou ")


def share(completions):
    """The share of characters that are wished for: 1 at best."""
    return whole([sum(map(c.text.count, WISHED)) / max(1, len(c.text)) for c in completions], completions)


@pytest.mark.parametrize("learner", [PPO(), GRPO(), RLOO()], ids=["ppo", "grpo", "rloo"])
@pytest.mark.parametrize("seed", range(5))
def test_it_learns_what_is_rewarded(learner, seed):
    """Vowels and spaces alone: about a third at the start, 1 at best."""
    torch.manual_seed(seed)
    model = adapt(tiny.llama(vocab=len(READER.tokenizer)), Full(), seed=seed)
    originals = snapshot(model)
    if learner.valued:
        add_value_head(model)
    how, earned = Rollouts(prompts=4, each=16, max_new_tokens=2, beta=0.0), []

    def groups():
        for iteration in range(60):
            numbers = 1000 * seed + iteration
            buffer = collect(model, PROMPTS, share, learner, how, READER, beta=0.0, seed=numbers, originals=originals)
            earned.append(buffer.told["reward"])
            if sum(earned[-3:]) / 3 > 0.96:
                return
            for _ in range(how.epochs):
                yield experiences(model, buffer, range(len(buffer.rows)), how, READER, 4096)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    steps = list(fit(model, groups(), learner, optimizer, rate=lambda i: 0.02))
    assert sum(earned[-3:]) / 3 >= 0.95, earned
    assert len(steps) == 2 * (len(earned) - 1)


def test_completions_that_all_earn_the_same_teach_nothing_and_stop_nothing():
    model = policy(valued=False)
    how, before = replace(HOW, beta=0.0, parts=1, epochs=1), {n: p.clone() for n, p in model.named_parameters()}
    buffer = collect(
        model,
        PROMPTS,
        lambda found: whole([1.0] * len(found), found),
        GRPO(),
        how,
        READER,
        beta=0.0,
        seed=1,
        originals={},
    )
    update = experiences(model, buffer, range(8), how, READER, 4096)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    assert len(list(fit(model, [update] * 6, GRPO(), optimizer, rate=lambda i: 0.01))) == 6
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
