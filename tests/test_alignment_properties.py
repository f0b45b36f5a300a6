"""What must hold of every alignment objective: poison, cuts and padding, exact ratios, closed forms, a still reference."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from acclimate.methods import IA3, BitFit, Full, LoRA
from acclimate.methods.delta import adapt, snapshot, trainable
from acclimate.models import policy as policies
from acclimate.models.collate import collate
from acclimate.models.heads import TaskModel
from acclimate.models.outline import trunk_of
from acclimate.models.policy import add_value_head, score
from acclimate.objectives import (
    DPO,
    GRPO,
    IPO,
    KTO,
    LM,
    OBJECTIVES,
    ORPO,
    PPO,
    RLOO,
    PreferredFT,
    Reward,
    SequenceLM,
    SimPO,
    Spans,
    Unlikelihood,
)
from acclimate.objectives.ppo import Experience
from acclimate.recipe import parse
from acclimate.rewards import rollout
from acclimate.rewards.rollout import Drawn, Grid, experiences, lessons, opinions
from acclimate.run import iterations
from acclimate.run.carry import installed
from acclimate.run.prepare import prepare
from acclimate.run.train import train
from acclimate.tokens.batch import pad
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import paired, reading
from acclimate.tokens.reading import Reading, Shape, sheet
from acclimate.training.folder import RunFolder
from acclimate.training.signals import Stop
from tests import spelling, tiny
from tests.compared import PAD, batch_of, known, rows_for
from tests.test_ppo import HOW, PROMPTS, READER, gathered, length, moved, policy

WRITE = {"lm": LM(), "sequence_lm": SequenceLM(), "preferred_ft": PreferredFT()}
COMPARE = {
    "dpo": DPO(smoothing=0.1),
    "ipo": IPO(),
    "kto": KTO(undesirable=0.7),
    "simpo": SimPO(),
    "orpo": ORPO(),
    "unlikelihood": Unlikelihood(),
}
SAMPLE = {"ppo": PPO(entropy=0.02), "grpo": GRPO(), "rloo": RLOO()}
LISTEN = {"reward": Reward(ties="half"), "spans": Spans()}
EVERY = {**WRITE, **COMPARE, **SAMPLE, **LISTEN}
SHAPES = {"reward": Shape("regress", (), "last"), "spans": Shape("tag", ("a", "b"))}


def test_every_objective_has_its_case():
    assert EVERY.keys() == OBJECTIVES.keys()
    assert all(type(EVERY[name]) is kind for name, kind in OBJECTIVES.items())


# Batches of each kind, of GPT-2, which is float64 from end to end


def written():
    """Completions after prompts in which the pad id occurs, of 2 to 6 ids."""
    return [each for row in rows_for(tiny.build("gpt2")) for each in row.rows]


def sampled_batch(rows, numbers, padded, model):
    """Rows as completions that an older policy sampled: numbers of every token, of a row's own number and place."""
    batch = pad(rows, PAD) if padded else collate(model, rows, PAD, share=True)
    columns = []
    for number, row in zip(numbers, rows, strict=True):
        draw = torch.Generator().manual_seed(number)
        drawn = torch.randn(5, sum(row.scored), generator=draw, dtype=torch.float64)
        drawn[2] = drawn[2, :1]  # of a completion, where there is no value head
        columns.append(drawn)
    near = torch.cat(columns, 1)
    with torch.no_grad():
        now = score(model, batch, 0.8).logprob
    logprob, reference = now + 0.2 * near[0], now + 0.5 * near[1]
    return Experience(batch, logprob, reference, *near[2:], temperature=0.8, beta=0.3)


def marked(row, number):
    """Two places of a text with two kinds of marks each."""
    places = (len(row.ids) - 2, len(row.ids) - 1)
    return Reading((row.ids,), ((0,) * len(row.ids),), (places,), tuple(float((number >> k) % 2) for k in range(4)))


def spans_sheet(rows, numbers):
    made = sheet([marked(row, number) for row, number in zip(rows, numbers, strict=True)], SHAPES["spans"], PAD)
    return replace(made, targets=made.targets.long())


def items(name):
    """What a step is made of: rows, or prompts with their completions."""
    return rows_for(tiny.build("gpt2")) if name in COMPARE or name == "reward" else written()


def batch(name, model, numbers, padded):
    rows = [items(name)[number] for number in numbers]
    documents = [each for row in rows for each in row.rows] if name in COMPARE else rows
    if name in WRITE:
        return pad(rows, PAD) if padded else collate(model, rows, PAD, share=True)
    if name in SAMPLE:
        return sampled_batch(rows, numbers, padded, model)
    if name == "reward":
        return sheet([reading(row, "last", 0) for row in rows], SHAPES[name], PAD)
    if name == "spans":
        return spans_sheet(rows, numbers)
    made = paired(pad(documents, PAD, range(len(rows))), rows) if padded else batch_of(model, rows)
    reference = torch.tensor([known(row, i) for row in rows for i in range(len(row.rows))], dtype=torch.float64)
    return replace(made, reference=reference, baseline=torch.tensor(0.4, dtype=torch.float64))


def model_for(name):
    """A policy, or a trunk with a head, that has moved and drops nothing."""
    made = tiny.build("gpt2")
    if name in LISTEN:
        made = TaskModel(made.transformer)
        made.add(SHAPES[name], seed=3)
        made = made.double().eval()
    model = adapt(made, LoRA(rank=2, targets=("linear",)), seed=1)
    if name == "ppo":
        add_value_head(model)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype) * 0.1)
    return model


def step(name, model, parts, padded=False):
    """The mean loss, what a log shows, and the mean gradient, of a step cut into `parts`."""
    model.zero_grad()
    total, count, metrics = 0.0, 0.0, {}
    for numbers in parts:
        loss = EVERY[name](model, batch(name, model, numbers, padded))
        loss.total.backward()
        total, count = total + loss.total.item(), count + float(loss.count)
        metrics = {key: metrics.get(key, 0.0) + float(value) for key, value in loss.metrics.items()}
    gradient = torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None]) / count
    shown = {key: value / count for key, value in metrics.items()}
    return total / count, shown, gradient


def assert_equal(one, other):
    assert other[0] == pytest.approx(one[0], abs=1e-9)
    assert other[1] == pytest.approx({key: one[1][key] for key in other[1]}, abs=1e-9)
    torch.testing.assert_close(other[2], one[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_a_step_does_not_depend_on_cuts_order_or_padding(name):
    """G9, G10, G13: one by one; in two ragged parts, padded where they were packed; backwards."""
    model = model_for(name)
    everything = list(range(len(items(name))))
    whole = step(name, model, [everything])
    assert whole[2].abs().max() > 1e-4
    assert_equal(whole, step(name, model, [[n] for n in everything]))
    assert_equal(whole, step(name, model, [everything[:2], everything[2:]], padded=True))
    assert_equal(whole, step(name, model, [everything[::-1]], padded=True))


@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_scored_may_be_anything(name):
    """G16: hidden states of prompts, of padding and behind the end reach no loss, gradient or number of a log."""
    model, everything = model_for(name), list(range(len(items(name))))
    clean = step(name, model, [everything], padded=True)
    places = batch(name, model, everything, True)
    looked_at = (places.batch if name in SAMPLE else places).predict

    def spoil(module, given, output, poison):
        states = output.last_hidden_state
        kept = torch.zeros(states.shape[:2], dtype=torch.bool).flatten().index_fill(0, looked_at, True)
        output.last_hidden_state = states.where(kept.view(*states.shape[:2], 1), torch.full_like(states, poison))
        return output

    for poison in (math.nan, math.inf, 1e9):
        trunk = model.trunk if name in LISTEN else trunk_of(model)
        handle = trunk.register_forward_hook(partial(spoil, poison=poison))
        found = step(name, model, [everything], padded=True)
        handle.remove()
        assert found[:2] == clean[:2]
        assert torch.equal(found[2], clean[2])


@pytest.mark.parametrize("name", EVERY)
def test_ids_behind_the_end_may_be_anything(name, monkeypatch):
    """G10: padding is what the mask says it is, whatever stands there."""
    model, everything = model_for(name), list(range(len(items(name))))
    clean = step(name, model, [everything], padded=True)
    monkeypatch.setitem(globals(), "PAD", 77)
    assert_equal(clean, step(name, model, [everything], padded=True))


# Rewards, advantages, returns


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e9])
@pytest.mark.parametrize("learner", [PPO(gamma=0.9, truncated="goes on"), GRPO(), RLOO()])
def test_what_fills_up_short_completions_may_be_anything(learner, poison, monkeypatch):
    """G16: the rectangle of an iteration, behind the ends of its rows."""
    lengths = (4, 1, 3, 6)
    draw = torch.Generator().manual_seed(0)
    parts = [[torch.randn(n, generator=draw) for n in lengths] for _ in range(4)]
    drawn = Drawn(*parts[:3], list(torch.randn(4, generator=draw)), (True, False, True, False))
    clean = lessons(drawn, parts[3], learner, 0.2, 2)

    def spoiled(grid, rows):
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=poison)

    monkeypatch.setattr(Grid, "of", spoiled)
    found = lessons(drawn, parts[3], learner, 0.2, 2)
    assert found.keys() == clean.keys()
    assert all(torch.equal(found[name], clean[name]) for name in clean)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_closed_forms_of_what_a_token_returns(lam):
    """γ = λ = 1: all that is still to come, less the penalty; γ = 0: the token's own reward, whatever λ. (G16)"""
    model, beta = moved(policy()), 0.3
    own = gathered(model, PPO(gamma=0.0, lam=lam), reward=length, beta=beta)
    ahead = gathered(model, PPO(gamma=1.0, lam=1.0), reward=length, beta=beta)
    for row, encoded in enumerate(own.rows):
        part, drawn = own.part(row), encoded.ids[-own.lengths[row] :]
        rewards = -beta * (own.columns["logprob"][part] - own.columns["reference"][part])
        rewards[-1] += 0.1 * len(READER.decode(drawn))
        torch.testing.assert_close(own.columns["returns"][part], rewards, rtol=0, atol=1e-6)
        still = rewards.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(ahead.columns["returns"][part], still, rtol=0, atol=1e-6)


# On the policy that sampled


RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl, test: {home}/rows.jsonl}
task: {template: "{{ text }}", chat: false}
objective: {name: ppo}
rollouts: {prompts: 3, each: 2, epochs: 2, parts: 2, max_new_tokens: 5, temperature: 0.7, target: 1.0}
rewards: [{name: length, words: 3}]
training: {steps: 8, tokens_per_step: 60, tokens_per_pass: 48, rate: 0.0, precision: float32}
evaluation: {draws: 50, forgetting: false}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that drops nine of ten attention weights while it trains, and rows."""
    folder = tmp_path_factory.mktemp("properties")
    tokenizer = spelling.byte_level(template=None)
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer), dropout=0.9).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"the film number {n} is"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("method", ["{name: lora, rank: 4, targets: [linear], dropout: 0.9}", "full"])
@pytest.mark.parametrize("learner", ["ppo", "grpo", "rloo"])
def test_without_a_rate_every_ratio_is_1_and_there_is_no_kl(home, tmp_path, monkeypatch, method, learner):
    """G17: in every update of two iterations, p = 0.9 dropout configured, at a temperature, in passes of other sizes."""
    seen, kind = [], OBJECTIVES[learner]
    real = kind.__call__

    def watched(self, model, given):
        change = score(model, given.batch, given.temperature).logprob.detach() - given.logprob
        seen.append((change.exp() - 1).abs().max().item())
        return real(self, model, given)

    monkeypatch.setattr(kind, "__call__", watched)
    words = [f"objective={learner}", f"method={method}"]
    prepared, model = installed(prepare(parse(RECIPE.replace("{home}", str(home)), "recipe", words)))
    if "lora" in method:
        assert any(isinstance(m, nn.Dropout) and m.p == 0.9 for m in model.modules())
    train(prepared, model, RunFolder(tmp_path, -1), Stop(), (), lambda s: None, lambda line: None, resumable=False)
    assert len(seen) >= 8
    assert max(seen) <= 1e-6
    log = [json.loads(line)["metrics"] for line in (tmp_path / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert max(abs(row[name]) for row in log for name in ("kl", "rollout_kl", "step_kl")) <= 1e-5
    assert max(row.get("clip_fraction", 0.0) for row in log) == 0


# The reference


@pytest.mark.parametrize("method", [LoRA(rank=4, dropout=0.3), BitFit(), IA3(), Full()], ids=lambda m: type(m).__name__)
def test_the_reference_says_the_same_to_the_bit_after_training(method):
    """G15: and what a separate copy of the model says, whichever tensors train."""
    torch.manual_seed(0)
    bare = tiny.llama(vocab=len(READER.tokenizer)).double()
    copied = copy.deepcopy(bare).requires_grad_(False)
    model = adapt(bare, method, seed=0)
    originals = snapshot(model)
    add_value_head(model)
    before = gathered(model, PPO(), originals=originals)
    apart, _, _, _ = opinions(copied, before.rows, HOW, READER, {}, 4096)
    torch.testing.assert_close(before.columns["reference"], torch.cat(apart), rtol=0, atol=1e-9)
    moved(model)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.05)
    for given in experiences(model, before, range(8), HOW, READER, 4096) * 3:
        PPO()(model, given).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    now, _, then, _ = opinions(model.eval(), before.rows, HOW, READER, originals, 4096)
    assert torch.equal(torch.cat(then), before.columns["reference"])
    assert (torch.cat(now) - torch.cat(then)).abs().max() > 1e-2


def test_a_reference_that_is_kept_is_the_one_that_is_asked():
    """The reference's column of an iteration is what a trunk without its adapter says of the same rows, one by one."""
    model = moved(policy())
    buffer = gathered(model, RLOO())
    for row, encoded in enumerate(buffer.rows):
        _, _, (alone,), _ = opinions(model, [encoded], HOW, READER, {}, 16)
        torch.testing.assert_close(buffer.columns["reference"][buffer.part(row)], alone, rtol=0, atol=1e-9)
    assert len(buffer.rows) == 2 * len(PROMPTS)


def test_the_names_that_are_watched_here_are_those_that_runs_use():
    """The tests above replace these by name."""
    assert iterations.experiences is experiences
    assert rollout.policy.score is policies.score
    assert isinstance(written()[0], Encoded)
