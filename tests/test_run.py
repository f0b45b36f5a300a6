"""A recipe from beginning to end on a model of a few thousand weights: files, honesty, resumption, bad input."""

import json
import signal

import pytest
import torch

from acclimate.cli.main import app
from acclimate.errors import AcclimateError
from tests import spelling, tiny
from tests.runs import SLOWER, child, same_run, steps_logged, verb, wait_for


def test_the_run_folder_is_as_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "recipe.yaml",
        "report.html",
        "report.json",
        "adapter",
        "checkpoints",
        "log.jsonl",
        "predictions.jsonl",
    } <= names
    report = json.loads((finished / "report.json").read_text())
    assert {"model", "method", "objective", "base", "result", "difference", "forgetting", "training"} <= report.keys()
    assert {"steps", "tokens", "scored_tokens", "seconds", "tokens_per_second", "peak_memory_bytes"} <= report[
        "training"
    ].keys()
    assert {"seed", "data", "base", "versions"} <= report["provenance"].keys()
    score = report["result"]["scores"]["balanced_accuracy"]
    assert score["low"] <= score["value"] <= score["high"]
    assert report["difference"]["balanced_accuracy"].keys() == {"value", "low", "high", "p"}
    assert (finished / "adapter" / "adapter_config.json").exists()


def test_the_log_counts_what_was_trained(finished):
    report = json.loads((finished / "report.json").read_text())
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    steps = [row for row in log if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert sum(row["tokens"] for row in steps) == report["training"]["tokens"]
    assert sum(row["scored_tokens"] for row in steps) == report["training"]["scored_tokens"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert any("dev" in row for row in log)


def test_base_and_result_were_asked_the_same(finished):
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    report = json.loads((finished / "report.json").read_text())
    assert len(rows) == report["base"]["scores"]["accuracy"]["n"] == report["data"]["test"]["rows"]
    right = sum(row["result"]["text"] == row["target"] for row in rows) / len(rows)
    assert right == pytest.approx(report["result"]["scores"]["accuracy"]["value"])
    assert all(row["prompt_ids"] and row["base"]["scores"].keys() == {"bad", "good"} for row in rows)


def test_the_same_recipe_gives_the_same_bits_from_its_resolved_form(home, finished, tmp_path):
    verb("run", finished / "recipe.yaml", "--out", tmp_path / "again", "--quiet")
    for name in ("adapter/adapter_model.safetensors", "predictions.jsonl", "log.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_a_reloaded_adapter_scores_what_the_report_says(home, finished, capsys):
    report = json.loads((finished / "report.json").read_text())
    verb(
        "evaluate",
        "--model",
        home / "model",
        "--adapter",
        finished / "adapter",
        "--recipe",
        finished / "recipe.yaml",
        "--json",
    )
    found = json.loads(capsys.readouterr().out)["scores"]
    for name, score in report["result"]["scores"].items():
        assert found[name]["value"] == pytest.approx(score["value"])


def test_a_finished_run_is_never_touched(home, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    verb("run", home / "recipe.yaml", "--out", finished, "--quiet", expect=2)
    verb("run", home / "recipe.yaml", "--out", finished, "--quiet", "--resume", expect=2)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_every_method_runs_and_comes_back(home, tmp_path, capsys, method):
    out = tmp_path / "run"
    verb("run", home / "recipe.yaml", f"method.name={method}", "training.steps=3", "--out", out, "--quiet")
    report = json.loads((out / "report.json").read_text())
    assert report["method"] == method
    capsys.readouterr()
    verb("evaluate", "--model", home / "model", "--adapter", out / "adapter", "--recipe", out / "recipe.yaml", "--json")
    found = json.loads(capsys.readouterr().out)["scores"]
    assert found["accuracy"]["value"] == pytest.approx(report["result"]["scores"]["accuracy"]["value"])


SHOWS = {"prompt": (20, "Words nearest", "1", 5), "unipelt": (2, "Mean value", "model.layers.0", 3)}


@pytest.mark.parametrize("method", [*SHOWS, "prefix"])
def test_what_was_learned_and_what_is_kept(home, tmp_path, method):
    out = tmp_path / "run"
    verb("run", home / "recipe.yaml", f"method.name={method}", "training.steps=2", "--out", out, "--quiet")
    report = json.loads((out / "report.json").read_text())
    page = (out / "report.html").read_text()
    if method in SHOWS:
        count, title, first, width = SHOWS[method]
        ((named, rows),) = report["learned"].items()
        assert (named.startswith(title), len(rows), len(rows[first])) == (True, count, width)
        assert named in page
    else:
        assert report["learned"] == {}
        assert report["kept_parameters"] < report["trainable_parameters"]  # what made the prefix is dropped
        assert "Parameters kept" in page


@pytest.mark.parametrize("at", [1, 7, 20])
def test_killed_and_resumed_is_the_same_run(home, straight, tmp_path, at):
    out = tmp_path / "run"
    process = child(home, out, *SLOWER)
    wait_for(out, at, process)
    process.kill()
    process.communicate()
    assert not (out / "report.json").exists()
    verb("run", home / "recipe.yaml", *SLOWER, "--out", out, "--resume", "--quiet")
    same_run(straight, out)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_status_3(home, straight, tmp_path, sign):
    out = tmp_path / "run"
    process = child(home, out, *SLOWER)
    wait_for(out, 5, process)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "--resume" in said
    assert "Traceback" not in said
    kept = [path.name for path in (out / "checkpoints").iterdir()]
    assert kept
    assert max(int(name.removeprefix("step-")) for name in kept) >= steps_logged(out) - 1
    verb("run", home / "recipe.yaml", *SLOWER, "--out", out, "--resume", "--quiet")
    same_run(straight, out)


def test_another_recipe_cannot_resume_a_run(home, tmp_path):
    out = tmp_path / "run"
    process = child(home, out, *SLOWER)
    wait_for(out, 4, process)
    process.kill()
    process.communicate()
    with pytest.raises(AcclimateError, match=r"method.rank"):
        app(
            ["run", str(home / "recipe.yaml"), *SLOWER, "method.rank=2", "--out", str(out), "--resume"],
            standalone_mode=False,
        )


def test_an_adapter_of_another_base_is_refused(home, finished, tmp_path, capsys):
    torch.manual_seed(1)
    other = tiny.llama(tied=True, vocab=len(spelling.byte_level()))
    other.save_pretrained(tmp_path / "other")
    spelling.byte_level().save_pretrained(tmp_path / "other")
    with pytest.raises(AcclimateError, match="base"):
        app(
            ["generate", "--model", str(tmp_path / "other"), "--adapter", str(finished / "adapter"), "x"],
            standalone_mode=False,
        )


def test_another_chat_template_or_tokenizer_is_refused(home, tmp_path):
    import shutil

    out = tmp_path / "run"
    verb("run", home / "recipe.yaml", "training.steps=1", "task.chat=true", "--out", out, "--quiet")
    shutil.copytree(home / "model", tmp_path / "changed")
    (tmp_path / "changed" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(AcclimateError, match="template"):
        app(
            ["generate", "--model", str(tmp_path / "changed"), "--adapter", str(out / "adapter"), "x"],
            standalone_mode=False,
        )


def test_merged_export_answers_like_the_adapter(home, finished, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    verb("merge", "--model", home / "model", "--adapter", finished / "adapter", "--out", tmp_path / "merged")
    verb("export", "--model", home / "model", "--adapter", finished / "adapter", "--out", tmp_path / "peft")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.generation_config.eos_token_id == [spelling.byte_level().eos_token_id]  # it knows where to stop
    from acclimate.run.open import open_model

    ours = open_model(str(home / "model"), finished / "adapter", "float32")
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(plain(ids).logits, ours.model(ids).logits, rtol=0, atol=1e-5)
    verb("merge", "--model", home / "model", "--adapter", finished / "adapter", "--out", tmp_path / "merged", expect=2)


class TestAsking:
    def test_generate_writes_one_line_a_prompt(self, home, capsys):
        verb("generate", "--model", home / "model", "the dog", "a fox", "--max-new", "4", "--json")
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["prompt"] for row in rows] == ["the dog", "a fox"]
        assert all(row["finish"] in ("stop", "length") for row in rows)

    def test_score_adds_up(self, home, capsys):
        verb("score", "--model", home / "model", "the lazy dog", "--json")
        row = json.loads(capsys.readouterr().out)
        assert row["perplexity"] == pytest.approx(torch.tensor(-row["logprob"] / row["tokens"]).exp().item(), rel=1e-5)

    def test_plan_trains_nothing(self, home, capsys):
        verb("plan", home / "recipe.yaml", "--json")
        table = json.loads(capsys.readouterr().out)
        assert table["steps"] == 12
        assert table["memory"] > table["weights"] > 0

    @pytest.mark.parametrize("what", ["models", "data", "methods", "objectives", "metrics", "samplers", "schedules"])
    def test_list(self, what, capsys):
        verb("list", what)
        assert capsys.readouterr().out.strip()

    def test_env(self, capsys):
        verb("env", "--json")
        assert json.loads(capsys.readouterr().out)["acclimate"]

    def test_validate(self, home, capsys, tmp_path):
        verb("validate", home / "rows.jsonl", "--label", "good", "--label", "bad")
        verb("validate", home / "recipe.yaml")
        (tmp_path / "bad.jsonl").write_text('{"text": "x", "label": "good"}\n{"text": 3}\n')
        verb("validate", tmp_path / "bad.jsonl", expect=2)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "nowhere.yaml"],
        ["run", "{recipe}", "model=nowhere"],
        ["run", "{recipe}", "data.train=nowhere.jsonl"],
        ["run", "{recipe}", "task.metrics=[rogue1]"],
        ["run", "{recipe}", "task.labels=[up, down]"],
        ["run", "{recipe}", "task.template={{ txet }}"],
        ["run", "{recipe}", "task.template={% for %}"],
        ["run", "{recipe}", "trackers=[wandbb]"],
        ["run", "{recipe}", "--resume"],
        ["generate", "--model", "nowhere", "x"],
        ["generate", "--model", "{model}", "--adapter", "nowhere", "x"],
        ["generate", "--model", "{model}", "--temperature", "-1", "x"],
        ["list", "modles"],
        ["export", "--model", "{model}", "--adapter", "nowhere", "--out", "o", "--format", "onnx"],
        ["validate", "nowhere.jsonl"],
        ["evaluate", "--model", "{model}"],
    ],
)
def test_bad_input_is_status_2_and_one_sentence(home, tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled = [w.replace("{recipe}", str(home / "recipe.yaml")).replace("{model}", str(home / "model")) for w in words]
    with pytest.raises(AcclimateError) as caught:
        app(filled, standalone_mode=False)
    assert caught.value.status == 2
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) > 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["run", "compare", "judge"])
def test_what_is_refused_leaves_the_runs_of_others(home, tmp_path, action, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (home / "recipe.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text + "rungs: [{method: lora}]\n" if action == "compare" else text)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    asked = (
        ["--data", "rows.jsonl", "--judge", "length"]
        if action == "judge"
        else ["mine.yaml", "task.template={{ txet }}"]
    )
    verb(action, *asked, expect=2)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "other").mkdir(parents=True)
    verb(action, *asked, expect=2)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
