"""From rows of comparisons to a report: DPO and its family and a reward model, through the command line; resumed, refused."""

import json
import math
from dataclasses import replace
from itertools import product
from zlib import crc32

import pytest
import torch
import yaml
from safetensors.torch import load_file

from acclimate.errors import AcclimateError, InputError
from acclimate.interchange.adapter import load_adapter
from acclimate.methods import Full
from acclimate.methods.delta import adapt
from acclimate.models.heads import trunk_with_heads
from acclimate.models.load import load
from acclimate.recipe import parse
from acclimate.run import reference as run_reference
from acclimate.run.carry import Voice, carry
from acclimate.run.predict import predict
from acclimate.run.prepare import prepare
from acclimate.run.train import groups
from acclimate.tokens.pairs import reading
from acclimate.tokens.reading import sheet
from acclimate.tokens.schedule import plan
from acclimate.training import reference as training_reference
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests import spelling, tiny
from tests.runs import verb

QUIET = Voice(lambda line: None, lambda what, n: lambda done: None, lambda step, steps: None, lambda prepared: None)
WORDS = ("quick", "brown", "lazy", "good", "bad", "fox", "dog")
RECIPE = """
model: {home}/model
data: {train: {home}/pairs.jsonl, test: {home}/test.jsonl}
method: {name: lora, rank: 4, targets: [linear]}
objective: {name: dpo}
training: {steps: 4, tokens_per_step: 400, rate: 0.01, precision: float32, checkpoint_every: 2, dev_every: 2}
evaluation: {draws: 50, forgetting: false}
"""


def rows_of(numbers, turns=1):
    """The longer completion is the better one, but where the number ends in 3 or 7."""
    rows = []
    for n in numbers:
        asked = f"say {WORDS[n % 7]} {n}"
        talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello there"}]
        prompt = [*talk, {"role": "user", "content": asked}] if turns > 1 else asked
        long, short = " ".join(WORDS[: 3 + n % 4]), WORDS[n % 5]
        chosen, rejected = (long, short) if n % 10 not in (3, 7) else (short, long)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def ranked(numbers):
    return [
        {
            "prompt": f"say {WORDS[n % 7]} {n}",
            "completions": [WORDS[n % 7], " ".join(WORDS[:4]), " ".join(WORDS[:2])],
            "ranking": [3, 1, 2] if n % 3 else [2, 1, 2],
        }
        for n in numbers
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that drops attention weights while it trains, and rows."""
    folder = tmp_path_factory.mktemp("preferences")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer), dropout=0.2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    parts = {"pairs": rows_of(range(40)), "test": rows_of(range(100, 114)), "talks": rows_of(range(40), turns=3)}
    parts |= {"ranked": ranked(range(40)), "texts": [{"prompt": f"a {n}", "completion": "b"} for n in range(40)]}
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.replace("{home}", str(folder)))
    return folder


def run(home, out, *overrides, voice=QUIET):
    torch.manual_seed(crc32(str(out).encode()))
    recipe = parse(RECIPE.replace("{home}", str(home)), "recipe", [w.replace("{home}", str(home)) for w in overrides])
    with claim(out, resume=(out / "recipe.yaml").exists()) as folder:
        carry(recipe, folder, Stop(), voice)
    return json.loads((out / "report.json").read_text())


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


METRICS = {
    *("pair_accuracy", "margin", "likelihood_accuracy"),
    *("pair_ece", "pair_accuracy_longer_wrong", "length_correlation"),
}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_dpo_through_the_command_line(home, tmp_path, method, capsys):
    """The model drops attention weights and the adapter its inputs: the reference sees neither, nor does the policy."""
    out = tmp_path / "run"
    given = "{name: lora, rank: 4, dropout: 0.5}" if method == "lora" else method
    verb("run", home / "recipe.yaml", f"method={given}", "--out", out, "--quiet")
    report = json.loads((out / "report.json").read_text())
    assert (report["objective"], report["method"]) == ("dpo", method)
    for name in METRICS:
        base, result, change = (report[side] for side in ("base", "result", "difference"))
        assert base["scores"][name]["n"] == result["scores"][name]["n"] == 14
        score = result["scores"][name]
        assert score["low"] <= score["value"] <= score["high"]
        assert change[name]["value"] == pytest.approx(score["value"] - base["scores"][name]["value"])
    assert report["base"]["scores"]["pair_accuracy"]["value"] == 0.5
    assert report["base"]["scores"]["margin"]["value"] == 0.0
    assert report["result"]["scores"]["margin"]["value"] > 0
    first = next(row for row in log_of(out) if row["step"] == 1)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert {"pair_accuracy", "margin", "reward_chosen", "reward_rejected"} == first["metrics"].keys()
    assert len(json.loads((out / "reference.json").read_text())["rows"]) > 14
    assert "pair_accuracy: 0.5000 →" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    asked = rows_of(range(100, 114))
    assert [row["target"] for row in rows] == [row["chosen"] for row in asked]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in asked]
    for row in rows:
        scores = row["result"]["scores"]
        first = "chosen" if scores["reward 1"] > scores["reward 2"] else "rejected"
        assert row["result"]["text"] == asked[row["row"]][first]
        moved = scores["log p 1"] - row["base"]["scores"]["log p 1"]
        assert scores["reward 1"] == pytest.approx(0.1 * moved, abs=1e-9)
    page = (out / "report.html").read_text()
    assert "pair accuracy" in page


def test_a_reward_model_through_the_command_line(home, tmp_path):
    out = tmp_path / "run"
    ranked = (
        f"data.train={home}/ranked.jsonl",
        f"data.test={home}/test.jsonl",
        "objective=reward",
        "training.steps=12",
    )
    verb("run", home / "recipe.yaml", *ranked, "--out", out, "--quiet")
    report = json.loads((out / "report.json").read_text())
    assert report["objective"] == "reward"
    assert set(report["result"]["scores"]) == METRICS - {"likelihood_accuracy"}
    assert report["task"]["head"] == "regress"
    log = [row for row in log_of(out) if "loss" in row]
    assert log[-1]["loss"] < log[0]["loss"]


# What was trained comes back


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_a_reloaded_reward_model_scores_the_same_and_its_zero_is_the_demonstrations(home, tmp_path, method):
    run(home, tmp_path / "run", "objective=reward", f"method={method}")
    prepared = prepare(parse((tmp_path / "run" / "recipe.yaml").read_text()))
    model = trunk_with_heads(load(f"{home}/model", dtype=torch.float32, task="encoder"), pooler=False)
    load_adapter(model, tmp_path / "run" / "adapter")
    model.eval()

    def rewards(rows):
        read = [reading(row, "last", 0) for row in rows]
        with torch.no_grad():
            return model(sheet(read, model.shape(), 2)).view(-1, 2)

    best = rewards(prepared.pairs.train)[:, 0]
    assert float(best.mean()) == pytest.approx(0, abs=1e-5)
    assert float(best.std()) > 1e-3
    told = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    for row, found in zip(told, rewards(prepared.pairs.test).tolist(), strict=True):
        assert [row["result"]["scores"][f"reward {i}"] for i in (1, 2)] == pytest.approx(found, abs=1e-5)


def test_without_a_learning_rate_nothing_changes(home, tmp_path):
    report = run(home, tmp_path / "run", "training.rate=0.0", "training.steps=2")
    assert {name: change["value"] for name, change in report["difference"].items()} == dict.fromkeys(METRICS, 0.0)


@pytest.mark.parametrize("method", ["lora", "{name: prompt, length: 3}"])
def test_a_plan_counts_what_the_run_reads(home, tmp_path, method):
    run(home, tmp_path / "run", "training.steps=2", f"method={method}")
    recipe = parse((tmp_path / "run" / "recipe.yaml").read_text())
    forecast = predict(recipe)
    log = [row for row in log_of(tmp_path / "run") if "loss" in row]
    assert forecast.tokens == sum(row["tokens"] for row in log)
    assert forecast.scored_tokens == sum(row["scored_tokens"] for row in log)
    assert (
        forecast.trainable_parameters
        == json.loads((tmp_path / "run" / "report.json").read_text())["trainable_parameters"]
    )
    assert predict(replace(recipe, method=Full())).trainable_parameters == forecast.total_parameters


# Resumed


class Killed(BaseException):
    """Nothing in the package expects it."""


WAYS = {
    "dpo": (),
    "dpo, full": ("method=full", "training.tokens_per_pass=100"),
    "kto, full": ("objective=kto", "method=full"),
    "reward": ("objective=reward",),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_has_the_same_bits(home, tmp_path, way):
    def die(done, steps):
        if done.index == 3:
            raise Killed

    run(home, tmp_path / "straight", *WAYS[way])
    with pytest.raises(Killed):
        run(home, tmp_path / "broken", *WAYS[way], voice=replace(QUIET, step=die))
    run(home, tmp_path / "broken", *WAYS[way])
    one, other = tmp_path / "straight", tmp_path / "broken"
    for name in ("log.jsonl", "predictions.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    (ours,) = (one / "adapter").glob("*.safetensors")
    left, right = load_file(ours), load_file(other / "adapter" / ours.name)
    assert all(torch.equal(left[key], right[key]) for key in left)
    if (one / "reference.json").exists():
        assert (one / "reference.json").read_bytes() == (other / "reference.json").read_bytes()


# Every objective, every shape of rows

AT_FIRST = {"ipo": 25.0, "kto": 0.5}  # (1 / 2β)² with β = 0.1, and 1 − σ(0): the policy is its reference still


@pytest.mark.parametrize("objective", ["ipo", "kto", "simpo", "orpo", "unlikelihood", "preferred_ft"])
def test_the_family_goes_the_whole_way(home, tmp_path, objective):
    report = run(home, tmp_path / "run", f"objective={objective}", "training.steps=2", "training.dev_every=1")
    assert report["objective"] == objective
    if objective in AT_FIRST:
        assert log_of(tmp_path / "run")[0]["loss"] == pytest.approx(AT_FIRST[objective], rel=1e-5)
    dev = [row["dev"]["loss"] for row in log_of(tmp_path / "run") if "dev" in row]
    assert dev[-1] < dev[0]


@pytest.mark.parametrize(
    "words",
    [
        ("data.train={home}/talks.jsonl", "data.dev={home}/test.jsonl"),
        ("data.train={home}/ranked.jsonl",),
        ("method={name: prompt, length: 3}",),
        ("method={name: prefix, length: 3}", "objective=kto"),
        ("method={name: prompt, length: 3}", "objective=reward"),
        ("task.chat=false", "task.template={{ prompt }} is"),
    ],
    ids=lambda words: " ".join(words).replace("{home}/", ""),
)
def test_rows_and_methods_of_any_shape(home, tmp_path, words):
    report = run(home, tmp_path / "run", *words, "training.steps=2")
    assert report["training"]["steps"] == 2
    assert report["result"]["scores"]["pair_accuracy"]["n"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("objective=lm",), "kind Preference, which objective lm does not learn from; choose one of: dpo, ipo"),
        (
            ("data.train={home}/texts.jsonl",),
            "kind Example, which objective dpo does not learn from; choose one of: lm",
        ),
        (("task.labels=[a, b]",), "rows that compare completions have none"),
        (("task.head=true",), "This objective trains a model that writes"),
        (("objective=reward", "data.truncation=truncate-response"), "a reward is read at the end"),
        (("task.metrics=[accuracy]",), "metric of preferences"),
        (("data.train={home}/talks.jsonl", "data.dev={home}/test.jsonl", "task.chat=false"), "need a chat format"),
    ],
)
def test_what_does_not_go_together_is_said(home, tmp_path, words, said):
    with pytest.raises(InputError, match=said):
        run(home, tmp_path / "run", *words)


def test_a_method_that_moves_the_base_must_know_its_reference_first(home):
    recipe = yaml.safe_load((home / "recipe.yaml").read_text()) | {"method": {"name": "full"}}
    prepared = prepare(parse(json.dumps(recipe)))
    model = adapt(prepared.model, prepared.recipe.method)
    with pytest.raises(AcclimateError, match="its reference must be asked before training"):
        next(groups(prepared, model, 0, lambda line: None))


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_the_reference_of_every_row_is_asked_once_however_many_epochs(home, tmp_path, monkeypatch, objective):
    """Of the rows that the steps see and of dev, each by itself; later steps and other measurements ask nothing."""
    asked, epochs = [], ("training.steps=12", "training.tokens_per_step=800", "training.tokens_per_pass=400")
    plain = training_reference.base_logprobs

    def counted(model, batch, documents, autocast=None):
        asked.append(documents)
        return plain(model, batch, documents, autocast)

    for module in (training_reference, run_reference):
        monkeypatch.setattr(module, "base_logprobs", counted)
    run(home, tmp_path / "run", f"objective={objective}", *epochs)
    kept = json.loads((tmp_path / "run" / "reference.json").read_text())["rows"]
    prepared = prepare(parse((tmp_path / "run" / "recipe.yaml").read_text()))
    seen = {row for step in planned(prepared) for row in step}
    assert len(kept) == len(asked) == len(seen) + len(prepared.dev.rows)
    assert sum(map(len, planned(prepared))) > 2 * len(seen)


def planned(prepared):
    how = prepared.recipe.training
    return plan([row.size for row in prepared.train.rows], how.tokens_per_step, how.steps, how.seed)


def test_rows_that_no_step_sees_are_not_asked(home, tmp_path):
    run(home, tmp_path / "run", "training.steps=1", "training.tokens_per_step=120")
    kept = json.loads((tmp_path / "run" / "reference.json").read_text())["rows"]
    prepared = prepare(parse((tmp_path / "run" / "recipe.yaml").read_text()))
    assert len(kept) == len(planned(prepared)[0]) + len(prepared.dev.rows) < len(prepared.train.rows)


def test_what_is_asked_once_is_what_every_step_would_be_told(home):
    """Gradients of an update whose rows know their reference, and of one that asks for it as it goes."""
    prepared = prepare(parse(RECIPE.replace("{home}", str(home)), "recipe", ["training.precision=float32"]))
    model = adapt(prepared.model, prepared.recipe.method, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".delta.b"):
                parameter.normal_(std=0.1)
    rows, slopes = prepared.train.rows[:4], []
    known = training_reference.referenced(rows, model, prepared.codec.pad, home / "one-reference.json", "base")
    for each in (rows, known):
        batch = run_reference.batch(prepared, model, each)
        model.zero_grad()
        prepared.objective(model, batch).total.backward()
        slopes.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert slopes[0].keys() == slopes[1].keys()
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slope, slopes[1][name], rtol=1e-4, atol=1e-6)


def test_every_combination_of_rows_is_split_by_the_prompt(home):
    prepared = prepare(parse(RECIPE.replace("{home}", str(home)), "recipe", [f"data.test={home}/pairs.jsonl"]))
    asked = [
        {row.prompt[0].content for row in part.rows} for part in vars(prepared.parts).values() if hasattr(part, "rows")
    ]
    assert all(not a & b for (i, a), (j, b) in product(enumerate(asked), repeat=2) if i < j)
