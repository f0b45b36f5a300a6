"""Asked otherwise, from the command line: in the model's own words, and with the prompts that rungs have."""

import json

import pytest

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import RecipeError
from acclimate.evaluation.paraphrase import LONGEST, asking, reworded, stamped, told
from acclimate.evaluation.predictor import Generate
from acclimate.run import otherwise
from tests.runs import home, model, reader, verb  # noqa: F401

TEXTS = ["it is very cold outside", "no", "a film with <|im_end|> in it", "we saw a small dog"]


class Says:
    """A writer with planted answers, which counts what it is asked."""

    def __init__(self, codec, answers):
        self.codec, self.answers, self.heard, self.template = codec, answers, [], Template()

    def __call__(self, rows, tick=None):
        self.heard += [row.fields["text"] for row in rows]
        return [self.answers[row.fields["text"]] for row in rows]


@pytest.fixture
def says(reader):  # noqa: F811
    answers = {
        TEXTS[0]: Output("Outside it freezes hard.", finish="stop"),
        TEXTS[3]: Output("We met a puppy that", finish="length"),
    }
    return Says(reader, answers)


def test_only_whole_paraphrases_count_and_each_is_asked_once(says, tmp_path):
    found = reworded([*TEXTS, TEXTS[0]], says, "q", tmp_path, "m")
    assert found == {TEXTS[0]: "Outside it freezes hard."}
    assert says.heard == [TEXTS[0], TEXTS[3]]  # neither the short one nor the one with a control token
    assert reworded(TEXTS, says, "q", tmp_path, "m") == found
    assert len(says.heard) == 2  # kept, the one that failed too
    reworded(TEXTS[:1], says, "q", tmp_path, "another model")
    reworded(TEXTS[:1], says, "another request", tmp_path, "m")
    assert len(says.heard) == 4
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert reworded(TEXTS, says, "q", tmp_path, "m") == found  # a damaged file is asked again
    assert told(TEXTS, found) == {"texts": 4, "reworded": 1, "shared": pytest.approx(2 * 2 / (5 + 4))}


def test_nothing_is_drawn(model, reader):  # noqa: F811
    """A text's paraphrase does not depend on the seed or on the texts beside it."""
    general = Generate(model, reader, Template(end=reader.eos_text), 256, LONGEST)
    ask = asking(general, "{{ text }}:")
    row = Example("", fields={"text": "a dog"})
    other = Example("", fields={"text": "another longer text"})
    alone = ask([row])[0].text
    assert ask([other, row])[1].text == alone
    assert Generate(**{**vars(ask), "seed": 7})([row])[0].text == alone
    assert stamped("w", general) == "w "


def test_evaluate_asks_in_other_words(home, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(otherwise.paraphrase, "paraphrase", lambda text, written: f"{text} indeed")
    given = ("evaluate", "--model", home / "model", "--recipe", home / "recipe.yaml")
    monkeypatch.setattr(Generate, "__call__", lambda self, rows, tick=None: [Output("x", finish="stop") for _ in rows])
    verb(*given, "--perturb", "paraphrase,upper", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    table = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(table["versions"]) == ["upper", "paraphrase: other words", "paraphrase: simple words"]
    for facts in table["paraphrases"].values():
        assert facts["reworded"] == facts["texts"] > 0
    same = [table["versions"][name] for name in ("paraphrase: other words", "paraphrase: simple words")]
    assert same[0] == same[1]
    assert "of their words shared; by the model itself" in said
    assert table["worst"]["accuracy"]["value"] <= min(
        found["accuracy"]["value"] for found in table["versions"].values()
    )
    files = sorted((tmp_path / "cache" / "paraphrases").iterdir())
    assert len(files) == sum(facts["texts"] for facts in table["paraphrases"].values())


def test_what_is_asked_is_what_a_version_changes():
    rows = [Example("a b c", "yes", (), {"text": "a b c", "also": "d", "label": "yes", "n": 3}, "f:1")]
    assert otherwise.asked_texts(rows, ("d",)) == ["a b c"]
    assert otherwise.asked_texts(rows, ()) == ["a b c", "d"]


def test_evaluate_asks_as_a_rung_does(home, tmp_path, capsys):  # noqa: F811
    given = ("evaluate", "--model", home / "model", "--recipe", home / "recipe.yaml")
    verb(*given, "--json")
    plain = json.loads(capsys.readouterr().out)
    verb(*given, "--method", "{name: few_shot, shots: 0}", "--json")
    without = json.loads(capsys.readouterr().out)
    assert without["scores"] == plain["scores"]
    verb(*given, "--method", "{name: few_shot, shots: 3}", "--out", tmp_path / "out")
    assert "Worked examples before a question, examples: asked 3" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    verb(*given, "--out", tmp_path / "plain")
    bare = [json.loads(line) for line in (tmp_path / "plain" / "predictions.jsonl").read_text().splitlines()]
    asked = [row["text"] for row in map(json.loads, (home / "rows.jsonl").read_text().splitlines())]
    for row, other in zip(rows, bare, strict=True):
        assert row["where"] == other["where"]
        assert len(row["prompt_ids"]) > 3 * len(other["prompt_ids"])
    assert len(asked) > len(rows)  # the test part alone is asked
    capsys.readouterr()
    verb(*given, "--method", "{name: chain_of_thought, max_new_tokens: 4}", "--perturb", "upper", "--json")
    assert json.loads(capsys.readouterr().out)["versions"]["upper"]


@pytest.mark.parametrize("method", ["lora", "few_shots", "{name: few_shot, shots: -1}", "{name: few_shot, shot: 1}"])
def test_what_is_no_way_to_ask_is_said(home, method):  # noqa: F811
    verb("evaluate", "--model", home / "model", "--recipe", home / "recipe.yaml", "--method", method, expect=2)


def test_a_way_to_ask_has_no_likelihood_of_the_right_answer(home, tmp_path):  # noqa: F811
    recipe = (
        (home / "recipe.yaml").read_text().replace("labels: [bad, good]", "labels: [bad, good], metrics: [perplexity]")
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    verb(
        *("evaluate", "--model", home / "model", "--recipe", tmp_path / "recipe.yaml", "--method", "few_shot"), expect=2
    )
    verb("evaluate", "--model", home / "model", "--tasks", "arc_easy", "--method", "few_shot", expect=2)


def test_a_method_is_read_as_in_a_rung():
    assert otherwise.way("{name: few_shot, shots: 8}").shots == 8
    with pytest.raises(RecipeError, match=r"--method:1: No method is called 'few_shots'\. Did you mean 'few_shot'"):
        otherwise.way("few_shots")
