"""One ranking of many systems: closed forms, a published fit, the equations of the maximum, and what cannot be ranked."""

import math

import numpy as np
import pytest

from acclimate.errors import DataError
from acclimate.metrics.intervals import score
from acclimate.metrics.ranking import WinRate, bradley_terry, check_connected, connected, rank, reached

# Agresti 2002, Categorical Data Analysis, table 10.10: American League 1987; the row beat the column so often
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
GAMES = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]
ABOVE_BALTIMORE = {
    "Boston": 1.1077,
    "Cleveland": 0.6839,
    "Detroit": 1.4364,
    "Milwaukee": 1.5814,
    "New York": 1.2476,
    "Toronto": 1.2945,
}


def test_two_systems_have_a_closed_form():
    for mine, theirs in ((3, 1), (1, 1), (10.5, 0.5)):
        strengths = bradley_terry(np.array([[0.0, mine], [theirs, 0.0]]))
        assert strengths[0] - strengths[1] == pytest.approx(math.log(mine / theirs), abs=1e-9)
        assert strengths.sum() == pytest.approx(0, abs=1e-12)


def test_a_circle_of_equals_has_no_best():
    circle = np.array([[0.0, 2, 1], [1, 0, 2], [2, 1, 0]])
    np.testing.assert_allclose(bradley_terry(circle), 0, atol=1e-9)


def test_the_fit_that_agresti_prints():
    strengths = dict(zip(TEAMS, bradley_terry(np.array(GAMES, float))))
    for team, value in ABOVE_BALTIMORE.items():
        assert strengths[team] - strengths["Baltimore"] == pytest.approx(value, abs=5e-5)


def test_at_the_maximum_expected_wins_are_the_wins():
    """The gradient of the likelihood: W_i = Σ_j n_ij p_i / (p_i + p_j)."""
    rng = np.random.default_rng(0)
    tables = rng.integers(1, 9, size=(5, 4, 4)) * (1.0 - np.eye(4))
    for wins, log in zip(tables, bradley_terry(tables)):
        for i in range(4):
            expected = sum(
                (wins[i, j] + wins[j, i]) * math.exp(log[i]) / (math.exp(log[i]) + math.exp(log[j]))
                for j in range(4)
                if j != i
            )
            assert expected == pytest.approx(wins[i].sum(), abs=1e-7)
    np.testing.assert_allclose(bradley_terry(tables)[3], bradley_terry(tables[3]), atol=1e-8)


def test_strengths_that_were_planted_are_found():
    rng = np.random.default_rng(1)
    truth = np.array([1.0, 0.2, -0.3, -0.9])
    chance = 1 / (1 + np.exp(truth[None] - truth[:, None]))
    draws = rng.random((600, 4, 4)) < chance
    wins = np.triu(draws, 1) + np.tril(~np.swapaxes(draws, 1, 2), -1)
    found = rank(tuple("abcd"), wins.astype(float), draws=400)
    assert [one.name for one in found.systems] == list("abcd")
    assert [one.place for one in found.systems] == [1, 2, 3, 4]
    for one, strength in zip(found.systems, truth):
        assert one.low < strength < one.high
        assert one.strength == pytest.approx(strength, abs=0.2)
    assert found.systems[0].share == pytest.approx((chance[0].sum() - 0.5) / 3, abs=0.05)
    assert found.without == 0


def test_intervals_narrow_with_items_and_repeat_with_the_seed():
    some = np.array([[[0.0, 1], [0, 0]], [[0, 0.5], [0.5, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]])
    few, many = (rank(("a", "b"), np.tile(some, (times, 1, 1)), draws=300, seed=2) for times in (3, 30))
    assert few == rank(("a", "b"), np.tile(some, (3, 1, 1)), draws=300, seed=2)
    assert few.systems[0].strength == pytest.approx(math.log(2.5 / 1.5) / 2, abs=1e-9)
    width = [found.systems[0].high - found.systems[0].low for found in (few, many)]
    assert width[1] < width[0] / 2


def test_items_are_drawn_whole():
    """Every prompt has one win for a and one for b: whatever prompts are drawn, the two are level."""
    found = rank(("a", "b"), np.tile([[0.0, 1.0], [1.0, 0.0]], (8, 1, 1)), draws=100)
    assert {(one.strength, one.low, one.high) for one in found.systems} == {(0.0, 0.0, 0.0)}


def test_draws_without_an_order_are_left_out_and_counted():
    wins = np.zeros((4, 2, 2))
    wins[:3, 0, 1], wins[3, 1, 0] = 1, 1
    found = rank(("a", "b"), wins, draws=4000)
    assert found.without == pytest.approx(0.75**4 + 0.25**4, abs=0.03)  # only a's wins, or only b's
    assert all(map(math.isfinite, (found.systems[0].low, found.systems[0].high)))


def test_who_cannot_be_ranked_is_named():
    never_lost = np.array([[0.0, 2, 1], [0, 0, 1], [0, 3, 0]])
    with pytest.raises(DataError, match="No comparison was won or tied by two, three against one, so"):
        rank(("one", "two", "three"), never_lost[None])
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 1
    with pytest.raises(DataError, match="by c, d against a, b"):
        check_connected(apart, tuple("abcd"))
    assert connected(np.stack([np.array(GAMES, float)[:4, :4], apart])).tolist() == [True, False]


def test_chains_of_wins_of_any_length_are_followed():
    for k in (2, 3, 5, 9):
        ring = np.roll(np.eye(k), 1, axis=1)
        assert reached(ring).min() == 1
        ring[-1] = 0
        assert reached(ring).tolist() == np.triu(np.ones((k, k))).tolist()


def test_a_tie_is_half_a_win():
    rows = [[1.0], [0.5], [0.5], [0.0], [1.0]]
    found = score(WinRate(), rows, draws=200)
    assert found.value == pytest.approx(3 / 5)
    assert 0 <= found.low < found.value < found.high <= 1
