"""The test asked otherwise and in groups, from the command line: every number again from the answers themselves."""

import json

import numpy as np
import pytest
import yaml

from acclimate.data.examples import Document, Example, Output
from acclimate.errors import DataError, UsageError
from acclimate.evaluation.evaluate import Measured
from acclimate.metrics import choose
from acclimate.run.versions import changes, compared, grouped, lines, version
from tests.runs import verb

ROW = Example("He do not see Emily", "yes", (), {"text": "He do not see Emily", "label": "yes", "n": 3}, "f:1")


def test_a_version_changes_the_question_and_neither_answers_nor_labels():
    rows = [ROW, Example("No", "no", (), {"text": "No", "label": "no", "also": "maybe"}, "f:2")]
    upper = version(rows, changes("upper", 0)["upper"], ("maybe",))
    assert [row.prompt for row in upper] == ["HE DO NOT SEE EMILY", "NO"]
    assert upper[0].fields == {"text": "HE DO NOT SEE EMILY", "label": "yes", "n": 3}
    assert upper[1].fields == {"text": "NO", "label": "no", "also": "maybe"}
    assert [row.target for row in upper] == ["yes", "no"]
    assert ROW.prompt == "He do not see Emily"


def test_a_name_may_be_several_versions():
    found = changes("contracted, gendered,renamed,dialect", 0)
    assert {name: version([ROW], change)[0].prompt for name, change in found.items() if name != "renamed: black"} == {
        "contracted": "He don't see Emily",
        "gendered: female": "She do not see Emily",
        "gendered: male": "He do not see Emily",
        "renamed: white": "He do not see Emily",
        "dialect": version([ROW], found["dialect"])[0].prompt,
    }
    assert "Emily" not in version([ROW], found["renamed: black"])[0].prompt
    assert changes("typos", 1)["typos"]("wonderful " * 9) != changes("typos", 2)["typos"]("wonderful " * 9)
    assert changes("", 0) == {}


def measured(*right):
    return Measured({}, {"accuracy": tuple((float(r),) for r in right)})


def test_the_worst_case_and_the_groups_by_hand():
    (accuracy,) = metrics = choose(("accuracy",), ("no", "yes"))
    rows = {
        s: tuple(accuracy.row(*_asked("yes", "yes" if c == "1" else "no")) for c in s) for s in ("1110", "0011", "0111")
    }
    first, *others = (Measured({}, {"accuracy": found}) for found in rows.values())
    table = compared(metrics, first, {"typos": others[0], "lower": others[1]}, 100, 0)
    assert {name: found["accuracy"]["value"] for name, found in table["versions"].items()} == {
        "typos": 0.5,
        "lower": 0.75,
    }
    assert table["changes"]["typos"]["accuracy"]["value"] == -0.25
    assert table["worst"]["accuracy"]["value"] == 0.25  # 1110, 0011 and 0111 have 0010 in common
    asked = [Example("q", "yes", (), {"who": who}, f"f:{i}") for i, who in enumerate("aaba")]
    found = grouped(metrics, first, asked, "who", 100, 0)["accuracy"]
    assert {name: (each["value"], each["n"]) for name, each in found["scores"].items()} == {
        "a": (pytest.approx(2 / 3), 3),
        "b": (1.0, 1),
    }
    assert (found["best"], found["worst"], found["distance"]) == ("b", "a", pytest.approx(1 / 3))
    said = lines({**table, "groups": {"accuracy": found}})
    assert said[0].startswith("typos accuracy: 0.5000 (")
    assert said[0].endswith("-0.2500")
    assert said[2].startswith("worst case accuracy: 0.2500 (")
    assert said[-1] == "gap accuracy: 0.3333, best b, worst a"


def _asked(target, answer):
    return Output(answer), Example("q", target)


def test_what_cannot_be_asked_is_said():
    with pytest.raises(UsageError, match=r"--perturb: No perturbation is called 'typo'\. Did you mean 'typos'"):
        changes("lower,typo", 0)
    with pytest.raises(DataError, match="f:9 is a Document; --perturb changes questions"):
        version([Document("a", "f:9")], str.upper)
    with pytest.raises(DataError, match="f:1 has no column 'who' to group by; it has: label, n, text"):
        grouped(choose(("accuracy",), ("no", "yes")), measured(1), [ROW], "who", 100, 0)


def test_evaluate_asks_every_version_and_group(home, finished, tmp_path, capsys):
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    recipe["task"] |= {"metrics": ["accuracy", "perplexity"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    model = ["--model", home / "model", "--adapter", finished / "adapter"]
    given = [*model, "--recipe", tmp_path / "recipe.yaml"]
    verb("evaluate", *given, "--perturb", "upper,gendered", "--by", "label", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    table = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(table["versions"]) == ["upper", "gendered: female", "gendered: male"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    right = [(row["target"], row["text"] == row["target"]) for row in rows]
    for label, found in table["groups"]["accuracy"]["scores"].items():
        assert found["value"] == pytest.approx(np.mean([hit for target, hit in right if target == label]))
    assert table["versions"]["gendered: male"] == table["scores"]  # no such words here
    plain, upper = (found["accuracy"]["value"] for found in (table["scores"], table["versions"]["upper"]))
    assert table["worst"]["accuracy"]["value"] <= min(plain, upper)
    assert table["worst"]["perplexity"]["value"] >= table["versions"]["upper"]["perplexity"]["value"]
    assert table["versions"]["upper"]["perplexity"] != table["scores"]["perplexity"]
    assert table["changes"]["upper"]["accuracy"]["value"] == pytest.approx(upper - plain)
    assert "upper accuracy: " in said
    assert "worst case accuracy: " in said
    assert "gap accuracy: " in said
    wheres = [int(row["where"].rpartition(":")[2]) - 1 for row in rows]
    asked = [json.loads((home / "rows.jsonl").read_text().splitlines()[i]) for i in wheres]
    shouted = [{**row, "text": row["text"].upper()} for row in asked]
    (tmp_path / "upper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shouted))
    recipe["data"] |= {"test": str(tmp_path / "upper.jsonl")}
    (tmp_path / "upper.yaml").write_text(json.dumps(recipe))
    verb("evaluate", *model, "--recipe", tmp_path / "upper.yaml", "--json")
    assert json.loads(capsys.readouterr().out)["scores"] == table["versions"]["upper"]
    verb("evaluate", *given, "--perturb", "shouted", expect=2)
    verb("evaluate", "--model", home / "model", "--tasks", "arc_easy", "--by", "label", expect=2)
