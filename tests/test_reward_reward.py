"""A trained reward model as a reward: beside the policy on one base, the same numbers as alone (G18)."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from acclimate.errors import DataError, ModelError, UsageError
from acclimate.evaluation.preferences import head_rewards
from acclimate.interchange.adapter import load_adapter
from acclimate.methods import Full, LoRA
from acclimate.methods.delta import activate, adapt, base, disabled, names, switches, trainable
from acclimate.models.heads import trunk_with_heads
from acclimate.models.load import load
from acclimate.models.outline import outline
from acclimate.recipe import parse
from acclimate.rewards import Length
from acclimate.rewards.model import Model
from acclimate.rewards.reward import Completion, Weighted, checked, total
from acclimate.run.beside import bound, heard
from acclimate.run.prepare import codec_of, prepare
from tests import spelling, tiny
from tests.runs import verb

WORDS = ("quick", "brown", "lazy", "good", "bad", "fox", "dog")
RECIPE = """
model: {home}/model
data: {train: {home}/pairs.jsonl}
method: {name: lora, rank: 2, alpha: 16, targets: [linear]}
objective: {name: reward}
task: {chat: true}
training: {steps: 6, tokens_per_step: 300, rate: 0.02, precision: float32}
evaluation: {draws: 50, forgetting: false}
"""
GIVEN = [Completion(f"say {word}", " ".join(WORDS[:n]), where=f"prompt {n}") for n, word in enumerate(WORDS, start=1)]


def rewarded(home, out, *words):
    text = RECIPE.replace("{home}", str(home))
    (home / "recipe.yaml").write_text(text)
    verb("run", home / "recipe.yaml", *words, "--out", home / out, "--quiet")
    return home / out / "adapter"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and reward models trained on it."""
    folder = tmp_path_factory.mktemp("rewards")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {"prompt": f"say {WORDS[n % 7]} {n}", "chosen": " ".join(WORDS[: 3 + n % 4]), "rejected": WORDS[n % 5]}
        for n in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, words in {
        "lora": (),
        "full": ("method=full",),
        "soft": ("method={name: prompt, length: 3}",),
        "plain": ("task.chat=false", "task.template={{ prompt }} is"),
    }.items():
        rewarded(folder, name, *words)
    return folder


def policy_of(home):
    loaded = load(f"{home}/model", dtype=torch.float32)
    return adapt(loaded.model, LoRA(rank=4, targets=("linear",)), seed=1), codec_of(loaded)


def alone(home, name):
    """The same reward model, opened apart from everything."""
    loaded = load(f"{home}/model", dtype=torch.float32)  # it trains in full, so nothing rides on it
    return bound(Model(str(home / name / "adapter")), adapt(loaded.model, Full()), codec_of(loaded))


def storages(model):
    return {p.untyped_storage().data_ptr() for p in base(model).values()}


def noisy(policy):
    """A policy that has moved: what it says must not be heard in the reward."""
    with torch.no_grad():
        for number, parameter in enumerate(trainable(policy).values()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("name", ["lora", "soft", "plain"])
def test_one_base_and_the_scores_of_a_model_of_its_own(home, name):
    policy, codec = policy_of(home)
    noisy(policy)
    outline(policy)  # sets the attention that packs
    before = storages(policy)
    reward = bound(Model(str(home / name / "adapter")), policy, codec)
    trunk = reward.heard.model.trunk
    assert trunk is policy.model
    assert storages(trunk) <= before == storages(policy)
    apart = alone(home, name)
    assert apart.heard.name == ""
    assert not storages(apart.heard.model) & before
    mine, theirs = ([total(m) for m in scored(GIVEN)] for scored in (reward, apart))
    assert mine == pytest.approx(theirs, abs=1e-6)
    assert max(mine) - min(mine) > 1e-3
    assert set(names(policy)) == {"default", "reward_1"}


def test_it_says_what_the_run_said(home):
    """The held-out completions of the run, by the path that evaluation takes."""
    prepared = prepare(parse((home / "lora" / "recipe.yaml").read_text()))
    model = trunk_with_heads(load(f"{home}/model", dtype=torch.float32, task="encoder"), pooler=False)
    load_adapter(model, home / "lora" / "adapter")
    expected = head_rewards(model.eval(), prepared.pairs.test, prepared.codec.pad)
    told = [json.loads(line) for line in (home / "lora" / "predictions.jsonl").read_text().splitlines()]
    reward = bound(Model(str(home / "lora" / "adapter")), *policy_of(home))
    for row, known, kept in zip(prepared.parts.test.rows, expected, told, strict=True):
        asked = [Completion(row.prompt[0].content, text) for text in (row.chosen, row.rejected)]
        found = [total(marks) for marks in reward(asked)]
        assert found == pytest.approx(known, abs=1e-6)
        assert found == pytest.approx([kept["result"]["scores"][f"reward {i}"] for i in (1, 2)], abs=1e-5)


def test_the_stored_bias_is_the_zero_of_the_scores(home, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    for path in (home / "lora" / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "adapter.safetensors")
    (bias,) = [name for name in tensors if name.endswith("bias")]
    save_file({**tensors, bias: tensors[bias] + 2}, folder / "adapter.safetensors", metadata={"format": "pt"})
    one, two = (bound(Model(str(path)), *policy_of(home)) for path in (home / "lora" / "adapter", folder))
    for left, right in zip(one(GIVEN), two(GIVEN), strict=True):
        assert total(right) - total(left) == pytest.approx(2, abs=1e-5)


def test_the_policy_never_hears_it(home):
    policy, codec = policy_of(home)
    noisy(policy)
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        said = policy.eval()(input_ids=ids).logits
        with disabled(policy):
            reference = policy(input_ids=ids).logits
        trained, actives = set(trainable(policy)), [switch.active for switch in switches(policy)]
        policy.train()
        reward = bound(Model(str(home / "lora" / "adapter")), policy, codec)
        first = reward(GIVEN)
        assert all((policy.training, policy.model.training))
        assert first == reward(GIVEN)
        policy.eval()
        assert set(trainable(policy)) == trained
        assert {switch.active for switch in switches(policy)} == set(actives) == {"default"}
        assert torch.equal(policy(input_ids=ids).logits, said)
        with disabled(policy):
            assert torch.equal(policy(input_ids=ids).logits, reference)


def test_a_bare_policy_stays_the_base(home):
    loaded = load(f"{home}/model", dtype=torch.float32)
    loaded.model.requires_grad_(False)
    ids = torch.tensor([[5, 9, 30, 7]])
    said = loaded.model(input_ids=ids).logits
    reward = bound(Model(str(home / "lora" / "adapter")), loaded.model, codec_of(loaded))
    assert reward.heard.name == "reward_1"
    assert torch.equal(loaded.model(input_ids=ids).logits, said)
    activate(loaded.model, None)
    assert total(reward(GIVEN[:1])[0]) != 0


def test_what_moves_the_base_is_held_apart(home):
    """A policy that trains in full, a reward model that did, and another base, have no trunk in common."""
    policy, codec = policy_of(home)
    trunk = policy.model
    assert heard(home / "full" / "adapter", policy, codec).model.trunk is not trunk
    assert heard(home / "lora" / "adapter", policy, codec).model.trunk is trunk
    moving = adapt(load(f"{home}/model", dtype=torch.float32).model, Full())
    assert heard(home / "lora" / "adapter", moving, codec).model.trunk is not moving.model
    assert len(trainable(moving)) == len(base(moving))
    strange = copy.deepcopy(load(f"{home}/model", dtype=torch.float32).model).requires_grad_(False)
    with torch.no_grad():
        strange.model.norm.weight.add_(0.01)
    assert heard(home / "lora" / "adapter", strange, codec).model.trunk is not strange.model


def test_several_ride_together_and_add_up(home):
    policy, codec = policy_of(home)
    parts = ((0.5, Model(str(home / "lora" / "adapter"))), (2.0, Model(str(home / "plain" / "adapter"))))
    both = bound(Weighted((*parts, (-1.0, Length(3)))), policy, codec)
    assert names(policy) == ("default", "reward_1", "reward_2")
    assert {id(part.heard.model.trunk) for _, part in both.parts[:2]} == {id(policy.model)}
    singles = [[total(m) for m in alone(home, name)(GIVEN)] for name in ("lora", "plain")]
    lengths = [total(m) for m in Length(3)(GIVEN)]
    found = [total(m) for m in checked(both(GIVEN), GIVEN, "Weighted")]
    expected = [0.5 * one + 2 * two - three for one, two, three in zip(*singles, lengths, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_several_turns_are_read_as_several(home):
    reward = bound(Model(str(home / "lora" / "adapter")), *policy_of(home))
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"}]
    talk.append({"role": "user", "content": "say fox"})
    one, two = (Completion("say fox", "fox", fields=fields) for fields in ({}, {"prompt": talk}))
    short, long = (reward.heard.row(given).rows[0].ids for given in (one, two))
    assert long[-len(short) + 10 :] == short[10:]
    assert len(long) > len(short)
    assert reward.heard.codec.decode(long, special=True).count("<|im_end|>") == 4


def test_what_cannot_be_asked_is_refused(home, tmp_path):
    policy, codec = policy_of(home)
    with pytest.raises(UsageError, match="is no adapter folder"):
        bound(Model(str(tmp_path)), policy, codec)
    (tmp_path / "acclimate.json").write_text("{}")
    with pytest.raises(UsageError, match="brings no head"):
        bound(Model(str(tmp_path)), policy, codec)
    reward = bound(Model(str(home / "lora" / "adapter")), policy, codec)
    with pytest.raises(DataError, match="prompt 9: what was written does not fit into 256 tokens"):
        reward([Completion("why", "quick brown fox " * 300, where="prompt 9")])
    facts = json.loads((home / "lora" / "adapter" / "acclimate.json").read_text())
    facts["heads"]["default"] |= {"kind": "tag", "labels": ["a"]}
    for path in (home / "lora" / "adapter").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "acclimate.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="has a head of kind tag, which is no reward model"):
        bound(Model(str(tmp_path)), policy, codec)
