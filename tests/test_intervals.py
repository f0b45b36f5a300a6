"""Intervals and paired tests: exact enumeration and slow loops as oracles, and coverage by simulation."""

import itertools
import json
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.metrics import choose, intervals
from acclimate.metrics.intervals import Difference, Score, interval, mover, paired, score, unseen, wilson
from acclimate.metrics.labels import Accuracy, BalancedAccuracy, ExactMatch, MacroF1
from acclimate.metrics.likelihood import BitsPerByte, Perplexity
from acclimate.metrics.metric import Metric, Summed
from acclimate.metrics.overlap import Bleu, Rouge1, Rouge2

LABELS = ("no", "yes")


@dataclass(frozen=True)
class Alone:
    """Another metric without its sums, its limits and its own interval: asked once a draw, the slow oracle."""

    metric: Summed
    name: ClassVar[str] = "alone"
    kind: ClassVar[str] = "text"
    higher_is_better: ClassVar[bool] = True

    def row(self, output: Output, example: Example) -> tuple[float, ...]:
        return self.metric.row(output, example)

    def combine(self, rows: np.ndarray) -> float:
        return self.metric.combine(rows)


@dataclass(frozen=True)
class Median:
    """Not a function of sums."""

    name: ClassVar[str] = "median"
    kind: ClassVar[str] = "text"
    higher_is_better: ClassVar[bool] = True

    def row(self, output: Output, example: Example) -> tuple[float]:
        return (float(len(output.text)),)

    def combine(self, rows: np.ndarray) -> float:
        return float(np.median(rows))


def bleu_rows(seed: int, n: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    length = generator.integers(4, 20, n)
    ngrams = np.stack([length - k for k in range(4)], axis=1)
    matches = np.sort(generator.integers(0, ngrams + 1), axis=1)[:, ::-1]
    return np.column_stack([length, length + generator.integers(-2, 3, n), np.minimum(matches, ngrams), ngrams]) * 1.0


def label_rows(seed: int, n: int, right: float = 0.7, k: int = 2) -> np.ndarray:
    generator = np.random.default_rng(seed)
    target = generator.integers(k, size=n)
    answer = np.where(generator.random(n) < right, target, generator.integers(-1, k, size=n))
    return np.column_stack([target, answer]).astype(float)


def test_wilson_by_hand() -> None:
    # The limits p solve (share - p)² = z² p (1 - p) / n.
    low, high = wilson([0, 5, 10, 263], [10, 10, 10, 300])
    z = 1.959963984540054
    for share, limits in zip((0, 0.5, 1, 263 / 300), zip(low, high, strict=True), strict=True):
        n = 300 if share == 263 / 300 else 10
        for limit in limits:
            assert (share - limit) ** 2 == pytest.approx(z * z * limit * (1 - limit) / n, abs=1e-12)
    assert (low[0], high[2]) == (0, 1)
    assert high[0] == pytest.approx(3.8414588 / 13.8414588, abs=1e-7)
    assert wilson(5, 10, 0.99)[0] < low[1]


def test_wilson_covers_by_exact_enumeration() -> None:
    n, hits = 40, np.arange(41)
    low, high = wilson(hits, n)
    truths = np.linspace(0.02, 0.98, 97)
    covered = [(stats.binom.pmf(hits, n, p) * ((low <= p) & (p <= high))).sum() for p in truths]
    assert 0.945 < np.mean(covered) < 0.965
    assert min(covered) > 0.87


def test_mover_of_one_estimate_is_its_interval() -> None:
    low, high = mover(np.array([0.4]), np.array([0.3]), np.array([0.6]))
    assert (low, high) == pytest.approx((0.3, 0.6), abs=1e-12)


def test_all_right_is_not_certain() -> None:
    right = np.repeat([[0.0, 0.0], [1.0, 1.0]], 14, axis=0)
    assert interval(Accuracy(LABELS), right) == pytest.approx((28 / 31.8414588, 1), abs=1e-8)
    assert interval(MacroF1(LABELS), right) == pytest.approx((28 / 31.8414588, 1), abs=1e-8)  # by `unseen`
    one_label = 14 / 17.8414588
    assert interval(BalancedAccuracy(LABELS), right) == pytest.approx((1 - (1 - one_label) / math.sqrt(2), 1), abs=1e-8)
    assert interval(ExactMatch(), np.ones((28, 1))) == pytest.approx((28 / 31.8414588, 1), abs=1e-8)


def test_a_rare_label_widens_balanced_accuracy() -> None:
    rows = np.array([[0.0, 0.0]] * 90 + [[1.0, 1.0]] * 2 + [[0.0, 1.0]] * 10)
    low, high = interval(BalancedAccuracy(LABELS), rows)
    assert interval(BalancedAccuracy((*LABELS, "never")), rows) == (low, high)
    assert low == pytest.approx(0.95 - math.hypot(0.9 - wilson(90, 100)[0], 1 - 2 / 5.8414588) / 2, abs=1e-8)


def test_no_spread_leaves_room_for_the_unseen() -> None:
    share = 3.8414588 / (1 + 3.8414588)
    assert interval(Rouge1(), [[0.4]]) == pytest.approx((0.4 * (1 - share), 0.4 + 0.6 * share), abs=1e-8)
    assert interval(Rouge1(), [[0.0]] * 10) == pytest.approx((0, 3.8414588 / 13.8414588), abs=1e-8)
    assert interval(Bleu(), bleu_rows(0, 10) * [1, 1, 0, 0, 0, 0, 1, 1, 1, 1])[1] == pytest.approx(27.7533, abs=1e-4)
    assert interval(Perplexity(), [[-2.0, 4.0]] * 3) == pytest.approx((math.exp(0.5),) * 2, abs=1e-12)
    assert unseen(0.25, (-math.inf, math.inf), 5) == (0.25, 0.25)


def test_bca_agrees_with_scipy() -> None:
    rows = np.random.default_rng(3).gamma(0.6, size=(40, 1)) / 10
    low, high = interval(Rouge2(), rows, draws=40_000)
    theirs = stats.bootstrap((rows[:, 0],), np.mean, n_resamples=40_000, rng=0).confidence_interval
    plain = np.quantile(np.random.default_rng(0).choice(rows[:, 0], (40_000, 40)).mean(1), (0.025, 0.975))
    assert (low, high) == pytest.approx(theirs, abs=5e-4)
    assert low - plain[0] > 2e-3  # the percentile interval, which BCa corrects here, is not it
    assert high - plain[1] > 2e-3


SUMMED = [
    pytest.param(
        Rouge1(), np.random.default_rng(1).random((25, 1)), np.random.default_rng(2).random((25, 1)), id="mean"
    ),
    pytest.param(Bleu(), bleu_rows(1, 25), bleu_rows(2, 25), id="bleu"),
    pytest.param(MacroF1(("a", "b", "c")), label_rows(1, 25, k=3), label_rows(2, 25, k=3), id="macro_f1"),
    pytest.param(
        Perplexity(),
        np.column_stack([-np.random.default_rng(1).gamma(9, size=25), np.arange(1, 26)]),
        np.column_stack([-np.random.default_rng(2).gamma(8, size=25), np.arange(1, 26)]),
        id="perplexity",
    ),
]


@pytest.mark.parametrize(("metric", "base", "result"), SUMMED)
def test_sums_give_what_asking_once_a_draw_gives(metric: Summed, base: np.ndarray, result: np.ndarray) -> None:
    if isinstance(metric, MacroF1):
        result[:, 0] = base[:, 0]
    alone: Metric = Alone(metric)
    assert interval(metric, base, draws=300) == pytest.approx(interval(alone, base, draws=300), abs=1e-9)
    fast, slow = paired(metric, base, result, draws=300), paired(alone, base, result, draws=300)
    assert tuple(fast.json().values()) == pytest.approx(tuple(slow.json().values()), abs=1e-9)
    assert fast.value == metric.combine(result) - metric.combine(base)
    assert fast.low < fast.value < fast.high


def test_batches_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base, result = label_rows(1, 30), label_rows(2, 30)
    result[:, 0] = base[:, 0]
    whole = paired(MacroF1(LABELS), base, result, draws=500), interval(MacroF1(LABELS), base, draws=500)
    monkeypatch.setattr(intervals, "CELLS", 30 * 64)
    assert (paired(MacroF1(LABELS), base, result, draws=500), interval(MacroF1(LABELS), base, draws=500)) == whole


def test_a_median_has_an_interval_and_a_p() -> None:
    rows = np.random.default_rng(0).normal(size=(61, 1))
    low, high = interval(Median(), rows, draws=1000)
    order = np.sort(rows[:, 0])
    assert order[20] <= low <= order[26] < order[34] <= high <= order[40]  # binomial: places 22.4 and 38.6
    assert paired(Median(), rows, rows + 1, draws=300).p == pytest.approx(1 / 301)
    assert paired(Median(), rows, rows[::-1], draws=300).p > 0.5


def test_p_is_the_share_of_all_swaps() -> None:
    base = np.array([0.10, 0.40, 0.35, 0.80, 0.20, 0.55, 0.30, 0.65])[:, None]
    result = base + np.array([0.20, 0.10, -0.05, 0.15, 0.30, -0.10, 0.25, 0.05])[:, None]
    change = (result - base)[:, 0]
    every = [abs(np.mean(signs * change)) for signs in itertools.product((1, -1), repeat=8)]
    exact = np.mean(np.array(every) >= abs(change.mean()) - 1e-12)
    assert exact == 22 / 256  # in steps of 0.05 the flipped ones may sum to 3 at most: 11 sets, and their mirror images
    assert paired(Rouge1(), base, result, draws=19_999).p == pytest.approx(exact, abs=0.006)
    assert paired(Rouge1(), result, base, draws=19_999).p == pytest.approx(exact, abs=0.006)


def test_identical_rows_do_not_differ() -> None:
    for metric, rows in ((Rouge1(), np.random.default_rng(0).random((20, 1))), (MacroF1(LABELS), label_rows(0, 20))):
        difference = paired(metric, rows, rows)
        share = 3.8414588 / 23.8414588
        assert (difference.value, difference.p) == (0, 1)
        assert (difference.low, difference.high) == pytest.approx((-share, share), abs=1e-8)
    rows = np.column_stack([-np.random.default_rng(0).gamma(9, size=20), np.arange(1, 21)])
    assert paired(Perplexity(), rows, rows) == Difference(0, 0, 0, 1)


def test_a_plain_effect_is_found() -> None:
    base, result = (
        answers(np.random.default_rng(seed), (150, 150), (right, right)) for seed, right in ((1, 0.4), (2, 0.8))
    )
    for metric in choose(["accuracy", "balanced_accuracy", "macro_f1"], LABELS):
        difference = paired(metric, base, result)
        assert difference.p == 1e-4
        assert 0.2 < difference.low < difference.value < difference.high < 0.6
        back = paired(metric, result, base)
        assert (back.value, back.low, back.high) == pytest.approx(
            (-difference.value, -difference.high, -difference.low), abs=1e-9
        )


@pytest.mark.parametrize("metric", [Rouge1(), BitsPerByte(), MacroF1(LABELS)], ids=lambda metric: metric.name)
def test_p_is_uniform_when_nothing_differs(metric: Metric) -> None:
    generator, found = np.random.default_rng(11), []
    for _ in range(400):
        if isinstance(metric, MacroF1):
            target = generator.integers(2, size=80)
            sides = [np.column_stack([target, generator.integers(2, size=80)]) for _ in range(2)]
        else:
            shared = generator.random((80, 1))
            sides = [np.column_stack([-(shared + generator.random((80, 1))), np.full(80, 2)]) for _ in range(2)]
        found.append(paired(metric, *sides, draws=199).p)
    for bound in (0.05, 0.25, 0.5, 0.75):  # four standard errors of a share of 400
        assert np.mean(np.array(found) <= bound) == pytest.approx(bound, abs=4 * math.sqrt(bound * (1 - bound) / 400))


def covered(metric: Metric, draw, truth: float, times: int = 400) -> float:
    generator = np.random.default_rng(17)
    limits = np.array([interval(metric, draw(generator), draws=500) for _ in range(times)])
    return float(np.mean((limits[:, 0] <= truth) & (truth <= limits[:, 1])))


def answers(generator: np.random.Generator, counts: tuple[int, ...], recall: tuple[float, ...]) -> np.ndarray:
    target = np.repeat(np.arange(len(counts)), counts)
    wrong = (target + generator.integers(1, len(counts), len(target))) % len(counts)
    return np.column_stack([target, np.where(generator.random(len(target)) < np.take(recall, target), target, wrong)])


@pytest.mark.parametrize(
    ("counts", "recall"),
    [((30, 30), (0.8, 0.8)), ((150, 150), (0.95, 0.85)), ((90, 10), (0.95, 0.6)), ((40, 30, 20, 10), (0.7,) * 4)],
)
def test_intervals_of_label_metrics_cover(counts: tuple[int, ...], recall: tuple[float, ...]) -> None:
    labels = tuple("abcd")[: len(counts)]
    n, right = sum(counts), np.array(counts) * recall
    off = (np.array(counts) - right) / (len(counts) - 1)
    f1 = np.mean(2 * right / (np.array(counts) + right + off.sum() - off))
    for metric, truth in ((Accuracy(labels), right.sum() / n), (BalancedAccuracy(labels), np.mean(recall))):
        assert 0.92 <= covered(metric, lambda g: answers(g, counts, recall), truth) <= 0.985
    assert 0.91 <= covered(MacroF1(labels), lambda g: answers(g, counts, recall), f1) <= 0.99


def test_intervals_of_means_and_ratios_cover() -> None:
    def often_zero(generator: np.random.Generator) -> np.ndarray:
        return np.where(generator.random((60, 1)) < 0.6, 0, generator.beta(1, 4, (60, 1)))

    def texts(generator: np.random.Generator) -> np.ndarray:
        tokens = generator.integers(5, 60, 100)
        return np.column_stack([-generator.gamma(8, 0.3, 100) * tokens, tokens])

    assert 0.92 <= covered(Rouge2(), often_zero, 0.4 / 5) <= 0.98
    assert 0.92 <= covered(Perplexity(), texts, math.exp(2.4)) <= 0.98


def test_intervals_of_differences_cover() -> None:
    generator, hits = np.random.default_rng(23), 0
    for _ in range(400):
        kind = generator.choice(4, size=120, p=[0.55, 0.05, 0.25, 0.15])  # both right, base, result, neither
        target = generator.integers(2, size=120)
        base, result = (np.column_stack([target, np.where(np.isin(kind, right), target, 1 - target)])
                        for right in ((0, 1), (0, 2)))  # fmt: skip
        difference = paired(BalancedAccuracy(LABELS), base, result, draws=400)
        hits += difference.low <= 0.2 <= difference.high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_same_seed_gives_the_same_numbers() -> None:
    base, result = bleu_rows(1, 50), bleu_rows(2, 50)
    assert score(Bleu(), base, seed=3) == score(Bleu(), base, seed=3) != score(Bleu(), base, seed=4)
    assert paired(Bleu(), base, result, seed=3) == paired(Bleu(), base, result, seed=3)
    assert paired(Bleu(), base, result, seed=3).low != paired(Bleu(), base, result, seed=4).low


def test_limits_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> tuple[float, ...]:
        rows = np.random.default_rng(0).random((300, 1))
        difference = paired(Rouge1(), rows, rows**2)
        return (*interval(Rouge1(), rows), difference.low, difference.high, difference.p)

    whole = found()
    monkeypatch.setattr(Summed, "value", lambda self, sums: sums[..., 0] / sums[..., 1] * (1 + 4e-16))
    assert found() == whole


def test_a_higher_level_is_wider() -> None:
    rows = np.random.default_rng(0).random((50, 1))
    for metric, kept in ((Rouge1(), rows), (Accuracy(LABELS), label_rows(0, 50)), (Bleu(), bleu_rows(0, 50))):
        (low, high), (lower, higher) = interval(metric, kept), interval(metric, kept, level=0.99)
        assert lower < low < high < higher


def test_ten_thousand_draws_are_quick() -> None:
    for metric, base, result in ((Bleu(), bleu_rows(1, 500), bleu_rows(2, 500)),
                                 (MacroF1(LABELS), label_rows(1, 500), label_rows(2, 500))):  # fmt: skip
        start = time.process_time()
        paired(metric, base, result)
        assert time.process_time() - start < 5


def test_scores_are_written_as_the_contract_says() -> None:
    kept = score(Accuracy(LABELS), [[0, 0], [1, 0], [1, 1], [1, 1]])
    assert json.loads(json.dumps(kept.json())) == {
        "value": 0.75,
        "low": kept.low,
        "high": kept.high,
        "n": 4,
        "stderr": kept.stderr,
    }
    assert kept == Score(0.75, *(float(limit) for limit in wilson(3, 4)), 4, pytest.approx(0.25))  # √(0.75 · 0.25 / 3)
    assert list(Difference(0.1, 0.0, 0.2, 0.04).json()) == ["value", "low", "high", "p"]


def test_wrong_input_is_a_sentence() -> None:
    with pytest.raises(DataError, match="rouge1 needs at least one example"):
        interval(Rouge1(), [])
    with pytest.raises(DataError, match="the same examples; got 3 and 2"):
        paired(Rouge1(), [[0.1]] * 3, [[0.2]] * 2)
