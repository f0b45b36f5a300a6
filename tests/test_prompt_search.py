"""Prompt search: what may be a wording, how halving spends its questions, and that dev alone decides."""

from dataclasses import replace

import pytest

from acclimate.data.examples import Output
from acclimate.data.template import Template
from acclimate.errors import RecipeError
from acclimate.run import prompt_search
from acclimate.run.compare import bench
from acclimate.run.dev import on_dev
from acclimate.run.prompt_search import PromptSearch, instructed, searched, sentence
from acclimate.run.rungs import load
from acclimate.training.signals import Stop
from tests.test_compare import QUIET, home, made, recipe  # noqa: F401


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Say it.", "Say it."),
        ("\n 'Say it.'\nand more", "Say it."),
        ("", ""),
        ("Use {{ text }}.", ""),
        ("{% if %}", ""),
    ],
)
def test_what_may_be_a_wording(written, text) -> None:
    assert sentence(written) == text


def test_an_instruction_stands_above_the_template() -> None:
    assert instructed(Template("{{ text }}:"), "Say it.").prompt == "Say it.\n{{ text }}:"
    assert instructed(Template("{{ text }}:"), "").prompt == "{{ text }}:"


@pytest.fixture(scope="module")
def base(home):  # noqa: F811
    (home / "searching").mkdir()
    return bench(load(home / "compare.yaml"), home / "searching", Stop(), QUIET).base


def test_halving_by_hand(base, monkeypatch) -> None:
    """Wording i is right on the share i / 7 of rows: of eight, four, two the better half goes on, on 2, 4, 8 rows."""
    asked = []

    def predictor(prepared, instruction):
        def ask(examples, tick=None):
            asked.append((instruction, len(examples)))
            right = round(int(instruction) / 7 * len(examples))
            return [Output(e.target if i < right else "?") for i, e in enumerate(examples)]

        return ask

    monkeypatch.setattr(prompt_search, "_predictor", predictor)
    found = searched(on_dev(base, 8), base, [str(i) for i in range(8)])
    assert [n for _, n in asked] == [2] * 8 + [4] * 4 + [8] * 2
    assert found.asked == 2 * 8 + 4 * 4 + 8 * 2
    assert {text for text, n in asked if n == 4} == {
        "6",
        "7",
        "2",
        "3",
    }  # of 2 to 5, which have one right of two, the first
    assert (found.tried[0].text, found.tried[0].score, found.tried[0].rows) == ("7", 1.0, 8)
    assert len(found.tried) == 8
    told = found.learned([])["The search"]
    assert told["cost"] == {"questions": 48.0, "wordings": 8.0}
    assert told["spread of those that went first"]["lowest"] == 0.0


def test_the_spread_on_test_asks_every_wording_and_changes_no_choice(base, monkeypatch) -> None:
    """On dev wording i is right i times of 8; on test the other way around: the choice is dev's, and the page says so."""
    tested = base.parts.test.rows

    def predictor(prepared, instruction):
        def ask(examples, tick=None):
            right = int(instruction) if examples is not tested else len(tested) - int(instruction)
            return [Output(e.target if i < right else "?") for i, e in enumerate(examples)]

        return ask

    monkeypatch.setattr(prompt_search, "_predictor", predictor)
    found = replace(searched(on_dev(base, 8), base, ["0", "1", "2"]), spread=True)
    assert found.tried[0].text == "2"
    told = found.learned(found(tested))
    wordings, spread = told["Instructions tried on dev"], told["The search"]["spread on test"]
    assert [wordings[text]["test"] for text in "210"] == sorted(wordings[text]["test"] for text in "210")
    assert spread["chosen"] == spread["lowest"] == wordings["2"]["test"]
    assert (spread["median"], spread["highest"]) == (wordings["1"]["test"], 1.0)


def test_one_that_is_left_is_not_asked_again(base, monkeypatch) -> None:
    monkeypatch.setattr(
        prompt_search, "_predictor", lambda prepared, text: lambda e, tick=None: [Output("?") for _ in e]
    )
    assert searched(on_dev(base, 8), base, ["a", "b", "c"]).asked == 3 * 8
    assert searched(on_dev(base, 8), base, ["a", "b", "c", "d", "e"]).asked == 5 * 4 + 2 * 8


def test_the_search_is_seeded_counts_and_never_sees_test(base, monkeypatch) -> None:
    method = PromptSearch("Say whether it is good.", candidates=3, rows=4)
    replies = iter(["Tell me.", "Tell me.", "Use {this}", "Judge it."] * 99)
    monkeypatch.setattr(prompt_search, "sentence", lambda text: sentence(next(replies)))
    monkeypatch.setattr(prompt_search, "TURNS", 30)
    found = method.fit_predictor(base, seed=0)
    assert {w.text for w in found.tried} <= {"", "Say whether it is good.", "Tell me."}
    assert len(found.tried) in (2, 3)
    hidden = replace(base, parts=replace(base.parts, test=replace(base.parts.test, rows=base.parts.test.rows[:1])))
    replies = iter(["Tell me.", "Tell me.", "Use {this}", "Judge it."] * 99)
    assert [w.score for w in method.fit_predictor(hidden, seed=0).tried] == [w.score for w in found.tried]


def test_a_search_needs_something_to_start_from(base) -> None:
    with pytest.raises(RecipeError, match="needs an instruction"):
        PromptSearch().fit_predictor(base, 0)


def test_it_is_a_rung(home, tmp_path) -> None:  # noqa: F811
    rungs = "[{method: {name: prompt_search, instruction: 'Is this good?', candidates: 2, rows: 4}}]"
    (row,) = made(home, tmp_path / "out", recipe(home, tmp_path / "search.yaml", rungs))["rows"]
    assert row["failed"] == ""
    assert set(row["learned"]) == {"Instructions tried on dev", "The search"}
    assert "(no instruction)" in row["learned"]["Instructions tried on dev"]
