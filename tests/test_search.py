"""Successive halving and the recipe of a comparison: counted by hand, refused in sentences."""

import math
from dataclasses import fields, is_dataclass, replace

import pytest

from acclimate.data.examples import Output
from acclimate.errors import RecipeError, TrainingError
from acclimate.run.dev import rounds
from acclimate.run.rungs import Comparison, Search, Untuned, changes, dump, parse, slug
from acclimate.run.search import Trial, halve, label_loss, ranked

TEXT = """
model: m
data: {train: reviews}
task: {labels: [bad, good]}
training: {steps: 40, seed: 3}
rungs:
  - {method: {name: lora, rank: 4}}
  - {name: slow, method: full, rates: [1.0e-5, 1.0e-4], training: {steps: 20}}
  - {name: prompt only, method: none}
search: {rates: [2.0e-4, 1.0e-3], keep: 0.5, share: 0.25, rows: 50}
quick: {training: {steps: 8}, search: {rows: 9}}
"""


def trial(rate, score, loss=1.0, steps=1):
    return Trial(rate, steps, score, loss, 10, 1.0, "" if score is not None else "ill")


def test_rounds_halve_the_rates_and_double_the_steps():
    assert rounds(8, 40, 0.5, 0.125) == [(8, 5), (4, 10), (2, 20)]
    assert rounds(9, 30, 0.34, 0.1) == [(9, 3), (3, 9)]
    assert rounds(3, 12, 0.5, 0.25) == [(3, 3)]
    assert rounds(1, 12, 0.5, 0.25) == []
    assert rounds(8, 10, 0.5, 1.0) == [(8, 10), (4, 10), (2, 10)]


def test_every_round_costs_about_as_much_as_the_one_before():
    assert {count * steps for count, steps in rounds(8, 80, 0.5, 0.125)} == {80}


def test_the_better_half_goes_on_and_the_best_is_chosen():
    scores = {0: {1.0: 0.1, 2.0: 0.5, 3.0: 0.4, 4.0: 0.2}, 1: {2.0: 0.6, 3.0: 0.7}}
    asked = []

    def attempt(number, rate, steps):
        asked.append((number, rate, steps))
        return trial(rate, scores[number][rate], steps=steps)

    found = halve((1.0, 2.0, 3.0, 4.0), 40, Search(keep=0.5, share=0.25), True, attempt)
    assert asked == [(0, 1.0, 10), (0, 2.0, 10), (0, 3.0, 10), (0, 4.0, 10), (1, 2.0, 20), (1, 3.0, 20)]
    assert found.rate == 3.0
    assert found.json()["trials"] == 6
    assert found.json()["tokens"] == 60
    assert halve((7.0,), 40, Search(), True, attempt).rate == 7.0


@pytest.mark.parametrize(("higher", "best"), [(True, 2.0), (False, 1.0)])
def test_the_metric_says_which_way_is_better(higher, best):
    assert ranked([trial(1.0, 0.2), trial(2.0, 0.6)], higher)[0].rate == best


def test_ties_go_to_the_lower_loss_and_then_to_the_smaller_rate():
    assert ranked([trial(1.0, 0.5, 0.9), trial(2.0, 0.5, 0.3)], True)[0].rate == 2.0
    assert ranked([trial(2.0, 0.5, 0.3), trial(1.0, 0.5, 0.3)], True)[0].rate == 1.0
    assert ranked([trial(1.0, 0.5, None), trial(2.0, 0.5, 9.0)], True)[0].rate == 2.0


def test_by_loss_the_score_only_breaks_ties():
    assert ranked([trial(1.0, 0.9, 0.5), trial(2.0, 0.5, 0.3)], True, by_loss=True)[0].rate == 2.0
    assert ranked([trial(1.0, 0.5, 0.3), trial(2.0, 0.9, 0.3)], True, by_loss=True)[0].rate == 2.0
    found = halve((1.0, 2.0), 4, Search(), True, lambda n, rate, s: trial(rate, 1 / rate, 1 / rate), by_loss=True)
    assert found.rate == 2.0


def test_a_rate_that_makes_the_training_ill_never_wins():
    found = halve((1.0, 2.0), 4, Search(), False, lambda n, rate, s: trial(rate, None if rate == 1.0 else 0.1))
    assert found.rate == 2.0
    with pytest.raises(TrainingError, match=r"No rate of the search trains well\. ill"):
        halve((1.0, 2.0), 4, Search(), True, lambda n, rate, s: trial(rate, None))


def test_rungs_are_laid_over_the_shared_recipe():
    found = parse(TEXT)
    lora, slow, prompt = found.rungs
    assert [rung.name for rung in found.rungs] == ["lora", "slow", "prompt only"]
    assert (lora.training.steps, slow.training.steps) == (40, 20)
    assert (lora.rates, slow.rates, prompt.rates) == ((2e-4, 1e-3), (1e-5, 1e-4), ())
    assert isinstance(prompt.method, Untuned)
    assert found.seeds == (3,)
    assert lora.task == found.shared.task


def test_without_a_search_every_rung_has_its_own_rate():
    found = parse(TEXT.split("search:")[0].replace("rates: [1.0e-5, 1.0e-4], ", ""), overrides=["training.rate=0.25"])
    assert found.rungs[0].rates == (0.25,)


def test_quick_is_what_the_file_says_and_overrides_come_last():
    assert parse(TEXT).shared.training.steps == 40
    quick = parse(TEXT, quick=True)
    assert (quick.shared.training.steps, quick.rungs[0].training.steps, quick.search.rows) == (8, 8, 9)
    assert parse(TEXT, quick=True, overrides=["training.steps=5"]).rungs[0].training.steps == 5
    with pytest.raises(RecipeError, match="does not say what --quick means"):
        parse(TEXT.split("quick:")[0], quick=True)


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_written_is_read_back(quick):
    found = parse(TEXT + "picture: {x: training.steps}\nseeds: [0, 2]\n", quick=quick)
    assert parse(dump(found)) == found


def test_every_default_of_a_comparison_is_written_out():
    text = dump(parse(TEXT))
    for entry in (*fields(Comparison), *fields(Search)):
        assert entry.name == "shared" or f"{entry.name}:" in text
    assert is_dataclass(Search)


def test_only_what_a_rung_changes_is_written():
    found = parse(TEXT)
    assert changes(found.rungs[1], found.shared).keys() == {"name", "method", "training", "rates"}
    assert changes(found.rungs[1], found.shared)["training"] == {"steps": 20}


BAD = {
    "rungs: [{method: lorra}]": "No method is called 'lorra'",
    "rungs: [{method: {name: lora, rnak: 1}}]": "recipe:6: No option of method is called 'rnak'",
    "rungs: [{mehtod: lora}]": "recipe:6: No option of a recipe is called 'mehtod'",
    "rungs: []": "a comparison needs rungs",
    "rungs: lora": "a comparison needs rungs",
    "rungs: [lora]": "recipe:6: a rung must be a table",
    "rungs: [{method: lora}, {method: lora}]": "lora is the name of several rungs",
    "rungs: [{method: lora, model: other}]": "changes model, which all rungs share",
    "rungs: [{method: lora, training: {precision: float32}}]": "changes training.precision",
    "rungs: [{method: lora, training: {seed: 9}}]": "changes training.seed",
    "rungs: [{method: lora, task: {labels: [a, b]}}]": "changes task.labels",
    "rungs: [{method: lora, rates: [1.0, 2.0]}]\nsearch: {rates: [1.0, 2.0, 3.0]}": "lora has 2 rates and the search 3",
    "rungs: [{method: lora, rates: [-1.0]}]": "must be different finite numbers above 0",
    "rungs: [{method: lora, training: {rate: 0.1}}]\nsearch: {rates: [1.0, 2.0]}": "its rate is searched",
    "rungs: [{method: lora}]\nsearch: {rates: [1.0, 1.0]}": "search.rates must be different",
    "rungs: [{method: lora}]\nsearch: {keep: 1.0}": "search needs 0 < keep < 1",
    "rungs: [{method: lora}]\nsearch: {rows: 0}": "search needs",
    "rungs: [{method: lora}]\nsearch: {row: 5}": "No option of search is called 'row'",
    "rungs: [{method: lora}]\nseeds: [1, 1]": "seeds must be different",
    "rungs: [{method: lora}]\npicture: {x: method.rnak}": "lora has no method.rnak: No entry there is called 'rnak'",
    "rungs: [{method: lora}]\nquick: {trainin: {steps: 3}}": "No option of a recipe is called 'trainin'",
    "rungs: [{method: lora}]\nsearchh: {}": "No option of a recipe is called 'searchh'",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_comparisons_are_one_sentence(text):
    with pytest.raises(RecipeError) as caught:
        parse(TEXT.split("rungs:")[0] + text)
    assert BAD[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_become_folders():
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("***") == "rung"


def test_an_untuned_rung_is_not_searched():
    assert replace(parse(TEXT).rungs[2], name="x").rates == ()


def test_the_loss_of_labels_by_hand():
    """Scores (0, 0): log 2 whichever is right; (log 3, 0): the right one has 3/4."""
    outputs = [Output("a", {"a": 0.0, "b": 0.0}), Output("a", {"a": math.log(3.0), "b": 0.0})]
    assert label_loss(outputs, ["b", "a"]) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert label_loss([Output("a", {"a": -1e4, "b": -2e4})], ["b"]) == pytest.approx(1e4)
