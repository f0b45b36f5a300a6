"""Calibration: slow loops from the papers, scikit-learn's Brier score, numbers by hand, coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, ModelError
from acclimate.metrics.calibration import (
    Brier,
    CoverageArea,
    Ece,
    EceMass,
    SelectiveAccuracy,
    places,
    reflected,
    reliability,
    shares,
)
from acclimate.metrics.intervals import interval, unseen

LABELS = ("no", "yes")
ROWS = st.lists(st.tuples(st.integers(0, 60).map(lambda k: k / 60), st.integers(0, 1)), min_size=1, max_size=50)


def drawn(seed: int, n: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.3, 1, n)
    return np.column_stack([confidence, generator.random(n) < confidence**2]).astype(float)


def slow_ece(rows, bins: int = 15) -> float:
    """Guo et al. 2017, eq. 2 and 3."""
    total = 0.0
    for m in range(1, bins + 1):
        held = [(c, r) for c, r in rows if (m - 1) / bins < c <= m / bins or (m == 1 and c == 0)]
        if held:
            accuracy = sum(r for _, r in held) / len(held)
            total += len(held) / len(rows) * abs(accuracy - sum(c for c, _ in held) / len(held))
    return total


@given(ROWS)
def test_ece_is_the_papers(rows: list[tuple[float, int]]) -> None:
    for count in (15, 10):
        expected = pytest.approx(slow_ece(rows, count), abs=1e-12)
        assert Ece(LABELS, count).combine(rows) == expected
        bins = reliability(rows, count)
        assert sum(b.n for b in bins) == len(rows)
        assert sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / len(rows) == expected
        assert all(b.low <= b.confidence <= b.high + 1e-12 for b in bins)
    assert Ece(LABELS).combine(rows) == Ece(LABELS, 15).combine(rows)


@pytest.mark.parametrize("n", [10, 70, 300])
def test_equal_mass_is_a_split_into_ten(n: int) -> None:
    rows = drawn(n, n)
    parts = np.split(rows[np.argsort(rows[:, 0])], 10)
    expected = np.mean([abs(part[:, 0].mean() - part[:, 1].mean()) for part in parts])
    assert EceMass(LABELS).combine(rows) == pytest.approx(expected, abs=1e-12)


def test_equal_mass_shares_rows_between_bins_by_hand() -> None:
    # Three rows in ten bins of 0.3 rows each: gaps 0.1, -0.4, 0.2 in one sign within a bin, or cut at the thirds.
    rows = [[0.9, 1], [0.4, 0], [0.8, 1]]
    # Order 0.9, 0.8, 0.4. Bins 4 (0.9 to 1.2) and 7 (1.8 to 2.1) straddle: 0.1·0.1 + 0.2·0.2, then 0.2·0.2 - 0.4·0.1.
    expected = (0.9 * 0.1 + (0.01 + 0.04) + 0.6 * 0.2 + abs(0.04 - 0.04) + 0.9 * 0.4) / 3
    assert EceMass(LABELS).combine(rows) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [40, 200])
def test_selective_accuracy_and_area_against_going_row_by_row(n: int) -> None:
    rows = drawn(n, n)
    right = rows[np.argsort(-rows[:, 0]), 1]
    assert SelectiveAccuracy(LABELS).combine(rows) == pytest.approx(right[: n // 10].mean(), abs=1e-12)
    # In steps of a thousandth of a row, and then as HELM does, which is the same for many rows.
    fine = np.repeat(right, 1000)
    steps = np.cumsum(fine) / np.arange(1, len(fine) + 1)
    assert CoverageArea(LABELS).combine(rows) == pytest.approx(steps.mean(), abs=1e-4)
    helm = np.mean(np.cumsum(right) / np.arange(1, n + 1))
    assert CoverageArea(LABELS).combine(rows) == pytest.approx(helm, abs=3 / n)


@pytest.mark.parametrize(
    "metric", [EceMass(LABELS), SelectiveAccuracy(LABELS), CoverageArea(LABELS)], ids=lambda m: m.name
)
def test_who_is_never_surer_is_taken_as_a_whole(metric) -> None:
    rows = np.column_stack([np.full(8, 0.75), [1, 0, 0, 1, 1, 0, 1, 0]])
    assert metric.combine(rows) == pytest.approx(0.25 if metric.name == "ece_mass" else 0.5, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-9, 9), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_brier_equals_sklearn(rows: list[tuple[float, str]]) -> None:
    outputs = [Output("yes", {"no": 0.0, "yes": logit}) for logit, _ in rows]
    found = [Brier(LABELS).row(output, Example("", target)) for output, (_, target) in zip(outputs, rows, strict=True)]
    chances = [1 / (1 + math.exp(-logit)) for logit, _ in rows]
    expected = 2 * brier_score_loss([target == "yes" for _, target in rows], chances)  # theirs counts one label of two
    assert Brier(LABELS).combine(found) == pytest.approx(expected, abs=1e-12)


def test_shares_are_a_softmax_and_scores_need_not_be_normalised() -> None:
    output = Output("yes", {"no": -1000.0, "yes ": -1000 + math.log(3), "maybe": -math.inf})
    assert shares(output, Example("", "no"), "ece") == pytest.approx({"no": 0.25, "yes": 0.75, "maybe": 0})
    assert Ece(LABELS).row(output, Example("", "no")) == pytest.approx((0.75, 0))
    assert Ece(LABELS).row(output, Example("", "yes")) == pytest.approx((0.75, 1))
    assert Brier(("no", "yes", "off")).row(output, Example("", "off")) == pytest.approx((0.25**2 + 0.75**2 + 1,))
    none = Output("who knows", output.scores)
    assert Ece(LABELS).row(none, Example("", "no")) == (0, 0)


def test_without_probabilities_there_is_a_sentence() -> None:
    for metric in (Ece(LABELS), Brier(LABELS), SelectiveAccuracy(LABELS)):
        with pytest.raises(
            ModelError, match=rf"^x:3 was answered without a probability for each label; {metric.name} needs"
        ):
            metric.row(Output("no"), Example("", "no", where="x:3"))
        with pytest.raises(DataError, match="No label is called 'maybe'"):
            metric.row(Output("no", {"no": 0.0}), Example("", "maybe"))


def test_bins_hold_their_upper_end() -> None:
    edges = np.arange(1, 16) / 15
    assert places(edges, 15).tolist() == list(range(15))
    assert places(np.nextafter(edges[:-1], 1), 15).tolist() == list(range(1, 15))
    assert places(np.array([0.0]), 15).tolist() == [0]


def test_intervals_of_the_area_cover() -> None:
    # Confidence is uniform and right with that probability: accuracy at coverage c is 1 - c / 2, the area 3 / 4.
    generator, hits = np.random.default_rng(3), 0
    for _ in range(60):
        confidence = generator.random(80)
        rows = np.column_stack([confidence, generator.random(80) < confidence]).astype(float)
        low, high = interval(CoverageArea(LABELS), rows, draws=100)
        hits += low <= 0.75 <= high
    assert 0.85 <= hits / 60 <= 0.99


def unsure(n: int, generator, above: float = 0.05):
    """Rows that are surer by so much than they are right."""
    confidence = generator.uniform(0.5, 1, n)
    return np.column_stack([confidence, generator.random(n) < confidence - above]).astype(float)


@pytest.mark.parametrize("metric", [Ece(LABELS), Ece(LABELS, 10), EceMass(LABELS)])
def test_intervals_of_the_error_cover_where_chance_adds_to_it(metric) -> None:
    generator, hits, values = np.random.default_rng(0), 0, []
    for _ in range(60):
        rows = unsure(100, generator)
        low, high = reflected(metric, rows, 0.95, draws=150)
        hits += low <= 0.05 <= high
        values.append(metric.combine(rows))
    assert np.mean(values) > 0.08  # the truth is 0.05
    # Of six seeds, 60 samples each: 0.98, 0.97 and 0.92 on average, 0.82 at least. BCa: 0.09 to 0.4.
    assert hits / 60 >= 0.85


@pytest.mark.parametrize("metric", [Ece(LABELS, 10), EceMass(LABELS)])
def test_intervals_of_the_error_hold_it_and_narrow(metric) -> None:
    assert metric.interval(np.array([[0.8, 1.0]] * 5)) == pytest.approx(unseen(0.2, (0, 1), 5))
    widths = []
    for n in (50, 5000):  # the many in batches
        rows = unsure(n, np.random.default_rng(0), 0.15)
        low, high = metric.interval(rows)
        assert (low, high) == metric.interval(rows)
        assert low <= metric.combine(rows) <= high
        assert low <= 0.15 <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4
    even = np.column_stack([np.full(400, 0.75), np.tile([1.0, 1.0, 1.0, 0.0], 100)])
    assert metric.interval(even)[0] == 0.0  # 0 itself is not ruled out
