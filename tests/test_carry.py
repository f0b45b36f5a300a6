"""What a run survives: a signal anywhere, an evaluation that fails, a tracker that fails, a disk that is full (G31)."""

import json
from dataclasses import replace

import pytest

from acclimate.errors import DataError, Interrupted, ModelError, RecipeError
from acclimate.evaluation.general import OPEN
from acclimate.recipe import load, parse
from acclimate.report.trackers import TRACKERS
from acclimate.run import carry as carrying
from acclimate.run.carry import Voice, carry
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests.runs import same_run

SILENT = Voice(
    lambda line: None, lambda what, count: lambda done: None, lambda step, steps: None, lambda prepared: None
)
FORTY = ["training.steps=40", "training.checkpoint_every=3"]


def go(home, out, stop=None, voice=SILENT, resume=False, overrides=FORTY):
    with claim(out, resume) as run:
        return carry(load(home / "recipe.yaml", overrides), run, stop or Stop(), voice)


def stopping_voice(stop, when):
    """A signal arrives while `when` is being done."""

    def told(what, count):
        def tick(done):
            if what.startswith(when):
                stop.requested = "SIGTERM"

        return tick

    return replace(SILENT, told=told)


def test_a_signal_during_the_first_evaluation_leaves_a_run_that_goes_on(home, straight, tmp_path):
    stop = Stop()
    with pytest.raises(Interrupted, match="evaluation"):
        go(home, tmp_path / "run", stop, stopping_voice(stop, "evaluation"))
    go(home, tmp_path / "run", resume=True)
    same_run(straight, tmp_path / "run")


def test_a_signal_during_the_last_evaluation_costs_no_training(home, straight, tmp_path, monkeypatch):
    stop, asked = Stop(), []
    measure = carrying.measure

    def second(prepared, model, told):
        asked.append(model)
        if len(asked) == 2:
            stop.requested = "SIGINT"
        return measure(prepared, model, told)

    monkeypatch.setattr(carrying, "measure", second)
    with pytest.raises(Interrupted, match="evaluation"):
        go(home, tmp_path / "run", stop)
    steps = []
    monkeypatch.setattr(carrying, "measure", measure)
    go(home, tmp_path / "run", voice=replace(SILENT, step=lambda step, count: steps.append(step.index)), resume=True)
    assert steps == []
    same_run(straight, tmp_path / "run")


def test_a_signal_during_preparation_is_resumable(home, straight, tmp_path):
    stop = Stop()
    voice = replace(SILENT, sample=lambda prepared: setattr(stop, "requested", "SIGTERM"))
    with pytest.raises(Interrupted, match="preparation"):
        go(home, tmp_path / "run", stop, voice)
    go(home, tmp_path / "run", resume=True)
    same_run(straight, tmp_path / "run")


def test_an_evaluation_that_fails_never_costs_the_weights(home, straight, tmp_path, monkeypatch):
    asked = []
    measure = carrying.measure

    def failing(prepared, model, told):
        asked.append(model)
        if len(asked) == 2:
            raise ModelError("the judge is away")
        return measure(prepared, model, told)

    monkeypatch.setattr(carrying, "measure", failing)
    with pytest.raises(ModelError, match="the judge is away"):
        go(home, tmp_path / "run")
    trained = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert trained == (straight / "adapter" / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(carrying, "measure", measure)
    go(home, tmp_path / "run", resume=True)
    same_run(straight, tmp_path / "run")


def test_a_tracker_that_fails_never_costs_the_run(home, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, folder):
            pass

        def log(self, step, values):
            raise RuntimeError("no connection")

        def close(self):
            raise RuntimeError("no connection")

    for place in ("acclimate.report.trackers", "acclimate.recipe"):
        monkeypatch.setattr(f"{place}.TRACKERS", {**TRACKERS, "broken": Broken})
    go(home, tmp_path / "run", overrides=["trackers=[broken]", "training.steps=3"])
    assert (tmp_path / "run" / "report.json").exists()


def test_tensorboard_is_written(home, tmp_path):
    go(home, tmp_path / "run", overrides=["trackers=[tensorboard]", "training.steps=2"])
    assert any((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_file_of_a_few_rows_is_a_sentence(home, tmp_path, count):
    rows = [{"text": f"the {n}", "label": "good"} for n in range(count)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"few\.jsonl|rows|part"):
        go(home, tmp_path / "run", overrides=[f"data.train={tmp_path}/few.jsonl"])


def test_an_encoder_without_a_question_for_a_head_is_refused_before_anything_is_trained(home, tmp_path):
    from tests import spelling, tiny

    tiny.bert(len(spelling.wordpiece())).save_pretrained(tmp_path / "bert")
    spelling.wordpiece().save_pretrained(tmp_path / "bert")
    with pytest.raises(RecipeError, match="asks for free text"):
        go(home, tmp_path / "run", overrides=[f"model={tmp_path}/bert", "task.labels=[]", "task.metrics=[]"])


@pytest.mark.parametrize("build", ["gpt2", "t5", "bart"])
def test_other_builds_go_all_the_way(home, tmp_path, build):
    from tests import spelling, tiny

    tokenizer = spelling.unigram() if build == "t5" else spelling.byte_level()
    model = tiny.BUILDS[build](len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    overrides = [f"model={tmp_path}/model", "method.targets=[query, value]", "training.steps=25"]
    go(home, tmp_path / "labels", overrides=overrides)
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    assert report["result"]["scores"]["accuracy"]["n"] > 0
    log = [json.loads(line) for line in (tmp_path / "labels" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0]
    go(
        home,
        tmp_path / "text",
        overrides=[*overrides, "task.labels=[]", "task.metrics=[rouge1, perplexity]", "data.target=label"],
    )
    free = json.loads((tmp_path / "text" / "report.json").read_text())
    assert set(free["result"]["scores"]) == {"rouge1", "perplexity"}
    assert free["result"]["scores"]["perplexity"]["value"] < free["base"]["scores"]["perplexity"]["value"]


def test_conversations_and_running_text_go_all_the_way(home, tmp_path):
    talk = [
        {
            "messages": [
                {"role": "user", "content": f"is {n} even"},
                {"role": "assistant", "content": "yes" if n % 2 == 0 else "no"},
            ]
        }
        for n in range(40)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"the dog number {n} jumps"}) + "\n" for n in range(40))
    )
    for name in ("talk", "text"):
        text = f"model: {home}/model\ndata: {{train: {tmp_path}/{name}.jsonl}}\ntraining: {{steps: 3, precision: float32}}\n"
        with claim(tmp_path / name, False) as run:
            carry(parse(text, overrides=["evaluation.draws=100"]), run, Stop(), SILENT)
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert set(report["result"]["scores"]) == {"perplexity"}
        assert report["forgetting"]["perplexity_base"] > 1
        assert [answer["prompt"] for answer in report["forgetting"]["answers"]] == list(OPEN)


def test_a_folder_named_like_a_built_in_does_not_replace_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m-instruct", "reviews", "mine.jsonl"):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    kept = carrying.absolute(parse("model: smollm2-135m-instruct\ndata: {train: reviews, test: mine.jsonl}\n"))
    assert (kept.model, kept.data.train, kept.data.test) == (
        "smollm2-135m-instruct",
        "reviews",
        str(tmp_path / "mine.jsonl"),
    )
