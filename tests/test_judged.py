"""`evaluate` on rows that people judged: what a run's report says of them, and what a model says that no run trained."""

import json
import math

import pytest
import torch

from acclimate.cli.ask import evaluate_model
from acclimate.data.read import read
from acclimate.errors import DataError, ModelError
from acclimate.evaluation.preferences import OwnChoice
from acclimate.generation.score import score
from acclimate.run.open import open_model
from acclimate.tokens.pairs import compared
from tests import test_feedback, test_preference_run
from tests.runs import verb

home, spans = test_preference_run.home, test_feedback.home
WAYS = {
    "lora": (),
    "full": ("method=full", "training.rate=0.003"),
    "soft": ("method={name: prompt, length: 2}",),
    "simpo": ("objective=simpo",),
    "reward": ("objective=reward", "task.chat=false", "task.template={{ prompt }} is"),
    "ranked": ("objective=reward", "data.train={home}/ranked.jsonl", "data.test={home}/ranked.jsonl"),
}


@pytest.fixture(autouse=True)
def _as_trained(monkeypatch):
    """`evaluate` in the precision of the runs, whatever this machine multiplies faster."""
    monkeypatch.setattr("acclimate.run.open.choose", lambda precision, where: torch.float32)


def evaluated(capsys, *words):
    capsys.readouterr()
    verb("evaluate", *words, "--json")
    return {name: each["value"] for name, each in json.loads(capsys.readouterr().out)["scores"].items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_reloaded_adapter_says_what_its_report_says(home, tmp_path, capsys, way):
    report = test_preference_run.run(home, tmp_path / "run", *WAYS[way])
    given = ("--adapter", tmp_path / "run" / "adapter", "--recipe", tmp_path / "run" / "recipe.yaml")
    found = evaluated(capsys, "--model", home / "model", *given)
    assert found == pytest.approx({n: s["value"] for n, s in report["result"]["scores"].items()}, abs=1e-5)
    assert found["margin"] != 0
    assert {"pair_accuracy", "pair_ece", "length_correlation"} <= found.keys()


def test_without_a_recipe_the_adapter_says_how_it_is_asked(home, tmp_path, capsys):
    """Of a reward model its own task; of a policy the rewards of DPO against the model without the adapter."""
    for way in ("reward", "lora"):
        report = test_preference_run.run(home, tmp_path / way, "data.test=", *WAYS[way])
        given = ("--adapter", tmp_path / way / "adapter", "--data", home / "pairs.jsonl")
        found = evaluated(capsys, "--model", home / "model", *given)
        assert found == pytest.approx({n: s["value"] for n, s in report["result"]["scores"].items()}, abs=1e-5)


def test_a_model_alone_chooses_by_its_own_probabilities(home, capsys, tmp_path):
    """The margin is the difference of log p of the two completions, each after its prompt."""
    found = evaluated(capsys, "--model", home / "model", "--data", home / "pairs.jsonl", "--out", tmp_path / "out")
    assert found["pair_accuracy"] == found["likelihood_accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    opened = open_model(str(home / "model"))
    asked = {row.where: row for row in read(home / "pairs.jsonl").rows}
    for said in rows:
        row = asked[said["where"]]
        both = compared(row, opened.template(), opened.codec).rows
        first, second = score(opened.model, both, opened.codec.pad)
        assert said["scores"]["reward 1"] - said["scores"]["reward 2"] == pytest.approx(first - second, abs=1e-4)
        assert said["target"] == row.chosen
        assert said["text"] in (row.chosen, row.rejected)
    margins = [row["scores"]["reward 1"] - row["scores"]["reward 2"] for row in rows]
    assert found["margin"] == pytest.approx(sum(margins) / len(margins))


def test_the_calibration_of_a_model_alone_is_that_of_its_choice():
    logprob = torch.tensor([-2.0, -3.0])
    assert OwnChoice().reward(logprob, logprob, torch.ones(2)).tolist() == [-2.0, -3.0]
    chance = 1 / (1 + math.exp(-1.0))
    assert chance == pytest.approx(math.exp(-2) / (math.exp(-2) + math.exp(-3)))


def test_a_model_of_spans(spans, capsys):
    report = json.loads((spans / "parts" / "report.json").read_text())
    given = ("--adapter", spans / "parts" / "adapter", "--recipe", spans / "parts" / "recipe.yaml")
    found = evaluated(capsys, "--model", spans / "model", *given)
    assert found == pytest.approx({n: s["value"] for n, s in report["result"]["scores"].items()}, abs=1e-6)


def test_what_says_nothing_of_such_rows_is_refused(home, spans):
    given = (
        (
            ModelError,
            "has a head of kind tag, which says nothing of comparisons",
            spans,
            "parts",
            home / "pairs.jsonl",
            "",
        ),
        (ModelError, "has no head, so it says nothing of marked spans", spans, "", spans / "rows.jsonl", ""),
        (DataError, "--perturb changes questions", home, "", home / "pairs.jsonl", "typos"),
    )
    for kind, says, folder, brought, data, perturb in given:
        adapter = folder / brought / "adapter" if brought else None
        with pytest.raises(kind, match=says):
            evaluate_model(str(folder / "model"), adapter, str(data), None, None, True, perturb)
