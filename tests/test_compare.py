"""`acclimate compare` on a model of a few thousand weights: one base, one split, fair trials, resumption, failures."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import pytest
import torch

from acclimate.cli.main import app
from acclimate.data.examples import Output
from acclimate.errors import AcclimateError, DataError, Interrupted, ModelError
from acclimate.evaluation.general import OPEN
from acclimate.interchange.adapter import load_adapter
from acclimate.methods import METHODS
from acclimate.metrics.labels import Accuracy
from acclimate.models.fingerprint import fingerprint
from acclimate.report.comparison import comparison_page
from acclimate.run import compare
from acclimate.run import measure as measuring
from acclimate.run.borrow import borrowed
from acclimate.run.carry import Voice
from acclimate.run.compare import bench, carry_base, carry_rungs
from acclimate.run.dev import on_dev
from acclimate.run.measure import measure
from acclimate.run.rows import comparison
from acclimate.run.rungs import WAYS, load
from acclimate.training.signals import Stop
from tests import spelling, tiny
from tests.runs import ROOT, verb

RUNGS = """
  - {method: {name: lora, rank: 4, targets: [query, value, up]}}
  - {method: full, rates: [1.0e-3, 1.0e-2]}
  - {name: prompt only, method: none}
  - {name: broken, method: {name: lora, targets: ["*.nowhere"]}}
"""
QUIET = Voice(lambda said: None, lambda what, count: lambda done: None, lambda step, steps: None, lambda p: None)
SIDE = {"seconds", "tokens_per_second", "peak_memory_bytes", "inference_seconds_per_example", "machine"}


def recipe(home, path, rungs=RUNGS, more=""):
    path.write_text(
        f"""model: {home}/model
data: {{train: {home}/rows.jsonl, dev: {home}/dev.jsonl, test: {home}/test.jsonl}}
task: {{template: "is it good or bad? {{{{ text }}}}:", labels: [bad, good], metrics: [accuracy, balanced_accuracy], chat: false}}
training: {{steps: 8, tokens_per_step: 128, precision: float32, checkpoint_every: 2}}
evaluation: {{draws: 50, forgetting: false}}
rungs: {rungs}
search: {{rates: [2.0e-3, 2.0e-2], rows: 8}}
quick: {{training: {{steps: 3}}}}
{more}"""
    )
    return path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(first, count):
    return [{"text": f"the {word} {n}", "label": word} for n in range(first, first + count) for word in ("bad", "good")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines(folder / "rows.jsonl", rows_of(0, 24))
    lines(folder / "dev.jsonl", rows_of(30, 6))
    lines(folder / "test.jsonl", rows_of(40, 9))
    recipe(folder, folder / "compare.yaml")
    return folder


@pytest.fixture(scope="module")
def finished(home):
    out = home / "finished"
    verb("compare", home / "compare.yaml", "--out", out, "--quiet")
    return out


def made(home, out, path=None, stop=None, **changes):
    """The comparison carried out in this process, up to what compare.json would hold."""
    out.mkdir(exist_ok=True)
    found = bench(load(path or home / "compare.yaml", **changes), out, stop or Stop(), QUIET)
    carry_base(found)
    carry_rungs(found)
    return comparison(found)


def timeless(tree):
    """Without times, memory and machine."""
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in SIDE}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def read(out):
    return json.loads((out / "compare.json").read_text())


def test_the_table_is_as_the_contract_says(finished):
    found = read(finished)
    assert [row["name"] for row in found["rows"]] == ["lora", "full", "prompt only", "broken"]
    lora, full, prompt, broken = found["rows"]
    wanted = {"name", "scores", "trainable_parameters", "training", "inference_seconds_per_example", "forgetting"}
    for row in (lora, full, prompt):
        assert wanted <= row.keys()
        assert row["scores"]["accuracy"]["n"] == 18
        assert row["inference_seconds_per_example"] > 0
    assert {"steps", "tokens", "seconds", "tokens_per_second", "peak_memory_bytes"} <= lora["training"].keys()
    assert full["trainable_parameters"] == full["total_parameters"] > lora["trainable_parameters"] > 0
    assert lora["artifact"]["bytes"] == sum(
        path.stat().st_size for path in (finished / lora["artifact"]["path"]).iterdir()
    )
    assert prompt["scores"] == found["base"]["scores"]
    assert (prompt["trainable_parameters"], prompt["rate"], prompt["search"]["trials"]) == (0, None, 0)
    assert prompt["difference"]["base"]["accuracy"]["value"] == 0
    assert broken["failed"].startswith("No linear layer of this model matches '*.nowhere'.")
    assert found["seconds"]["search"] == pytest.approx(
        sum(trial["seconds"] for row in (lora, full) for trial in row["search"]["rounds"][0])
    )
    assert (finished / "compare.html").exists()


def test_every_rung_had_the_same_budget(finished):
    lora, full, *_ = read(finished)["rows"]
    for row in (lora, full):
        (trials,) = row["search"]["rounds"]
        assert [trial["steps"] for trial in trials] == [2, 2]
        assert row["training"]["steps"] == 8
    assert lora["search"]["tokens"] == full["search"]["tokens"]
    assert lora["training"]["tokens"] == full["training"]["tokens"]


def test_the_rate_chosen_is_the_best_on_dev_and_the_curve_is_of_it(finished):
    for row in read(finished)["rows"][:2]:
        (trials,) = row["search"]["rounds"]
        best = max(trials, key=lambda trial: (-trial["loss"], trial["score"]))
        assert row["rate"] == best["rate"]
        assert [step for step, _ in row["curve"]["train"]] == list(range(1, 9))
        assert row["curve"]["dev"]


def test_the_mean_win_rate_is_over_all_metrics_and_rungs(finished):
    found = read(finished)
    rows = [row for row in found["rows"] if not row["failed"]]
    for row in rows:
        others = [other for other in rows if other is not row]
        ahead = [
            (row["scores"][metric]["value"] - other["scores"][metric]["value"])
            for metric in ("accuracy", "balanced_accuracy")
            for other in others
        ]
        won = sum(1.0 if gap > 1e-9 else 0.5 if gap > -1e-9 else 0.0 for gap in ahead)
        assert row["mean_win_rate"]["value"] == pytest.approx(won / 4)
        assert row["mean_win_rate"]["n"] == 2
    assert "Mean win rate" in comparison_page(found)


def test_rows_are_tested_against_the_base_and_the_best(finished):
    found = read(finished)
    rows = {row["name"]: row for row in found["rows"] if not row["failed"]}
    first = found["task"]["metrics"][0]
    top = max(row["scores"][first]["value"] for row in rows.values())
    assert rows[found["best"]]["scores"][first]["value"] == top
    for name, row in rows.items():
        base = row["scores"][first]["value"] - found["base"]["scores"][first]["value"]
        assert row["difference"]["base"][first]["value"] == pytest.approx(base)
        if name != found["best"]:
            assert row["difference"]["best"][first]["value"] == pytest.approx(row["scores"][first]["value"] - top)
        else:
            assert "best" not in row["difference"]


def test_the_adapter_left_behind_answers_as_the_table_says(home, finished, tmp_path):
    row = read(finished)["rows"][0]
    (tmp_path / "out").mkdir()
    base = bench(load(home / "compare.yaml"), tmp_path / "out", Stop(), QUIET).base
    load_adapter(base.model, finished / row["artifact"]["path"])
    answers = measure(base, base.model.eval(), QUIET.told)
    accuracy = Accuracy(("bad", "good")).combine(answers.task.rows["accuracy"])
    assert accuracy == row["scores"]["accuracy"]["value"]
    kept = json.loads((finished / "rungs/lora/result.json").read_text())["seeds"][0]["answers"]["task"]["outputs"]
    assert [a.scores for a in answers.task.answers] == [a["scores"] for a in kept["labels"]]


def test_the_resolved_recipe_gives_the_same_table(home, finished, tmp_path):
    assert timeless(made(home, tmp_path / "again", finished / "recipe.yaml")) == timeless(read(finished))


def test_a_rung_does_not_depend_on_those_before_it(home, finished, tmp_path):
    turned = recipe(home, tmp_path / "turned.yaml", "\n" + "\n".join(reversed(RUNGS.strip("\n").splitlines())))
    rows = {row["name"]: row for row in timeless(made(home, tmp_path / "out", turned))["rows"]}
    assert rows == {row["name"]: row for row in timeless(read(finished))["rows"]}


def test_a_finished_comparison_is_never_touched(home, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
    verb("compare", home / "compare.yaml", "--out", finished, "--quiet", expect=2)
    verb("compare", home / "compare.yaml", "--out", finished, "--resume", "--quiet", expect=2)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}


class Impatient(Stop):
    """Asks the comparison to stop at the n-th time it looks."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def check(self, what):
        self.left -= 1
        if self.left < 0:
            self.requested = "SIGTERM"
        super().check(what)


@pytest.mark.parametrize("after", [3, 7, 11])
def test_stopped_anywhere_and_resumed_it_is_the_same_table(home, finished, tmp_path, after):
    with pytest.raises(Interrupted):
        made(home, tmp_path / "out", stop=Impatient(after))
    done = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json")}
    assert timeless(made(home, tmp_path / "out")) == timeless(read(finished))
    kept = [path for path, text in done.items() if path.parent.name == "trials" and path.read_bytes() != text]
    assert kept == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_a_process_of_its_own_and_resumed(home, finished, tmp_path, sign):
    out = tmp_path / "out"
    line = [sys.executable, "-m", "acclimate", "compare", str(home / "compare.yaml"), "--out", str(out), "--quiet"]
    given = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(line, env=given, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not list(out.glob("rungs/full/trials/*.json")):
        time.sleep(0.01)
    child.send_signal(sign)
    _, said = child.communicate(timeout=60)
    assert child.returncode == (3 if sign == signal.SIGTERM else -sign)
    assert "Traceback" not in said
    assert not (out / "compare.json").exists()
    assert (out / "rungs/lora/result.json").exists()
    verb("compare", home / "compare.yaml", "--out", out, "--resume", "--quiet")
    assert timeless(read(out)) == timeless(read(finished))


def test_another_recipe_cannot_resume_it(home, tmp_path):
    with pytest.raises(Interrupted):
        made(home, tmp_path / "out", stop=Impatient(3))
    with pytest.raises(AcclimateError, match=r"training.steps differ"):
        app(
            ["compare", str(home / "compare.yaml"), "training.steps=9", "--out", str(tmp_path / "out"), "--resume"],
            standalone_mode=False,
        )


def test_quick_and_overrides(home, tmp_path, capsys):
    out, words = tmp_path / "out", ("seeds=[1, 2]", "search.rates=[]", "training.rate=0.01")
    path = recipe(home, tmp_path / "two.yaml", "[{method: lora}, {method: none}]")
    verb("compare", path, *words, "--quick", "--out", out, "--quiet")
    lora, prompt = read(out)["rows"]
    assert lora["training"]["steps"] == 3
    assert (lora["rate"], lora["search"]["trials"]) == (0.01, 0)
    assert [seed["seed"] for seed in lora["seeds"]] == [1, 2]
    assert lora["seeds"][0]["scores"]["accuracy"] == lora["scores"]["accuracy"]["value"]
    spread = lora["spread"]["accuracy"]
    assert spread["low"] <= spread["mean"] <= spread["high"]
    assert len(prompt["seeds"]) == 1
    said = capsys.readouterr().out
    assert "Accuracy" in said
    assert "compare.html" in said


def test_processes_side_by_side_give_the_same_rows(home, finished, tmp_path):
    path = recipe(home, tmp_path / "two.yaml", "\n".join(["", *RUNGS.splitlines()[1:3]]))
    verb("compare", path, "--out", tmp_path / "out", "--jobs", "2", "--quiet")
    for one, other in zip(read(tmp_path / "out")["rows"], read(finished)["rows"][:2], strict=True):
        assert (one["name"], one["rate"]) == (other["name"], other["rate"])
        assert one["curve"]["train"][0] == pytest.approx(other["curve"]["train"][0], rel=1e-4)
        assert (one["failed"], one["scores"].keys()) == ("", other["scores"].keys())
        assert one["scores"]["accuracy"]["value"] == pytest.approx(other["scores"]["accuracy"]["value"], abs=0.06)


def test_a_child_that_dies_is_said(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "acclimate").mkdir()
    (tmp_path / "acclimate" / "__init__.py").write_text("raise SystemExit('no such luck')")
    with pytest.raises(ModelError, match=r"rung \w+ ended with 1; it last said: no such luck"):
        app(
            ["compare", str(home / "compare.yaml"), "--out", str(tmp_path / "out"), "--jobs", "2", "--quiet"],
            standalone_mode=False,
        )


# Dev and test


def test_the_search_does_not_see_the_test_rows(home, finished, tmp_path):
    lines(tmp_path / "other.jsonl", [{**row, "label": "bad"} for row in rows_of(40, 9)])
    found = made(home, tmp_path / "out", overrides=[f"data.test={tmp_path}/other.jsonl"])
    for one, other in zip(timeless(found)["rows"], timeless(read(finished))["rows"], strict=True):
        assert one.get("search") == other.get("search")
        assert one.get("rate") == other.get("rate")
        assert one.get("curve") == other.get("curve")
    assert found["base"]["scores"]["accuracy"]["value"] in (0.0, 1.0)
    assert read(finished)["base"]["scores"]["accuracy"]["value"] == 0.5


def test_dev_rows_that_are_in_test_are_not_searched_by(home, tmp_path):
    lines(tmp_path / "leak.jsonl", [*rows_of(40, 2), *rows_of(30, 3)])
    path = recipe(home, tmp_path / "leak.yaml")
    (tmp_path / "a").mkdir()
    found = bench(load(path, [f"data.dev={tmp_path}/leak.jsonl"]), tmp_path / "a", Stop(), QUIET)
    view = on_dev(found.base, 100)
    assert [row.fields["text"] for row in view.parts.test.rows] == [row["text"] for row in rows_of(30, 3)]
    assert view.dev.rows == []  # the answers to labels hold the loss
    assert view.parts.dev == view.parts.test
    assert len(on_dev(found.base, 4).parts.test.rows) == 4
    likelihood = replace(found.base.recipe, task=replace(found.base.recipe.task, metrics=("perplexity",)))
    assert len(on_dev(replace(found.base, recipe=likelihood), 4).dev.rows) == 4
    with pytest.raises(DataError, match="18 of their prompts are in test as well"):
        bench(load(path, [f"data.dev={home}/test.jsonl"]), tmp_path / "a", Stop(), QUIET)


def test_a_rung_with_other_test_rows_is_refused(home, tmp_path):
    rungs = f"[{{name: small, method: none, data: {{test: {home}/dev.jsonl}}}}]"
    with pytest.raises(AcclimateError, match="Rung small has other test rows than the rest"):
        made(home, tmp_path / "out", recipe(home, tmp_path / "other.yaml", rungs))


def test_a_rung_may_have_fewer_training_rows_or_another_prompt(home, tmp_path):
    rungs = """
  - {name: all, method: lora, training: {steps: 2}}
  - {name: few, method: lora, training: {steps: 2}, data: {limit: {train: 3}}}
  - {name: asked, method: none, task: {template: "{{ text }} is"}}
  - {name: prompt, method: none}
picture: {x: data.limit.train, metric: accuracy}
"""
    found = made(home, tmp_path / "out", recipe(home, tmp_path / "few.yaml", rungs, "seeds: [0]"))
    every, few, asked, prompt = found["rows"]
    assert every["curve"] != few["curve"]
    raw = [json.loads((tmp_path / "out/rungs" / name / "result.json").read_text()) for name in ("asked", "prompt")]
    logprobs = [run["seeds"][0]["answers"]["task"]["outputs"]["labels"][0]["scores"] for run in raw]
    assert logprobs[0] != logprobs[1]
    assert asked["difference"]["base"].keys() == prompt["difference"]["base"].keys()
    assert found["picture"] == {
        "x": "data.limit.train",
        "metric": "accuracy",
        "places": {"all": 0, "few": 3, "asked": 0, "prompt": 0},
        "series": {"all": "lora", "few": "lora", "asked": "none", "prompt": "none"},
    }


# One base for all


@dataclass(frozen=True)
class Careless:
    """Writes into the base's own weights, which no method may."""

    def install(self, model, name="default"):
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        METHODS["lora"]().install(model, name)


def test_the_base_comes_back_bit_for_bit(home, tmp_path):
    (tmp_path / "out").mkdir()
    found = bench(load(home / "compare.yaml"), tmp_path / "out", Stop(), QUIET)
    model = found.base.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    for rung in found.comparison.rungs[:2]:
        with borrowed(compare.inputs(found, rung), found.stamp) as (_, tuned):
            with torch.no_grad():
                for parameter in tuned.parameters():
                    if parameter.requires_grad:
                        parameter.add_(1.0)
            assert rung.name == "lora" or fingerprint(model) != found.stamp
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert memory == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_a_method_that_does_not_give_the_base_back_fails_alone(home, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(WAYS, "careless", Careless)
    path = recipe(home, tmp_path / "careless.yaml", f"\n  - {{method: careless}}{RUNGS}")
    careless, *rest = timeless(made(home, tmp_path / "out", path))["rows"]
    assert "Careless wrote into weights of the base model" in careless["failed"]
    assert rest == timeless(read(finished))["rows"]


def test_a_training_that_falls_ill_is_a_row_with_its_reason_and_an_ill_rate_loses(home, tmp_path):
    rungs = "[{method: full, rates: [1.0e+30, 2.0e+30]}, {name: half, method: full, rates: [1.0e+30, 1.0e-3]}]"
    lost, row = made(home, tmp_path / "out", recipe(home, tmp_path / "ill.yaml", rungs))["rows"]
    assert lost["failed"].startswith("No rate of the search trains well. Step ")
    ill, sound = row["search"]["rounds"][0]
    assert (ill["score"], row["rate"]) == (None, sound["rate"])
    assert "finite" in ill["failed"]


def test_nothing_that_can_be_carried_out_is_status_1(home, tmp_path):
    path = recipe(home, tmp_path / "none.yaml", '[{method: {name: lora, targets: ["*.nowhere"]}}]')
    verb("compare", path, "--out", tmp_path / "out", "--quiet", expect=1)
    assert read(tmp_path / "out")["best"] == ""


# Another kind of rung


@dataclass(frozen=True)
class Commonest:
    """Answers the commonest label of the training rows."""

    def fit_predictor(self, prepared, seed):
        targets = [row.target for row in prepared.parts.train.rows]
        answer = max(sorted(set(targets)), key=targets.count)
        predictor = lambda examples, tick=None: [Output(answer) for _ in examples]  # noqa: E731
        predictor.parameters = 1
        return predictor


def test_a_rung_that_fits_a_predictor_of_its_own(home, tmp_path, monkeypatch):
    monkeypatch.setitem(WAYS, "commonest", Commonest)
    path = recipe(home, tmp_path / "fits.yaml", "[{method: commonest}, {method: none}]")
    row, _ = made(home, tmp_path / "out", path, overrides=["evaluation.forgetting=true"])["rows"]
    assert row["scores"]["accuracy"]["value"] == 0.5
    assert (row["trainable_parameters"], row["search"]["trials"], row["forgetting"]) == (1, 0, {})


def test_forgetting_is_measured_as_in_a_run(home, tmp_path, monkeypatch):
    echo = lambda rows, tick: [Output(row.prompt.upper()) for row in rows]  # noqa: E731
    monkeypatch.setattr(measuring, "Generate", lambda *given: echo)
    path = recipe(home, tmp_path / "one.yaml", "[{method: {name: lora}, training: {steps: 1}}]", "seeds: [0]")
    found = made(home, tmp_path / "out", path, overrides=["evaluation.forgetting=true", "search.rates=[]"])
    (row,) = found["rows"]
    assert {"perplexity_base", "perplexity_result", "instructions_base"} <= row["forgetting"].keys()
    base = json.loads((tmp_path / "out" / "base.json").read_text())["answers"]["said"]
    answers = row["forgetting"]["answers"]
    assert [answer["prompt"] for answer in answers] == list(OPEN)
    assert [answer["base"] for answer in answers] == base
    assert base == [prompt.upper() for prompt in OPEN]
    page = comparison_page(found)
    assert "Ordinary questions" in page
    assert OPEN[0] in page


PROMPTED = """[
  {name: zero, method: none},
  {name: four, method: few_shot},
  {name: none of them, method: {name: few_shot, shots: 0}},
  {name: nearest, method: {name: few_shot, shots: 3, pick: nearest, per: tokens}},
  {name: random, method: {name: few_shot, shots: 3, pick: random, calibrate: true}},
  {name: steps, method: {name: chain_of_thought, max_new_tokens: 6}},
  {name: vote, method: {name: chain_of_thought, max_new_tokens: 4, chains: 3, temperature: 1.5}},
  {name: worked, method: {name: chain_of_thought, max_new_tokens: 6, shots: 2}},
]"""


def test_prompts_stand_in_the_same_table(home, tmp_path):
    worked = [{**row, "rationale": f"Because it is {row['label']}."} for row in rows_of(0, 24)]
    lines(tmp_path / "worked.jsonl", worked)
    path = recipe(home, tmp_path / "prompts.yaml", PROMPTED)
    rows = made(home, tmp_path / "out", path, overrides=[f"data.train={tmp_path}/worked.jsonl"])["rows"]
    found = {row["name"]: row for row in rows}
    assert not [row["failed"] for row in rows if row["failed"]]
    assert all(row["trainable_parameters"] == 0 for row in rows)
    assert found["zero"]["scores"] == found["none of them"]["scores"]
    assert found["four"]["learned"]["Worked examples before a question"]["examples"]["most"] == 4
    told = {name: row["learned"].get("Where the answers stood", {}).get("answers", {}) for name, row in found.items()}
    assert told["steps"] == {"scored": 18.0}
    assert sum(told["worked"].values()) == sum(told["vote"].values()) == 18


def test_prompts_that_cannot_be_made_are_refused(home, tmp_path):
    rungs = "[{method: none}, {method: {name: chain_of_thought, shots: 2}}, {name: less, method: {name: few_shot, shots: -1}}, "
    rungs += "{name: both, method: {name: few_shot, pick: nearest, calibrate: true}}]"
    rows = made(home, tmp_path / "out", recipe(home, tmp_path / "refused.yaml", rungs))["rows"]
    assert "need a column `rationale`" in rows[1]["failed"]
    assert "shots is -1; it must be 0 or more" in rows[2]["failed"]
    assert "with pick nearest every question has another" in rows[3]["failed"]
