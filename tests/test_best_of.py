"""Best-of-n: the best of what was drawn, by a reward; how far that can move; on the command line."""

import json
from math import log

import pytest

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import ModelError, RecipeError
from acclimate.evaluation.best_of import BestOf, best, kl_bound
from acclimate.evaluation.predictor import Generate
from acclimate.generation.samplers import Greedy, Sample
from acclimate.rewards.reward import Weighted, whole
from acclimate.rewards.rules import Length
from tests.runs import home, model, reader, verb  # noqa: F401


class Letters:
    """As many as the letters of the text."""

    def __call__(self, completions):
        return whole([float(len(c.text)) for c in completions], completions)


SAMPLE = Sample()
ASKED = [
    Example(text, fields={"prompt": text}, where=f"prompt {text}") for text in ("the quick", "good", "hello there")
]


def writer(trunk, spelling, sampler=SAMPLE):
    return Generate(trunk, spelling, Template(), 256, 9, sampler, seed=5)


def test_by_hand():
    drawn = [Output("a"), Output("b"), Output("c"), Output("d")]
    found = best(drawn, [0.5, 2.0, 2.0, -1.0])
    assert (found.text, found.value) == ("b", 2.0)
    assert found.scores == {"reward 1": 0.5, "reward 2": 2.0, "reward 3": 2.0, "reward 4": -1.0}
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(log(2) - 1 / 2, abs=1e-12)
    assert kl_bound(16) == pytest.approx(1.835088722, abs=1e-9)


def test_the_bound_holds_where_the_divergence_is_known():
    """Two completions of p = ½ each, the first the better one: best-of-n says the other only if all n are that one."""
    for n in (1, 2, 3, 8):
        lose = 0.5**n
        exact = (1 - lose) * log((1 - lose) / 0.5) + lose * log(lose / 0.5)
        assert exact <= kl_bound(n) + 1e-12
    # Of m alike, all rewards different, it comes near: place i of m wins with (i^n − (i − 1)^n) / m^n.
    m, n = 20_000, 4
    wins = [(i**n - (i - 1) ** n) / m**n for i in range(1, m + 1)]
    assert sum(w * log(w * m) for w in wins if w) == pytest.approx(kl_bound(n), abs=1e-3)


def test_the_best_of_all_that_was_drawn(model, reader):  # noqa: F811
    n = 6
    drawn = writer(model, reader)([example for example in ASKED for _ in range(n)])
    found = BestOf(writer(model, reader), Letters(), n)(ASKED)
    for i, output in enumerate(found):
        mine = [each.text for each in drawn[i * n : (i + 1) * n]]
        assert len(set(mine)) > 1
        assert output.text == max(mine, key=len)
        assert list(output.scores.values()) == [float(len(text)) for text in mine]
        assert output.value == max(output.scores.values())
        assert output.prompt_ids == drawn[i * n].prompt_ids
    worst = BestOf(writer(model, reader), Weighted(((-1.0, Letters()),)), n)(ASKED)
    assert all(one.value == -min(other.scores.values()) for one, other in zip(worst, found, strict=True))


def test_one_sample_is_a_sample(model, reader):  # noqa: F811
    found = BestOf(writer(model, reader), Letters(), 1)(ASKED)
    assert [output.text for output in found] == [output.text for output in writer(model, reader)(ASKED)]


def test_more_samples_are_never_worse_on_average(model, reader):  # noqa: F811
    means = []
    for n in (1, 4, 16):
        found = BestOf(writer(model, reader), Length(3), n)(ASKED * 4)
        means.append(sum(output.value for output in found) / len(found))
    assert means[0] < means[1] <= means[2]


def test_what_cannot_be_chosen_from(model, reader):  # noqa: F811
    with pytest.raises(RecipeError, match="n above 0, not 0"):
        BestOf(writer(model, reader), Letters(), 0)
    with pytest.raises(RecipeError, match="by Greedy"):
        BestOf(writer(model, reader, Greedy()), Letters(), 4)
    with pytest.raises(ModelError, match="scored 1 of 3"):
        BestOf(writer(model, reader), lambda given: whole([1.0], given[:1]), 1)(ASKED)


def test_on_the_command_line(home, capsys):  # noqa: F811
    words = ("generate", "--model", home / "model", "the dog", "--max-new", 8, "--temperature", 1, "--plain")
    verb(
        *words, "--best-of", 5, "--reward", "[{name: length, words: 2}, {name: pattern, find: o, weight: 3}]", "--json"
    )
    row = json.loads(capsys.readouterr().out)
    assert len(row["scores"]) == 5
    assert row["reward"] == max(row["scores"].values())
    assert row["kl_bound"] == pytest.approx(log(5) - 4 / 5)
    assert row["text"].count("o") or row["reward"] <= 0
    verb(*words, "--best-of", 5, "--reward", "{name: length, words: 2}")
    assert ", best of 5, KL <= 0.8094" in capsys.readouterr().err
    for wrong in (("--best-of", 3), ("--reward", "lexicn", "--best-of", 2), ("--beams", 2, "--best-of", 2)):
        verb(*words, *wrong, expect=2)
    verb(*words, "--temperature", 0, "--best-of", 3, "--reward", "lexicon", expect=2)
