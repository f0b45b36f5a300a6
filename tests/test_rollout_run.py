"""From prompts to a report: PPO, GRPO and RLOO through the command line; broken off anywhere and resumed; refused."""

import json
from contextlib import suppress
from dataclasses import fields, replace
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from acclimate.data.examples import Conversation, Document, Example, Message
from acclimate.data.template import Template
from acclimate.errors import DataError, InputError, Interrupted, TrainingError
from acclimate.evaluation.rollouts import choose
from acclimate.interchange.adapter import load_adapter
from acclimate.methods.delta import base, snapshot
from acclimate.models.load import load
from acclimate.objectives.ppo import GRPO, PPO
from acclimate.recipe import dump, parse
from acclimate.rewards import Endpoint, Harmless, Length, Lexicon
from acclimate.rewards.rollout import Rollouts, adapted
from acclimate.rewards.watch import alarms
from acclimate.run import iterations
from acclimate.run.carry import carry, installed
from acclimate.run.iterations import drawn, history
from acclimate.run.predict import predict
from acclimate.run.prepare import prepare
from acclimate.run.rollouts import encode
from acclimate.run.train import train
from acclimate.tokens.codec import codec
from acclimate.training.folder import RunFolder, claim
from acclimate.training.signals import Stop
from tests import spelling
from tests.onpolicy import WORDS, films, spread_out
from tests.runs import overrides, verb
from tests.test_resume import QUIET, Killed, killed_after

RECIPE = """
model: {home}/model
data: {train: {home}/rows.jsonl, test: {home}/test.jsonl}
task: {template: "{{ text.split()[:4] | join(' ') }}", chat: false}
method: {name: lora, rank: 4, targets: [linear], dropout: 0.3}
objective: {name: ppo}
rollouts: {prompts: 3, each: 2, epochs: 2, parts: 2, max_new_tokens: 5, temperature: 0.8, target: 1.0}
rewards: [{name: function, function: "tests.onpolicy:vowels"}]
judge: {name: length, words: 3}
training: {steps: 10, tokens_per_step: 60, rate: 0.01, precision: float32, checkpoint_every: 3}
evaluation: {draws: 50, forgetting: false}
"""
WAYS = {
    "ppo": ("rollouts.ptx=0.5", "data.pretrain={home}/texts.jsonl"),
    "grpo": ("objective=grpo", "method=full", "training.rate=0.003"),
    "rloo": ("objective=rloo", "rollouts.parts=1"),
}
TOLD = {"reward", "reward_sd", "rollout_kl", "length", "ended", "beta", "judge"}
SEEN = {"entropy", "step_kl", "kl"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model with dropout, rows with a text each, and ordinary text."""
    folder = tmp_path_factory.mktemp("rollouts")
    spread_out(folder / "model")
    parts = {
        "rows": films("the", 20),
        "test": films("this", 7),
        "texts": [{"text": f"it is {WORDS[n % 7]} and {WORDS[n % 3]} here"} for n in range(9)],
    }
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.replace("{home}", str(folder)))
    return folder


def recipe_of(home, *overrides):
    return parse(
        RECIPE.replace("{home}", str(home)), "recipe", [word.replace("{home}", str(home)) for word in overrides]
    )


def test_an_iteration_of_one_update_reports_what_every_other_does(home, tmp_path):
    """Its KL among it, which the update itself has found; and a run that is killed ends with the same bits."""
    words = ["objective=grpo", "rollouts.epochs=1", "rollouts.parts=1", "rollouts.target=0"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for out, voice in ((straight, QUIET), (broken, killed_after(4))):
        with suppress(Killed), claim(out, resume=False) as folder:
            carry(recipe_of(home, *words), folder, Stop(), voice)
    with claim(broken, resume=True) as folder:
        carry(recipe_of(home, *words), folder, Stop(), QUIET)
    rolled = json.loads((straight / "report.json").read_text())["rollouts"]["iterations"]
    assert len(rolled) == 10
    assert all(row.keys() >= TOLD | SEEN | {"clip_fraction"} for row in rolled)
    assert rolled[0]["rollout_kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rolled[-1]["rollout_kl"]) > 1e-4
    assert {(row["clip_fraction"], row["step_kl"]) for row in rolled} == {(0.0, 0.0)}
    assert (straight / "log.jsonl").read_bytes() == (broken / "log.jsonl").read_bytes()


def run(home, out, *overrides, voice=QUIET, stop=None):
    torch.manual_seed(hash(str(out)))
    with claim(out, resume=(out / "recipe.yaml").exists()) as folder:
        carry(recipe_of(home, *overrides), folder, stop or Stop(), voice)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(home, tmp_path_factory):
    """straight(way): the folder of a run from the command line that nothing disturbed."""
    known = {}

    def made(way):
        if way not in known:
            known[way] = tmp_path_factory.mktemp("straight") / "run"
            words = [word.replace("{home}", str(home)) for word in WAYS[way]]
            verb("run", home / "recipe.yaml", *words, "--out", known[way], "--quiet")
        return known[way]

    return made


# From beginning to end


@pytest.mark.parametrize("way", WAYS)
def test_through_the_command_line(home, straight, way):
    out = straight(way)
    report = json.loads((out / "report.json").read_text())
    assert report["objective"] == way
    for side in ("base", "result"):
        score = report[side]["scores"]["reward"]
        assert score["n"] == 7
        assert score["low"] <= score["value"] <= score["high"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for side in ("base", "result"):
        earned = [total for row in rows for total in row["metrics"]["reward"][side]]
        texts = [row[side]["text"] for row in rows]
        assert earned == [sum(map(t.count, "aeiou ")) / max(1, len(t)) for t in texts]
        assert report[side]["scores"]["reward"]["value"] == pytest.approx(fmean(earned))
    assert rows[0]["prompt"] == "this quick quick number"
    rolled = report["rollouts"]
    updates = report["recipe"]["rollouts"]["epochs"] * report["recipe"]["rollouts"]["parts"]
    assert [row["step"] for row in rolled["iterations"]] == [*range(updates, 10, updates), 10]
    assert all(row.keys() >= TOLD | SEEN for row in rolled["iterations"])
    assert rolled["kl"]["value"] == pytest.approx(fmean(row["result"]["scores"]["kl"] for row in rows))
    assert rolled["kl"]["value"] != 0
    assert {row["base"]["scores"]["kl"] for row in rows} == {0.0}
    assert 1 <= rolled["length"]["result"]["value"] <= 5
    log = log_of(out)
    assert [row["metrics"]["reward"] for row in log[:updates]] == [rolled["iterations"][0]["reward"]] * updates
    assert rolled["iterations"][0]["rollout_kl"] == pytest.approx(0, abs=1e-5)
    how, told = Rollouts(prompts=3, each=2, target=1.0), rolled["iterations"]
    for before, after in pairwise(told):
        assert after["beta"] == pytest.approx(adapted(before["beta"], before["rollout_kl"], how), rel=1e-12)
    assert told[0]["beta"] == how.beta != told[-1]["beta"]
    page = (out / "report.html").read_text()
    assert "KL to the reference, nats a completion" in page
    assert ("Squared error of the value head" in page) == (way == "ppo")


@pytest.mark.parametrize("way", WAYS)
def test_every_iteration_begins_on_the_policy_that_sampled_whatever_dropout_says(straight, way):
    """G17: the model drops attention, LoRA its inputs, the temperature is not 1; all the same the first ratio is 1."""
    log, updates = log_of(straight(way)), 2 if way == "rloo" else 4
    firsts = [row["metrics"] for row in log if (row["step"] - 1) % updates == 0]
    assert all(abs(row["step_kl"]) <= 1e-9 for row in firsts)
    assert any(row["metrics"]["step_kl"] > 1e-8 for row in log)


def test_the_value_head_is_in_the_checkpoint_and_nowhere_else(home, straight):
    out = straight("ppo")
    kept = load_file(out / "checkpoints" / "step-00000010" / "tensors.safetensors")
    assert kept["model/value_head.weight"].abs().max() > 0
    (file,) = (out / "adapter").glob("*.safetensors")
    assert not any("value_head" in name for name in load_file(file))
    facts = [json.loads((straight(way) / "adapter" / "acclimate.json").read_text()) for way in ("ppo", "rloo")]
    assert facts[0]["base"] == facts[1]["base"]
    counts = [
        json.loads((straight(way) / "report.json").read_text())["trainable_parameters"] for way in ("ppo", "rloo")
    ]
    assert counts[0] == counts[1]
    load_adapter(load(str(home / "model")).model, out / "adapter")


def test_the_reference_is_the_trunk_itself_or_a_copy_of_what_trains(home):
    for method, copied in (("lora", False), ("full", True)):
        prepared, model = installed(prepare(recipe_of(home, f"method={method}")))
        places = {name: p.data_ptr() for name, p in base(model).items()}
        prepared = iterations.opened(prepared, model)
        mine = {name: t.data_ptr() for name, t in prepared.rolled.originals.items()}
        assert bool(mine) == copied
        assert not set(mine.values()) & set(places.values())
        assert {name: p.data_ptr() for name, p in base(model).items() if name in places} == places
        assert all(torch.equal(t, snapshot(model)[name]) for name, t in prepared.rolled.originals.items())


def test_the_reference_has_the_same_bits_after_training(home, tmp_path):
    prepared, model = installed(prepare(recipe_of(home, "training.steps=4")))
    before = {name: p.clone() for name, p in base(model).items()}
    train(prepared, model, RunFolder(tmp_path, -1), Stop(), (), lambda step: None, lambda line: None)
    assert base(model).keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in base(model).items())


def test_soft_tokens_are_the_policy_s_alone(home, tmp_path):
    """The reference reads the prompts without them, so it is the base: at the start already they are apart."""
    run(home, tmp_path / "run", "method={name: prompt, length: 3}", "training.steps=2")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rollouts"]["iterations"][0]["rollout_kl"] != 0
    assert report["rollouts"]["kl"]["value"] != 0


# Resumed


def assert_same(one, other):
    for name in ("log.jsonl", "predictions.jsonl", "recipe.yaml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    last = "checkpoints/step-00000010/tensors.safetensors"
    left, right = load_file(one / last), load_file(other / last)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (one, other))
    assert ours["rollouts"] == theirs["rollouts"]
    assert ours["difference"] == theirs["difference"]


@pytest.mark.parametrize(("way", "step"), [("ppo", 5), ("ppo", 7), ("grpo", 6), ("rloo", 4)])
def test_killed_after_a_step(home, straight, tmp_path, way, step):
    """A checkpoint every third step, an iteration of two or four: in the middle of one and between two (G28)."""
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(home, out, *WAYS[way], voice=killed_after(step))
    run(home, out, *WAYS[way])
    assert_same(straight(way), out)


def dying(monkeypatch, at, how):
    """The so-manieth completions are never finished: `how(stop_check)` happens instead."""
    real, calls = iterations.collect, []

    def collect(*given, **named):
        calls.append(1)
        if len(calls) == at:
            how(named["stop_check"])
        return real(*given, **named)

    monkeypatch.setattr(iterations, "collect", collect)


def test_killed_while_sampling_and_again(home, straight, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def die(stop_check):
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch:
            dying(patch, 2, die)
            with pytest.raises(Killed):
                run(home, out, *WAYS["ppo"])
    run(home, out, *WAYS["ppo"])
    assert_same(straight("ppo"), out)


def test_a_signal_while_sampling_costs_no_step(home, straight, tmp_path, monkeypatch):
    """G31: the checkpoint of the step before is written, though none was due."""
    out, stop = tmp_path / "run", Stop()

    def ask(stop_check):
        stop.requested = "SIGTERM"

    with monkeypatch.context() as patch:
        dying(patch, 2, ask)
        with pytest.raises(Interrupted, match="SIGTERM stopped the run during sampling, after step 4"):
            run(home, out, *WAYS["ppo"], stop=stop)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    heard = []
    run(home, out, *WAYS["ppo"], voice=replace(QUIET, step=lambda step, steps: heard.append(step.index)))
    assert heard[0] == 5
    assert_same(straight("ppo"), out)


def test_an_older_checkpoint_still_finds_its_completions(home, straight, tmp_path):
    out, said = tmp_path / "run", []
    with pytest.raises(Killed):
        run(home, out, *WAYS["ppo"], voice=killed_after(7))
    (out / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    run(home, out, *WAYS["ppo"], voice=replace(QUIET, say=said.append))
    assert any("step-00000006 is broken" in line for line in said)
    assert_same(straight("ppo"), out)


def test_completions_that_are_gone_are_not_drawn_again_in_silence(home, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(home, out, *WAYS["ppo"], voice=killed_after(3))
    for path in (out / "rollouts" / "step-00000000").iterdir():
        path.unlink()
    (out / "rollouts" / "step-00000000").rmdir()
    with pytest.raises(TrainingError, match="completions of iteration 0 are not in the run folder any more"):
        run(home, out, *WAYS["ppo"])


def test_old_completions_are_deleted(straight):
    """Those that no checkpoint there was at the last iteration could go on with."""
    kept = sorted(int(path.name.split("-")[1]) for path in (straight("rloo") / "rollouts").iterdir())
    assert kept == [
        2,
        4,
        6,
        8,
    ]  # after step 8 the checkpoints are those of 3 and 6; step 3 is the first of two from 2 on
    assert sorted(drawn(5, 5, 1, 0)) == sorted(drawn(5, 5, 1, 1)) == list(range(5))
    assert drawn(5, 5, 1, 0) != drawn(5, 5, 1, 1)
    assert drawn(5, 12, 1, 0)[:5] == drawn(5, 5, 1, 0)


# Options

CHANGES = {
    "PPO.clip": "objective.clip=1e-6",
    "PPO.value_clip": "objective.value_clip=1e-6",
    "PPO.value_weight": "objective.value_weight=1.0",
    "PPO.gamma": "objective.gamma=0.5",
    "PPO.lam": "objective.lam=0.5",
    "PPO.entropy": "objective.entropy=0.1",
    "PPO.truncated": "objective.truncated=goes on",
    "GRPO.clip": "objective={name: grpo, clip: 1e-6}",
    "Rollouts.prompts": "rollouts.prompts=4",
    "Rollouts.each": "rollouts.each=3",
    "Rollouts.epochs": "rollouts.epochs=1",
    "Rollouts.parts": "rollouts.parts=1",
    "Rollouts.max_new_tokens": "rollouts.max_new_tokens=4",
    "Rollouts.temperature": "rollouts.temperature=1.2",
    "Rollouts.beta": "rollouts.beta=0.5",
    "Rollouts.target": "rollouts.target=0.0",
    "Rollouts.horizon": "rollouts.horizon=50",
    "Rollouts.unended": "rollouts.unended=-1.0",
    "Rollouts.ptx": "rollouts.ptx=0.5 data.pretrain={home}/texts.jsonl",
    "Data.pretrain": "rollouts.ptx=0.5 data.pretrain={home}/rows.jsonl",
    "Recipe.rewards": "rewards=length",
    "Recipe.judge": "judge=[]",
}
BASES = {"GRPO.clip": "objective=grpo", "Data.pretrain": "rollouts.ptx=0.5 data.pretrain={home}/texts.jsonl"}


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    """trained(overrides): the log of five steps."""
    known = {}

    def made(words):
        if words not in known:
            folder = tmp_path_factory.mktemp("options")
            prepared, model = installed(prepare(recipe_of(home, "training.steps=5", *overrides(words))))
            train(
                prepared, model, RunFolder(folder, -1), Stop(), (), lambda s: None, lambda line: None, resumable=False
            )
            known[words] = log_of(folder)
        return known[words]

    return made


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_course(trained, name):
    assert trained(BASES.get(name, "")) != trained(CHANGES[name])


def test_every_option_on_rollouts_has_its_case():
    wanted = {f"{kind.__name__}.{f.name}" for kind in (PPO, GRPO, Rollouts) for f in fields(kind)}
    assert CHANGES.keys() == wanted | {"Data.pretrain", "Recipe.rewards", "Recipe.judge"}


def test_weights_and_options_of_rewards_reach_them():
    text = """
model: m
data: {train: a}
rewards:
  - {name: lexicon, positive: false, weight: 2}
  - {name: harmless, per: sentence, weight: 0.5}
  - {name: length, words: 7}
judge: {name: endpoint, url: "http://there", seconds: 3, tries: 1}
"""
    recipe = parse(text)
    assert recipe.rewards == ((2.0, Lexicon(positive=False)), (0.5, Harmless("sentence")), (1.0, Length(7)))
    assert recipe.judge == ((1.0, Endpoint("http://there", 3.0, 1)),)
    assert parse(dump(recipe)) == recipe
    assert parse(text, overrides=["rewards=lexicon"]).rewards == ((1.0, Lexicon()),)


# Refused

ODD = {
    "rewards=[]": r"Objective ppo needs rewards",
    "objective=lm rewards=[] judge=[]": r"rollouts has no meaning for objective lm without rewards; set objective to ppo",
    "objective=lm rollouts.ptx=0.5": r"rollouts.ptx has no meaning for objective lm; set objective to ppo",
    "objective=reward": r"rollouts has no meaning for objective reward; set objective to ppo",
    "data.sampled={each: 2}": r"data.sampled has no meaning for objective ppo, which compares no completions",
    "data.sampled={each: 2} objective=dpo rewards=[]": r"data.sampled needs rewards, which put completions in order",
    "data.sampled={each: 1}": r"sampled needs prompts from 1 on, and each from 2 on",
    "judge=[] task.metrics=[judge]": r"The metric judge needs a judge",
    "objective=grpo rollouts.each=1": r"set rollouts.each to 2 at least, not 1",
    "objective=rloo rollouts.each=1": r"Objective rloo compares completions of one prompt",
    "rollouts.ptx=0.5": r"data.pretrain, the ordinary text that it weighs, need each other",
    "data.pretrain={home}/texts.jsonl": r"need each other",
    "objective=grpo rollouts.ptx=0.5 data.pretrain={home}/texts.jsonl": r"rollouts.ptx is for objective ppo, not grpo",
    "task.labels=[x, y]": r"objective ppo has a model write freely",
    "training.checkpointing=true": r"training.checkpointing needs a mode with dropout",
    "task.metrics=[perplexity]": r"perplexity does not measure what a model writes",
    "rollouts.max_new_tokens=300": r"rollouts.max_new_tokens is 300, which leaves no room for a prompt: 256 tokens fit",
    "rollouts.parts=9": r"recipe:\d+: rollouts: 3 · 2 completions cannot be cut into 9 parts",
    "rewards=[{name: lexico}]": r"recipe:\d+: No rewards is called 'lexico'. Did you mean 'lexicon'\?",
    "rewards=[{name: lexicon, weight: much}]": r"recipe:\d+: rewards.weight must be a number, not 'much'",
    "rewards=[{name: lexicon, pr: text}]": r"recipe:\d+: No option of rewards is called 'pr'",
    "rewards=[[lexicon]]": r"recipe:\d+: rewards must be a table",
    "objective.value_weight=0": r"value_weight above 0",
}


@pytest.mark.parametrize("words", ODD)
def test_what_does_not_fit_is_refused(home, tmp_path, words):
    with pytest.raises(InputError, match=ODD[words]):
        run(home, tmp_path / "run", *overrides(words))


@pytest.mark.parametrize("way", WAYS)
def test_a_plan_takes_completions_to_be_as_long_as_they_may_be(home, straight, way):
    """It counts the tokens of the very prompts that every update of the run had, each with all that may be written."""
    recipe = recipe_of(home, *(word for word in WAYS[way] if "pretrain" not in word and "ptx" not in word))
    found = predict(recipe)
    log = [row for row in log_of(straight(way)) if "loss" in row]
    how = recipe.rollouts
    written = how.prompts * how.each // how.parts * how.max_new_tokens
    assert found.scored_tokens == written * len(log)
    assert found.steps == len(log) == 10
    prompt = found.tokens - found.scored_tokens
    if way != "ppo":  # whose updates read ordinary text as well
        assert prompt == sum(row["tokens"] - row["scored_tokens"] for row in log)
    assert found.memory > found.activations > 0
    assert found.seconds > 0
    assert "as long as rollouts.max_new_tokens" in found.lines()[-1]
    assert "not in the forecast: the time that writing them takes" in found.lines()[-1]
    head = 33 if way == "ppo" else 0  # the value head: 32 weights and a bias
    assert (
        found.trainable_parameters
        == json.loads((straight(way) / "report.json").read_text())["trainable_parameters"] + head
    )


def test_a_judge_alone_has_no_objective(home):
    text = f"model: {home}/model\ndata: {{train: {home}/rows.jsonl}}\njudge: lexicon\n"
    with pytest.raises(InputError, match="judge has no meaning for objective lm without rewards"):
        prepare(parse(text))


# Prompts

READER = codec(spelling.byte_level())


def test_prompts_of_examples_documents_and_conversations():
    talk = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))
    chat = Template(chat=READER.chat())
    (prompt,), _ = encode([Conversation(talk)], chat, READER, 200, "error")
    shown = READER.decode(prompt.row.ids, special=True)
    assert shown.endswith("three<|im_end|>\n<|im_start|>assistant\n")
    assert "two" in shown
    assert "four" not in shown
    assert not any(prompt.row.scored)
    assert prompt.text == "one\n\ntwo\n\nthree"
    plain = Template("{{ text.split()[:2] | join(' ') }}")
    (one, other), _ = encode([Document("a b c"), Example("x", fields={"text": "d e f"})], plain, READER, 200, "error")
    assert (one.text, other.text) == ("a b", "d e")
    assert READER.decode(other.row.ids) == "d e"
    assert (one.number, other.number) == (0, 1)
    with pytest.raises(DataError, match="nothing before its last answer"):
        encode([Conversation((Message("assistant", "hi"),), "here")], chat, READER, 200, "error")


def test_prompts_that_are_too_long():
    rows = [Document("short", "a"), Document("long " * 20, "b"), Document("tiny", "c")]
    found, told = encode(rows, Template("{{ text }}"), READER, 12, "drop")
    assert ([p.text for p in found], [p.number for p in found], told.dropped) == (["short", "tiny"], [0, 1], ["b"])
    found, told = encode(rows, Template("{{ text }}"), READER, 12, "truncate-prompt")
    assert (found[1].row.size, told.cut, found[1].row.truncated > 0) == (12, ["b"], True)
    with pytest.raises(DataError, match=r"b is \d+ tokens long; 12 fit"):
        encode(rows, Template("{{ text }}"), READER, 12, "error")


# What was seen


def course(**columns):
    """Nine iterations; a column is a pair (first, last), between which it moves evenly, with a little noise."""
    usual = {"reward": (0.0, 0.0), "rollout_kl": (0.0, 2.0), "length": (20.0, 20.0), "entropy": (3.0, 2.5)} | columns
    return [{name: a + (b - a) * i / 8 + 0.01 * (-1) ** i for name, (a, b) in usual.items()} for i in range(9)]


def test_alarms():
    assert alarms(course()) == []
    assert alarms(course(reward=(0, 1), judge=(0.5, 0.9))) == []
    (said,) = alarms(course(reward=(0, 1), judge=(0.9, 0.1)))
    assert "reward rose while the judge's fell, from 0.8" in said
    assert alarms(course(reward=(1, 0), judge=(0.9, 0.1))) == []
    (said,) = alarms(course(rollout_kl=(0, 40.0)))
    assert "nats a completion from its reference" in said
    assert len(alarms(course(rollout_kl=(0, 8.0)), target=3.0)) == 1
    assert alarms(course(rollout_kl=(0, 8.0)), target=6.0) == []
    (said,) = alarms(course(length=(10.0, 40.0)))
    assert "paying for length" in said
    assert len(alarms(course(length=(40.0, 5.0)))) == 1
    (said,) = alarms(course(entropy=(3.0, 0.1)))
    assert "hardly tries anything else" in said
    assert alarms(course(entropy=(3.0, 0.1))[:5]) == []


def test_history_is_a_mean_over_the_updates_of_an_iteration():
    log = [{"step": s, "loss": 0.0, "metrics": {"kl": float(s), "reward": 1.0}} for s in (1, 2, 3, 4, 5)]
    assert history([*log, {"step": 4, "dev": {}}], 2) == [
        {"step": 2, "kl": 1.5, "reward": 1.0},
        {"step": 4, "kl": 3.5, "reward": 1.0},
        {"step": 5, "kl": 5.0, "reward": 1.0},
    ]


def test_metrics_of_text_stand_beside_the_reward():
    assert [metric.name for metric in choose(())] == ["reward"]
    assert [metric.name for metric in choose(("reward", "dist2"))] == ["reward", "dist2"]


def test_an_alarm_lands_in_the_report(home, tmp_path):
    """Ten iterations of one update that a large rate drives far from the reference."""
    far = ("rollouts={prompts: 4, epochs: 1, parts: 1, max_new_tokens: 5, target: 0.001}", "training.rate=0.3")
    run(home, tmp_path / "run", *far)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("nats a completion from its reference" in said for said in report["warnings"])
    assert "from its reference" in (tmp_path / "run" / "report.html").read_text()
