"""Alarms that small runs truly ring, each for the reason that it names; and a run that rings none (systems E3, rewards/watch)."""

import json

import pytest
import torch

from acclimate.recipe import parse
from acclimate.rewards.watch import alarms
from acclimate.run.carry import installed
from acclimate.run.iterations import history
from acclimate.run.prepare import prepare
from acclimate.run.train import train
from acclimate.training.folder import RunFolder
from acclimate.training.signals import Stop
from tests import spelling, tiny

RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl, test: {home}/rows.jsonl}
task: {template: "{{ text }}", chat: false}
method: full
objective: {name: ppo}
rollouts: {prompts: 4, each: 8, epochs: 2, max_new_tokens: 4, beta: 0.0}
rewards: [{name: function, function: "tests.test_alarms:vowels"}]
training: {steps: 40, tokens_per_step: 60, rate: 0.01, precision: float32, schedule: constant}
evaluation: {draws: 50, forgetting: false}
"""
LONG = ("training.steps=60", "training.rate=0.02")  # until all has happened that will, whatever the rounding


def vowels(completions):
    """The share of vowels and spaces among the characters: 1 at best."""
    return [sum(map(c.text.count, "aeiou ")) / max(1, len(c.text)) for c in completions]


def letters(completions):
    """What a reader would miss: other letters."""
    return [sum(map(c.text.count, "bcdfghjklmnpqrstvwxyz")) / max(1, len(c.text)) for c in completions]


def brief(completions):
    """Nothing is better than something."""
    return [-len(c.text) / 10 for c in completions]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that has learned nothing, and prompts."""
    folder = tmp_path_factory.mktemp("alarms")
    tokenizer = spelling.byte_level(template=None)
    torch.manual_seed(0)
    tiny.llama(vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"the film number {n} is"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def told(home, tmp_path):
    """told(*overrides): every iteration of a run, and what alarms say of them."""

    def made(*words):
        recipe = parse(RECIPE.replace("{home}", str(home)), "recipe", words)
        prepared, model = installed(prepare(recipe))
        train(prepared, model, RunFolder(tmp_path, -1), Stop(), (), lambda s: None, lambda line: None, resumable=False)
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        seen = history(log, recipe.rollouts.updates)
        return seen, alarms(seen, recipe.rollouts.target)

    return made


def test_a_calm_run_rings_none(told):
    """It moves, and its judge agrees."""
    agrees = "judge=[{name: function, function: 'tests.test_alarms:vowels'}]"
    seen, said = told("training.rate=0.0005", "rollouts.beta=0.1", "training.steps=24", agrees)
    assert said == []
    assert len(seen) == 12
    assert all(row["step_kl"] > 0 for row in seen)


def test_a_run_that_learns_what_its_reward_overlooks(told):
    """Vowels are paid for, and the judge wants other letters; nothing holds the policy back, so it goes far and gets sure."""
    seen, said = told("judge=[{name: function, function: 'tests.test_alarms:letters'}]", *LONG)
    assert seen[-1]["reward"] > seen[0]["reward"] + 0.2
    assert seen[-1]["judge"] < seen[0]["judge"] - 0.1
    assert seen[-1]["rollout_kl"] > 4
    assert seen[-1]["entropy"] < 1 < 5 < seen[0]["entropy"]
    hacked, far, sure = said
    assert "reward rose while the judge's fell" in hacked
    assert "nats a completion from its reference" in far
    assert "hardly tries anything else" in sure


def test_a_reward_that_pays_for_length(told):
    paid = "rewards=[{name: function, function: 'tests.test_alarms:brief'}]"
    seen, said = told(paid, "rollouts.max_new_tokens=8", *LONG)
    assert seen[-1]["length"] < 3 < 7 < seen[0]["length"]
    assert any("tokens: the reward may be paying for length" in line for line in said)
