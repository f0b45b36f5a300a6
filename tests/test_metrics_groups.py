"""The worst of several versions, scores by group, and mean win rates: numbers by hand and slow loops."""

import itertools

import numpy as np
import pytest

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.metrics.correlation import Pearson
from acclimate.metrics.groups import alone, by_group, gap, worst_case
from acclimate.metrics.intervals import score
from acclimate.metrics.labels import F1, Accuracy, BalancedAccuracy
from acclimate.metrics.likelihood import Perplexity
from acclimate.metrics.overlap import Bleu, Rouge1
from acclimate.metrics.wins import Scenario, mean_win_rate, win_rates

LABELS = ("no", "yes")


def test_worst_case_takes_whole_rows() -> None:
    plain, typos, upper = (
        [[0, 0], [1, 1], [1, 0], [0, 0]],
        [[0, 0], [1, -1], [1, 1], [0, 1]],
        [[0, 1]] * 1 + [[1, 1]] * 3,
    )
    upper[3] = [0, 0]
    found = worst_case(BalancedAccuracy(LABELS), plain, typos, upper)
    assert found.tolist() == [[0, 1], [1, -1], [1, 0], [0, 1]]
    assert Accuracy(LABELS).combine(found) == 0
    assert worst_case(Accuracy(LABELS), plain).tolist() == plain
    for version in (plain, typos, upper):
        assert Accuracy(LABELS).combine(found) <= Accuracy(LABELS).combine(version)


def test_worst_case_where_less_is_better_and_rows_are_sums() -> None:
    found = worst_case(Perplexity(), [[-2.0, 2.0], [-9.0, 3.0]], [[-3.0, 1.0], [-8.0, 4.0]])
    assert found.tolist() == [[-3.0, 1.0], [-9.0, 3.0]]
    example = Example("", "it is very cold outside")
    good, bad = (Bleu().row(Output(text), example) for text in ("it is very cold", "it is cold"))
    assert worst_case(Bleu(), [good, bad], [bad, good]).tolist() == [list(bad)] * 2


def test_worst_case_says_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match="accuracy: a worst case needs the same examples in every version"):
        worst_case(Accuracy(LABELS), [[0, 0]], [[0, 0], [0, 1]])
    with pytest.raises(DataError, match="pearson says nothing of one row alone"):
        worst_case(Pearson(), [[0, 1], [1, 2]], [[0, 2], [1, 1]])
    # A row that no version has a value for stays as it is.
    assert worst_case(F1(LABELS), [[0, 0], [1, 1]], [[0, 0], [1, 0]]).tolist() == [[0, 0], [1, 0]]
    assert np.isnan(alone(F1(LABELS), [[0, 0], [1, 1]])).tolist() == [True, False]


def test_groups_and_their_gap() -> None:
    rows, groups = [[1, 1], [0, 1], [1, 1], [0, 0], [1, 0]], ["a", "b", "a", "b", "b"]
    found = by_group(Accuracy(LABELS), rows, groups)
    assert {name: (each.value, each.n) for name, each in found.items()} == {"a": (1.0, 2), "b": (1 / 3, 3)}
    assert found["b"] == score(Accuracy(LABELS), [rows[i] for i in (1, 3, 4)])
    assert gap(Accuracy(LABELS), found) == ("a", "b", pytest.approx(2 / 3))
    with pytest.raises(DataError, match="5 rows came with 4 groups"):
        by_group(Accuracy(LABELS), rows, groups[:4])


@pytest.mark.parametrize("seed", range(4))
def test_win_rates_are_the_mean_over_all_pairs(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (5, 7)) / 4
    wins = np.zeros(5)
    for i, j in itertools.permutations(range(5), 2):
        for k in range(7):
            wins[i] += 1 if values[i, k] > values[j, k] else 0.5 if values[i, k] == values[j, k] else 0
    assert win_rates(values) == pytest.approx(wins / (4 * 7), abs=1e-12)
    assert win_rates(values).mean() == pytest.approx(0.5)
    assert win_rates(np.stack([values, -values])) == pytest.approx(np.stack([wins, 28 - wins]) / 28)


def test_mean_win_rates_with_intervals() -> None:
    generator = np.random.default_rng(0)
    shared = generator.random((60, 1)) / 2
    clear = {"low": shared, "middle": shared + 0.1, "high": shared + 0.2}  # paired: nobody is unsure of this order
    unsure = {name: generator.random((60, 1)) for name in clear}
    found = mean_win_rate([Scenario(Rouge1(), clear)], draws=200)
    assert {name: (each.value, each.low, each.high) for name, each in found.items()} == {
        "low": (0, 0, 0),
        "middle": (0.5, 0.5, 0.5),
        "high": (1, 1, 1),
    }
    both = mean_win_rate([Scenario(Rouge1(), clear), Scenario(Rouge1(), unsure)], draws=200)
    assert all(each.low < each.high and each.n == 2 for each in both.values())
    assert both == mean_win_rate([Scenario(Rouge1(), clear), Scenario(Rouge1(), unsure)], draws=200)
    assert sum(each.value for each in both.values()) == pytest.approx(1.5)
    worse = {name: np.column_stack([-rows[:, 0] * 9, np.full(60, 3)]) for name, rows in clear.items()}
    assert mean_win_rate([Scenario(Perplexity(), worse)], draws=20)["low"].value == 1


def test_win_rates_need_the_same_systems_and_examples() -> None:
    rows = np.ones((3, 1))
    with pytest.raises(DataError, match="one scenario and two systems"):
        mean_win_rate([Scenario(Rouge1(), {"a": rows})])
    with pytest.raises(DataError, match=r"Scenario 2 \(rouge1\) needs rows of the same examples for each of a, b"):
        mean_win_rate([Scenario(Rouge1(), {"a": rows, "b": rows}), Scenario(Rouge1(), {"a": rows, "b": rows[:2]})])
