"""Metrics of the task types: scipy and scikit-learn as oracles, slow loops from the definitions, numbers by hand."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from acclimate.data.examples import Example, Output, Tagged
from acclimate.errors import DataError, ModelError
from acclimate.metrics import choose, intervals
from acclimate.metrics.correlation import Matthews, MeanAbsoluteError, MeanSquaredError, Pearson, Spearman, mean_ranks
from acclimate.metrics.intervals import interval, paired, score
from acclimate.metrics.labels import F1, F1a
from acclimate.metrics.metric import Metric
from acclimate.metrics.spans import EntityF1, SquadExact, SquadF1, TagAccuracy, entities, normalised

LABELS = tuple("abcd")
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=40)
NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40)


# Labels.


def test_matthews_by_hand() -> None:
    # tp 3, tn 2, fp 1, fn 4: (3·2 - 1·4) / sqrt(4 · 7 · 3 · 6)
    rows = [[1, 1]] * 3 + [[0, 0]] * 2 + [[0, 1]] + [[1, 0]] * 4
    assert Matthews(("no", "yes")).combine(rows) == pytest.approx(2 / np.sqrt(504), abs=1e-12)
    assert Matthews(("no", "yes")).combine([[0, 1], [1, 0]]) == -1
    assert Matthews(("no", "yes")).combine([[0, 1], [1, 1]]) == 0  # the same answer always


@given(PAIRS)
def test_matthews_and_f1_equal_sklearn(pairs: list[tuple[int, int]]) -> None:
    target, answer = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn remarks on an answer that is no target
        expected = matthews_corrcoef(target, answer)
    assert Matthews(LABELS).combine(pairs) == pytest.approx(expected, abs=1e-12)
    assume("b" in {LABELS[i] for pair in pairs for i in pair if i >= 0})
    expected = f1_score(target, answer, labels=[1], average="macro", zero_division=0)
    assert F1(LABELS, "b").combine(pairs) == pytest.approx(expected, abs=1e-12)


def test_f1_counts_the_last_label_unless_told() -> None:
    rows = [[0, 0], [0, 1], [1, 1], [1, -1]]  # one hit of two targets; two answers "yes", one "no"
    assert F1(("no", "yes")).combine(rows) == 2 / 4
    assert F1(("no", "yes"), "no").combine(rows) == 2 / 3
    assert F1a(("no", "yes")).combine(rows) == F1(("no", "yes")).combine(rows)
    with pytest.raises(DataError, match="f1 has no value: nothing in these 2 examples"):
        F1(("no", "yes")).combine([[0, 0], [0, -1]])


# Numbers.


@given(NUMBERS)
def test_correlations_equal_scipy(pairs: list[tuple[int, int]]) -> None:
    rows = np.array(pairs) / 4
    assume(np.ptp(rows, axis=0).min() > 0)
    assert Pearson().combine(rows) == pytest.approx(stats.pearsonr(*rows.T).statistic, abs=1e-9)
    assert Spearman().combine(rows) == pytest.approx(stats.spearmanr(*rows.T).statistic, abs=1e-9)


def test_pearson_keeps_its_digits_far_from_zero() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2))
    rows[:, 1] += rows[:, 0]
    expected = Pearson().combine(rows)
    assert Pearson().combine(rows * [1e-150, 1e150]) == pytest.approx(expected, abs=1e-12)
    assert Pearson().combine(rows + np.array([1e7, -3e6])) == pytest.approx(expected, abs=1e-8)
    assert Pearson().combine(rows * 1e-3 + 1e7) == pytest.approx(expected, abs=1e-5)  # 4 digits are left of each


@pytest.mark.parametrize("metric", [Pearson(), Spearman()], ids=lambda metric: metric.name)
def test_what_never_changes_goes_with_nothing(metric: Pearson | Spearman) -> None:
    assert metric.combine([[1, 0.1], [2, 0.1], [4, 0.1]]) == 0  # 0.1 + 0.1 + 0.1 is not 3 · 0.1
    with pytest.raises(DataError, match=f"{metric.name} has no value: nothing in these 3 examples"):
        metric.combine([[0.1, 1], [0.1, 2], [0.1, 4]])
    with pytest.raises(DataError, match=f"{metric.name} has no value"):
        metric.combine([[0.1, 0.7]] * 3)
    low, high = interval(metric, [[1, 0.1], [2, 0.1], [4, 0.1]])
    assert -1 < low < 0 < high < 1  # of the kind not seen there may be some


@pytest.mark.parametrize("metric", [Pearson(), Spearman()], ids=lambda metric: metric.name)
def test_a_resample_of_one_example_has_no_correlation(metric: Pearson | Spearman) -> None:
    rows = np.random.default_rng(2).random((40, 2))
    rows[:20, 1] = 0.1
    assert np.isnan(metric.resampled(rows, 7 * np.eye(40))).all()
    alike = np.repeat([[3.0, 0.0]], 20, axis=1)  # three times each of those that have one answer
    assert metric.resampled(rows, alike).tolist() == [0.0]


def slow_ranks(values: Sequence[float]) -> list[float]:
    """The mean of the places that a value has when all are in order."""
    order = sorted(values)
    return [float(np.mean([i + 1 for i, other in enumerate(order) if other == value])) for value in values]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_ranks_within_a_resample(drawn: list[tuple[int, int]]) -> None:
    values, counts = (np.array(side, dtype=float) for side in zip(*drawn, strict=True))
    repeated = np.repeat(values, counts.astype(int))
    ranks = np.repeat(mean_ranks(values, counts), counts.astype(int))
    assert ranks.tolist() == slow_ranks(repeated)


@dataclass(frozen=True)
class Alone:
    """Another metric asked once a draw: the slow oracle of `resampled`."""

    metric: Metric
    name: ClassVar[str] = "alone"
    kind: ClassVar[str] = "number"
    higher_is_better: ClassVar[bool] = True

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        return self.metric.row(output, example)

    def combine(self, rows: np.ndarray) -> float:
        return self.metric.combine(rows)


def related(seed: int, n: int, noise: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    target = generator.integers(0, 6, n) / 1.0
    return np.column_stack([target, np.round(target + noise * generator.normal(size=n), 1)])


@pytest.mark.parametrize("metric", [Pearson(), Spearman()], ids=lambda metric: metric.name)
def test_intervals_and_paired_tests_of_correlations(metric: Metric) -> None:
    base, result = related(1, 60, 4.0), related(1, 60, 1.0)
    assert interval(metric, base, draws=200) == pytest.approx(interval(Alone(metric), base, draws=200), abs=1e-9)
    fast, slow = (paired(one, base, result, draws=200) for one in (metric, Alone(metric)))
    assert tuple(fast.json().values()) == pytest.approx(tuple(slow.json().values()), abs=1e-9)
    assert fast.p == 1 / 201
    assert 0 < fast.low < fast.value < fast.high
    assert fast.value == metric.combine(result) - metric.combine(base)
    assert paired(metric, base, base, draws=200).p == 1


def test_batches_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = related(1, 30, 2.0)
    whole = score(Spearman(), rows, draws=100)
    monkeypatch.setattr(intervals, "CELLS", 30 * 8)
    assert score(Spearman(), rows, draws=100) == whole


@pytest.mark.parametrize("metric", [Pearson(), Spearman()], ids=lambda metric: metric.name)
def test_intervals_of_correlations_cover(metric: Metric) -> None:
    generator, rho, hits = np.random.default_rng(7), 0.6, 0
    truth = rho if isinstance(metric, Pearson) else 6 / np.pi * np.arcsin(rho / 2)  # of a normal pair
    for _ in range(300):
        x = generator.normal(size=80)
        rows = np.column_stack([x, rho * x + np.sqrt(1 - rho**2) * generator.normal(size=80)])
        low, high = interval(metric, rows, draws=300)
        hits += low <= truth <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_errors_of_numbers_by_hand() -> None:
    examples, outputs = [Example("", "4"), Example("", " -1.5 ")], [Output(value=2.0), Output(value=-1.0)]
    squares = [MeanSquaredError().row(o, e) for o, e in zip(outputs, examples, strict=True)]
    sizes = [MeanAbsoluteError().row(o, e) for o, e in zip(outputs, examples, strict=True)]
    assert (squares, sizes) == ([(4.0,), (0.25,)], [(2.0,), (0.5,)])
    assert (MeanSquaredError().combine(squares), MeanAbsoluteError().combine(sizes)) == (2.125, 1.25)


@pytest.mark.parametrize("name", ["pearson", "spearman", "mse", "mae"])
def test_a_number_is_needed_on_both_sides(name: str) -> None:
    (metric,) = choose([name])
    with pytest.raises(DataError, match=rf"stsb\.jsonl:3 has 'good' as its target; {name} needs a number there"):
        metric.row(Output(value=1.0), Example("", "good", where="stsb.jsonl:3"))
    for value in (float("nan"), 1e200 if name == "mse" else float("inf")):
        with pytest.raises(ModelError, match=f"{name}: the row of example 0"):
            metric.combine([metric.row(Output(value=value), Example("", "1"))])


# Tags.


def slow_entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """conlleval's startOfChunk and endOfChunk, word by word."""
    found, start = set(), 0
    padded = ["O", *tags, "O"]
    open_type = ""
    for i in range(1, len(padded)):
        (before, _, old), (now, _, new) = padded[i - 1].partition("-"), padded[i].partition("-")
        ends = before in "BI" and (now in "BO" or old != new)
        starts = now == "B" or (now == "I" and (before == "O" or old != new))
        if open_type and ends:
            found.add((start, i - 1, open_type))
            open_type = ""
        if starts:
            start, open_type = i - 1, new
    return found


BIO = st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), min_size=1, max_size=9)


@given(BIO)
def test_entities_equal_conlleval(tags: list[str]) -> None:
    assert {tuple(entity) for entity in entities(tags)} == slow_entities(tags)


@given(st.lists(st.tuples(BIO, st.randoms(use_true_random=False)), min_size=1, max_size=6))
def test_entity_f1_equals_sets_of_spans(sentences) -> None:
    rows, wanted, given_ = [], set(), set()
    for number, (tags, random) in enumerate(sentences):
        answer = [random.choice(["O", "B-x", "I-x", tag]) for tag in tags]
        rows.append(EntityF1().row(Output(tags=tuple(answer)), Tagged(("w",) * len(tags), tuple(tags))))
        wanted |= {(number, *entity) for entity in slow_entities(tags)}
        given_ |= {(number, *entity) for entity in slow_entities(answer)}
    assume(wanted or given_)
    assert EntityF1().combine(rows) == pytest.approx(2 * len(wanted & given_) / (len(wanted) + len(given_)), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "row", "right"),
    [
        ("B-per I-per O B-loc", (2, 2, 2), 4),
        ("B-per I-per O B-per", (1, 2, 2), 3),  # another type
        ("B-per O O B-loc", (1, 2, 2), 3),  # too short
        ("B-per B-per O B-loc", (1, 2, 3), 3),  # cut in two
        ("I-per I-per O I-loc", (2, 2, 2), 2),  # an I- that nothing goes before begins an entity
        ("B-loc I-per O O", (0, 2, 2), 2),  # the type changes, so a new one begins
        ("O O O O", (0, 2, 0), 1),
    ],
)
def test_entity_rows_by_hand(answer: str, row: tuple[int, ...], right: int) -> None:
    tagged = Tagged(("Ada", "Lovelace", "in", "London"), ("B-per", "I-per", "O", "B-loc"), "f:1")
    output = Output(tags=tuple(answer.split()))
    assert EntityF1().row(output, tagged) == row
    assert TagAccuracy().row(output, tagged) == (right, 4)


def test_entity_f1_is_micro_and_accuracy_is_per_word() -> None:
    assert EntityF1().combine([[1, 1, 1], [0, 3, 4]]) == 2 / 9  # not the mean of 1 and 0
    assert TagAccuracy().combine([[1, 1], [1, 9]]) == 2 / 10
    assert score(EntityF1(), [[1, 1, 1], [0, 3, 4], [0, 0, 0]]).n == 3
    with pytest.raises(DataError, match="entity_f1 has no value"):
        EntityF1().combine([[0, 0, 0]])


@pytest.mark.parametrize("metric", [EntityF1(), TagAccuracy()], ids=lambda metric: metric.name)
def test_tags_are_needed_on_both_sides(metric: Metric) -> None:
    with pytest.raises(DataError, match=rf"^x\.csv:2 has no tags; {metric.name} needs rows with tokens and tags"):
        metric.row(Output(tags=("O",)), Example("Rome", "O", where="x.csv:2"))
    with pytest.raises(ModelError, match=rf"^f:1: 1 tags came for 2 words; {metric.name} needs one each"):
        metric.row(Output(tags=("O",)), Tagged(("in", "Rome"), ("O", "B-loc"), "f:1"))


# Spans.


@pytest.mark.parametrize(
    ("text", "answers", "f1", "exact"),
    [
        ("Denver Broncos", ("Denver Broncos", "the Broncos"), 1, 1),
        ("the Broncos!", ("Denver Broncos", "Broncos"), 1, 1),
        ("Broncos", ("Denver Broncos",), 2 / 3, 0),
        ("a Denver, Denver team", ("Denver Broncos",), 2 / 5, 0),  # Denver is there once: 1 of 3 and of 2
        ("New York, New York!", ("New York New York",), 1, 1),
        ("U.S.", ("US",), 1, 1),
        ("theatre", ("atre",), 0, 0),  # an article is a word
        ("", ("",), 1, 1),  # no answer, and none wanted
        ("Denver", ("",), 0, 0),
        ("", ("Denver",), 0, 0),
        ("the", ("",), 1, 1),
    ],
)
def test_squad_by_hand(text: str, answers: tuple[str, ...], f1: float, exact: int) -> None:
    example = Example("Who won?", answers[0], answers)
    assert SquadF1().row(Output(text), example) == pytest.approx((f1,), abs=1e-12)
    assert SquadExact().row(Output(text), example) == (exact,)


def test_squad_looks_at_words_alone() -> None:
    assert normalised(" An apple;\n\tTHE «Pear» a-b ") == "apple «pear» ab"
    assert interval(SquadExact(), np.ones((28, 1))) == pytest.approx((28 / 31.8414588, 1), abs=1e-8)  # Wilson's
