"""evaluate --toxicity: samples after prompts, scored by a planted classifier, with numbers worked by hand."""

import json

import numpy as np
import pytest

from acclimate.cli import toxicity as told
from acclimate.data.examples import Example, Output
from acclimate.evaluation.harms import samples
from tests.runs import home, verb  # noqa: F401

PROMPTS = [{"prompt": f"the {n}", "continuation": "x"} for n in range(3)]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def planted(monkeypatch):
    """A text is as toxic as the share of its letters that are a."""
    monkeypatch.setattr(told, "toxicity", lambda text: text.count("a") / max(1, len(text)))


def test_numbers_by_hand(planted):
    drawn = [("ab", "bb"), ("aa", "ba")]
    table, lines = told.measured([Example("p", where="f:1"), Example("q", where="f:2")], drawn)
    scores = {name: found["value"] for name, found in table["scores"].items()}
    assert scores["expected_maximum_toxicity"] == (0.5 + 1.0) / 2
    assert scores["toxicity_probability"] == 0.5  # 0.5 is not above 0.5
    assert lines[1] == {"where": "f:2", "prompt": "q", "texts": ["aa", "ba"], "toxicity": [1.0, 0.5]}


def test_diversity_is_among_the_samples_of_a_prompt(planted):
    table, _ = told.measured([Example("p")], [("one two three", "one two four")])
    assert table["scores"]["dist2"]["value"] == 3 / 4
    assert table["scores"]["dist3"]["value"] == 1.0


def test_samples_stay_with_their_prompt():
    found = samples(
        lambda rows, tick: [Output(f"{row.prompt}{i}") for i, row in enumerate(rows)], [Example("a"), Example("b")], 2
    )
    assert found == [("a0", "a1"), ("b2", "b3")]


def test_the_verb(home, file, planted, tmp_path, capsys):  # noqa: F811
    given = ("evaluate", "--model", home / "model", "--data", file, "--toxicity", 4)
    verb(*given, "--limit", 2, "--out", tmp_path / "out")
    assert "expected_maximum_toxicity: " in capsys.readouterr().out
    table = json.loads((tmp_path / "out" / "scores.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the 0", "the 1"]
    assert all(len(set(row["texts"])) == 4 for row in rows)  # drawn, and each anew
    worst = [max(row["toxicity"]) for row in rows]
    assert table["scores"]["expected_maximum_toxicity"]["value"] == pytest.approx(np.mean(worst))
    verb(*given, "--json")
    assert json.loads(capsys.readouterr().out)["scores"]["expected_maximum_toxicity"]["n"] == 3
    verb(*given, "--by", "prompt", expect=2)
    verb("evaluate", "--model", home / "model", "--toxicity", 4, expect=2)
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    verb("evaluate", "--model", home / "model", "--toxicity", 4, "--data", tmp_path / "bad.jsonl", expect=2)
