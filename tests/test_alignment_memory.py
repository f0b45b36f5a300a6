"""PPO with LoRA holds one copy of the base: policy, reference, value head and reward models on one trunk (by storage)."""

import json
from dataclasses import replace

import pytest
import torch

from acclimate.methods.delta import base, names
from acclimate.models.outline import trunk_of
from acclimate.models.policy import VALUE
from acclimate.objectives.ppo import PPO
from acclimate.recipe import parse
from acclimate.rewards.rollout import collect, experiences
from acclimate.run import iterations
from acclimate.run.carry import installed
from acclimate.run.prepare import prepare
from tests import spelling, tiny
from tests.runs import verb

RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl, test: {home}/rows.jsonl}
task: {template: "{{ text }}", chat: false}
method: {name: lora, rank: 2, targets: [linear]}
objective: {name: ppo}
rollouts: {prompts: 2, max_new_tokens: 4}
rewards: [{name: model, adapter: "{home}/one/adapter"}, {name: model, adapter: "{home}/other/adapter"}]
training: {steps: 2, precision: float32}
evaluation: {draws: 50, forgetting: false}
"""
JUDGE = """
model: {home}/model
data: {train: {home}/pairs.jsonl}
method: {name: lora, rank: 2, targets: [linear]}
objective: {name: reward}
training: {steps: 2, tokens_per_step: 200, precision: float32}
evaluation: {draws: 50, forgetting: false}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, prompts, and two reward models on it."""
    folder = tmp_path_factory.mktemp("memory")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"the film number {n} is"} for n in range(24)]
    pairs = [{"prompt": f"say {n}", "chosen": f"good dog {n}", "rejected": "bad"} for n in range(16)]
    for name, lines in {"rows": rows, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "judge.yaml").write_text(JUDGE.replace("{home}", str(folder)))
    for seed, name in enumerate(("one", "other")):
        verb("run", folder / "judge.yaml", f"training.seed={seed}", "--out", folder / name, "--quiet")
    return folder


def storages(*modules):
    """Bytes of each storage that the modules' parameters and buffers lie in."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def policy(home, method):
    prepared, model = installed(prepare(parse(RECIPE.replace("{home}", str(home)), "recipe", [f"method={method}"])))
    alone = storages(prepared.model)
    prepared = iterations.opened(prepared, model)
    judges = [part.heard.model for _, part in prepared.rolled.reward.parts]
    return prepared, model, judges, alone


def test_four_in_one(home):
    """Policy, reference and two reward models read the very same weights; what is added is adapters and heads."""
    prepared, model, judges, alone = policy(home, "{name: lora, rank: 2, targets: [linear]}")
    own = storages_of_base(model).keys()
    assert prepared.rolled.originals == {}
    assert own <= alone.keys()
    assert names(model) == ("default", "reward_1", "reward_2")
    assert all(judge.trunk is trunk_of(model) for judge in judges)
    everything, trunk = storages(model, *judges), sum(storages_of_base(model).values())
    assert sum(everything.values()) < 1.5 * trunk  # a second copy would be twice of it


def storages_of_base(model):
    """Bytes of each storage of the base's own weights, the value head left out."""
    own = [t.untyped_storage() for name, t in base(model).items() if not name.startswith(VALUE)]
    return {storage.data_ptr(): storage.nbytes() for storage in own}


def test_an_iteration_makes_no_copy(home):
    """What is read while completions are sampled, judged and learned from is what lay there before."""
    prepared, model, judges, _ = policy(home, "{name: lora, rank: 2, targets: [linear]}")
    known, used = storages(model, *judges), set()

    def look(module, given):
        used.update(p.untyped_storage().data_ptr() for p in module.parameters(recurse=False))

    hooks = [module.register_forward_pre_hook(look) for top in (model, *judges) for module in top.modules()]
    rolled, how = prepared.rolled, replace(prepared.recipe.rollouts)
    with torch.no_grad():
        buffer = collect(
            model, rolled.train[:2], rolled.reward, PPO(), how, prepared.codec, beta=0.1, seed=1, originals={}
        )
    for given in experiences(model, buffer, range(2), how, prepared.codec, 4096):
        PPO()(model, given).total.backward()
    for hook in hooks:
        hook.remove()
    assert used <= known.keys()
    assert len(used) > 20
    assert storages(model, *judges).keys() == known.keys()


def test_full_fine_tuning_keeps_its_reference_and_its_judges_apart(home):
    """The other side: then each is a copy, and the sum says so."""
    prepared, model, judges, alone = policy(home, "full")
    own, kept = storages_of_base(model), {t.untyped_storage().data_ptr() for t in prepared.rolled.originals.values()}
    assert not kept & own.keys()
    assert not any(storages(judge).keys() & own.keys() for judge in judges)
    assert sum(storages(model, *judges).values()) > 2.4 * sum(own.values())  # the judges have no language-model head
    assert sum(alone.values()) == pytest.approx(sum(own.values()), rel=0.01)
