"""Runs with a task head: every kind of answer from a file to a report, and the same answers from the adapter alone."""

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from acclimate.cli.convert import export_adapter
from acclimate.data.examples import Example, Output
from acclimate.errors import AcclimateError, InputError
from acclimate.recipe import Recipe, parse
from acclimate.run import tasks
from acclimate.run.carry import Voice, carry
from acclimate.run.open import open_model
from acclimate.run.predict import predict
from acclimate.tokens.reading import Sheet
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests import spelling, tiny
from tests.runs import verb

RECIPE = """
model: {home}/bert
data: {train: {home}/labels.jsonl}
task: {labels: ["no", "yes"]}
method: {name: lora, rank: 4, targets: [linear]}
training: {steps: 6, tokens_per_step: 256, rate: 0.01, precision: float32, checkpoint_every: 3}
evaluation: {draws: 50}
"""
COLOURS, ANIMALS = ("quick", "brown", "lazy"), ("fox", "dog", "film", "review")
PLACES = [(a, b, n) for n in range(3) for a, b in product(COLOURS, ANIMALS)]


def text(a: str, b: str, n: int) -> str:
    return f"the {a} {b} {'is good ' * n}"


ROWS = {
    "labels": [{"text": text(a, b, n), "label": "yes" if b == "fox" else "no"} for a, b, n in PLACES],
    "more": [{"text": text(a, b, n + 3), "label": "yes" if b == "fox" else "no"} for a, b, n in PLACES],
    "pairs": [{"sentence1": text(a, b, n), "sentence2": f"a {b}", "label": int(n > 0)} for a, b, n in PLACES],
    "numbers": [{"sentence1": text(a, b, n), "sentence2": f"a {b}", "score": 10.0 * n + len(b)} for a, b, n in PLACES],
    "choices": [
        {"question": text(a, b, n), "choices": [*ANIMALS[:2], a], "answer": n} for a, b, n in PLACES
    ],
    "tags": [
        {"tokens": ["the", a, b, *["good"] * n], "tags": ["O", "B-animal", "I-animal", *["O"] * n]} for a, b, n in PLACES
    ],
    "spans": [
        {
            "question": f"who jumps, {a} {b} {n}?",
            "context": f"{'this is good. ' * (4 * n)}the {a} {b} jumps over the bad review. {a}",
            "answers": {"text": [f"{a} {b}"], "answer_start": [56 * n + 4]},
        }
        for a, b, n in PLACES
    ],
    "free": [{"prompt": text(a, b, n), "completion": f"what a {b}"} for a, b, n in PLACES],
}  # fmt: skip
KINDS = {
    "labels": ("", "classify", "balanced_accuracy"),
    "pairs": ("", "classify", "balanced_accuracy"),
    "numbers": ("task.labels=[]", "regress", "pearson"),
    "choices": ("task.labels=[]", "choose", "exact_match"),
    "tags": ("task.labels=[]", "tag", "entity_f1"),
    "spans": ("task.labels=[] data.max_tokens=32", "extract", "squad_f1"),
}


@pytest.fixture(autouse=True)
def _as_trained(monkeypatch):
    """`evaluate` in the precision of the runs, whatever this machine multiplies faster."""
    monkeypatch.setattr("acclimate.run.open.choose", lambda precision, where: torch.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, spell in (("bert", spelling.wordpiece), ("gpt2", spelling.byte_level), ("t5", spelling.unigram)):
        torch.manual_seed(0)
        getattr(tiny, name)(vocab=len(spell())).save_pretrained(folder / name)
        spell().save_pretrained(folder / name)
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    """run(data, overrides): the folder of the finished run of the recipe over one file."""

    def made(data: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("run") / "out"
        quiet = Voice(lambda s: None, lambda what, n: lambda done: None, lambda step, steps: None, lambda p: None)
        with claim(folder, resume=False) as claimed:
            carry(recipe_of(home, data, *overrides), claimed, Stop(), quiet)
        return folder

    return made


def recipe_of(home: Path, data: str, *overrides: str) -> Recipe:
    words = [f"data.train={home}/{data}.jsonl", *(word.replace("{home}", str(home)) for word in overrides)]
    return parse(RECIPE.replace("{home}", str(home)), "recipe", words)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def predictions_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def asked_again(
    folder: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str], adapter: str = "adapter"
) -> dict[str, float]:
    capsys.readouterr()
    verb("evaluate", "--model", model, "--adapter", folder / adapter, "--data", data, "--json")
    return {name: found["value"] for name, found in json.loads(capsys.readouterr().out)["scores"].items()}


def values(report: dict[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in report["result"]["scores"].items()}


@pytest.mark.parametrize("data", KINDS)
def test_every_kind_of_answer_from_file_to_report_and_back(data, run, home, capsys):
    overrides, kind, headline = KINDS[data]
    folder = run(data, *overrides.split())
    report = report_of(folder)
    assert (report["objective"], next(iter(report["result"]["scores"]))) == (kind, headline)
    assert report["forgetting"] == {}
    assert "forgetting is not measured" in " ".join(report["warnings"])
    assert asked_again(folder, home / "bert", home / f"{data}.jsonl", capsys) == pytest.approx(values(report), abs=1e-6)
    shown = predictions_of(folder)[0]
    assert shown["target"]
    assert shown["prompt_ids"][0] == 2
    assert ("tags" in shown["result"]) == (kind == "tag")
    assert parse((folder / "recipe.yaml").read_text()).task.head


@pytest.mark.parametrize(
    ("model", "data"), [("gpt2", "labels"), ("gpt2", "spans"), ("gpt2", "tags"), ("t5", "choices"), ("t5", "numbers")]
)
def test_a_model_that_writes_takes_a_head_when_asked(model, data, run, home, capsys):
    overrides, kind, _ = KINDS[data]
    words = [word.replace("32", "64") for word in overrides.split()]
    folder = run(data, "model={home}/" + model, "task.head=true", "training.steps=2", *words)
    report = report_of(folder)
    assert report["task"]["head"] == kind
    pool = {"gpt2": "last", "t5": "mean"}[model]
    assert report["task"].get("pool", pool) == pool
    assert asked_again(folder, home / model, home / f"{data}.jsonl", capsys) == pytest.approx(values(report), abs=1e-6)


@pytest.mark.parametrize("method", ["full", "head", "{name: prompt, length: 3}"])
def test_any_method_trains_beside_a_head(method, run, home, capsys):
    folder = run("labels", f"method={method}")
    report = report_of(folder)
    before, after = ([row[side]["scores"] for row in predictions_of(folder)] for side in ("base", "result"))
    assert before != after
    assert asked_again(folder, home / "bert", home / "labels.jsonl", capsys) == pytest.approx(values(report), abs=1e-6)


def test_a_run_learns_and_begins_at_chance(run):
    report = report_of(
        run("labels", "training.steps=60", "training.tokens_per_step=512", "method=full", "training.rate=3e-3")
    )
    assert report["base"]["scores"]["balanced_accuracy"]["value"] <= 0.75
    assert report["result"]["scores"]["balanced_accuracy"]["value"] == 1.0


def test_a_threshold_is_chosen_on_dev_kept_and_used(run, home, capsys):
    folder = run("labels", "task.threshold=dev", "task.metrics=[balanced_accuracy]", "data.dev={home}/more.jsonl")
    facts, report = json.loads((folder / "adapter" / "acclimate.json").read_text()), report_of(folder)
    threshold = facts["threshold"]
    assert report["task"]["threshold"] == threshold != 0.5
    for row in predictions_of(folder):
        likely = math.exp(row["result"]["scores"]["yes"]) >= threshold
        assert row["result"]["text"] == ("yes" if likely else "no")
    assert asked_again(folder, home / "bert", home / "labels.jsonl", capsys) == pytest.approx(values(report), abs=1e-6)


OPTIONS = {
    "task.class_weights=balanced": ("losses",),
    "task.pool=mean": ("losses", "base"),
    "task.threshold=0.1": ("answers",),
    "task.template=so {{ text }}": ("losses", "base", "prompts"),
    "data.max_tokens=4": ("losses", "prompts"),
}


def facets(folder: Path) -> dict[str, Any]:
    rows = predictions_of(folder)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "losses": [row["loss"] for row in log if "loss" in row],
        "base": [row["base"]["scores"] for row in rows],
        "answers": [row["result"]["text"] for row in rows],
        "prompts": [row["prompt_ids"] for row in rows],
    }


def test_every_option_of_a_head_changes_what_it_says(run):
    cut = "data.truncation=truncate-prompt"
    plain = facets(run("labels", cut))
    for option, changes in OPTIONS.items():
        other = facets(run("labels", cut, option))
        assert [name for name in changes if other[name] == plain[name]] == [], option
        if option != "task.threshold=0.1":
            assert other["losses"] != plain["losses"]
        else:
            assert other["losses"] == plain["losses"]


def test_two_columns_are_read_as_two_texts(run):
    pairs, other = (predictions_of(run("pairs", *words)) for words in ((), ("task.pair=[sentence2, sentence1]",)))
    text = predictions_of(run("pairs", "task.template={{ sentence1 }} {{ sentence2 }}"))
    assert [pairs[0]["prompt_ids"].count(3), other[0]["prompt_ids"].count(3), text[0]["prompt_ids"].count(3)] == [
        2,
        2,
        1,
    ]
    assert pairs[0]["prompt_ids"] != other[0]["prompt_ids"]


REFUSED = {
    "task.head=false": "reads but does not write",
    "task.chat=true": "for a model that writes",
    "objective=sequence_lm": "has its own",
    "data.truncation=truncate-response": "writes no response",
    "task.metrics=[rouge1,perplexity]": "answers with labels",
    "task.pair=[text, other]": "names other",
    "task.threshold=2": "between 0 and 1",
    "task.pair=[text]": "two columns",
    "model={home}/gpt2 task.pool=mean": "for a task head",
    "data.max_tokens=4": "truncate-prompt",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_a_head_cannot_do_is_refused_in_a_sentence(words, run):
    with pytest.raises(InputError, match=re.escape(REFUSED[words])):
        run("labels", *words.replace("[text, other]", "[text,other]").split())


def test_rows_that_no_head_answers_are_refused(run):
    with pytest.raises(InputError, match="asks for free text"):
        run("free", "task.labels=[]")
    with pytest.raises(InputError, match=r"set task\.head to true"):
        run("tags", "model={home}/gpt2", "task.labels=[]")


def test_an_adapter_with_a_head_writes_no_text(run, home):
    folder = run("labels", "training.steps=1")
    verb("generate", "--model", home / "bert", "--adapter", folder / "adapter", "hello", expect=2)


MERGED = {
    "task.pool=first": ("bert", "labels"),
    "method=full": ("bert", "tags"),
    "method=head": ("bert", "numbers"),
    "method={name: qlora, rank: 4}": ("gpt2", "labels"),
    "task.pool=mean": ("t5", "labels"),
}


@torch.no_grad()
def logits(model: Path | str, adapter: Path) -> torch.Tensor:
    opened, some = open_model(str(model), adapter, heads=True).model, torch.arange(12).reshape(2, 6)
    ends, rows = torch.tensor([5, 11]), torch.tensor([0, 1])
    return opened(Sheet(some + 5, some % 6, some >= 0, (6, 6), ends, rows, rows, types=some * 0))


@pytest.mark.parametrize("method", MERGED)
def test_a_merged_run_is_a_plain_trunk_and_its_head(method, run, home, tmp_path, capsys):
    """The merged folder with its head is the base with the adapter; the rounded base of QLoRA apart."""
    base, data = MERGED[method]
    kind = [] if data == "labels" else ["task.labels=[]"]
    folder = run(data, f"model={home}/{base}", "task.head=true", "training.steps=3", method, *kind)
    out = tmp_path / "merged"
    verb("merge", "--model", home / base, "--adapter", folder / "adapter", "--out", out)
    assert capsys.readouterr().out == f"merged: {out}, without its task head, which is the adapter {out}/head\n"
    asked = asked_again(out, out, home / f"{data}.jsonl", capsys, "head")
    before, after = logits(home / base, folder / "adapter"), logits(out, out / "head")
    if "qlora" not in method:
        assert torch.allclose(after, before, atol=1e-5)
        assert asked == pytest.approx(values(report_of(folder)), abs=1e-6)
    plain = AutoModel.from_pretrained(out)
    assert isinstance(plain, type(AutoModel.from_pretrained(home / base)))


def test_what_cannot_be_written_of_a_run_with_a_head_is_said(run, home, tmp_path):
    folder = run("labels", "method={name: prompt, length: 3}") / "adapter"
    refused = {
        "peft": r"a task head \(default\), for which the format peft has no word; acclimate merge writes",
        "delta": "for which the format delta has no word",
        "merged": "cannot be merged",
    }
    for form, sentence in refused.items():
        with pytest.raises(AcclimateError, match=sentence):
            export_adapter(str(home / "bert"), folder, tmp_path / form, form)
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_head_is_forecast(home):
    forecast = predict(recipe_of(home, "tags", "task.labels=[]"))
    trunk = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 64))  # rank · (in + out) of six matrices in each of two layers
    assert forecast.trainable_parameters == trunk + 3 * (32 + 1)  # and a head of three tags
    assert forecast.activations > 0


@pytest.mark.parametrize(("data", "metric"), [("choices", "exact_match"), ("numbers", "mse"), ("spans", "squad_f1")])
def test_a_model_that_writes_answers_in_text(data, metric, run):
    folder = run(
        data, "model={home}/gpt2", "task.labels=[]", f"task.metrics=[{metric}]", "task.max_new_tokens=4", "training.steps=2",
        "evaluation.forgetting=false", "task.chat=false",
    )  # fmt: skip
    row = predictions_of(folder)[0]
    assert report_of(folder)["objective"] == "lm"
    assert list(report_of(folder)["result"]["scores"]) == [metric]
    if data == "choices":
        assert row["result"]["text"] in row["result"]["scores"]
        assert row["target"] in row["result"]["scores"]


def test_a_number_is_read_from_a_text():
    class Writer:
        def __call__(self, examples, tick=None):
            return [Output(text) for text in ("about 3.5, or 4", "-2.", "none")]

    assert [o.value for o in tasks.Numbers(Writer())([Example("")] * 3)] == [3.5, -2.0, 0.0]
