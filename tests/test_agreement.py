"""Agreement beyond chance: published worked examples, other implementations, and what must not change it."""

import krippendorff
import numpy as np
import pytest
from statsmodels.stats import inter_rater

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError
from acclimate.metrics.agreement import CohenKappa, FleissKappa, KrippendorffAlpha, TieDiscounted
from acclimate.metrics.intervals import score
from acclimate.metrics.labels import NONE

NAMES = tuple("abcdefg")

# Fleiss 1971, Psychological Bulletin 76, table 1: 30 patients, 6 psychiatrists each, 5 diagnoses
FLEISS_1971 = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: four observers, twelve units
KRIPPENDORFF_2011 = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def rows_of(table):
    """Counts of each label for each item → ratings."""
    return np.array([np.repeat(np.arange(len(counts)), counts) for counts in table])


def observed(lines):
    return np.array([[NONE if mark == "." else int(mark) - 1 for mark in line] for line in lines]).T


def test_fleiss_s_own_example():
    table = np.array([[int(count) for count in row] for row in FLEISS_1971.split()])
    assert table.sum(0).tolist() == [26, 26, 30, 55, 43]  # as in his table
    kappa = FleissKappa(NAMES[:5]).combine(rows_of(table))
    assert round(kappa, 3) == 0.430
    assert kappa == pytest.approx(inter_rater.fleiss_kappa(table, method="fleiss"), abs=1e-12)


def test_krippendorff_s_own_examples():
    four = observed(KRIPPENDORFF_2011)
    assert four.shape == (12, 4)
    for scale, value in {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849}.items():
        assert round(KrippendorffAlpha(NAMES[:5], scale).combine(four), 3) == value
    binary = observed(["1211111121", "2221121111"])  # section A
    assert round(KrippendorffAlpha(NAMES[:2]).combine(binary), 3) == 0.095
    nominal = observed(["112243335441", "212223335444"])  # section B
    assert round(KrippendorffAlpha(NAMES[:5]).combine(nominal), 3) == 0.692


@pytest.mark.parametrize(
    ("table", "kappa"), [((20, 5, 10, 15), 0.4), ((45, 15, 25, 15), 0.1304), ((25, 35, 5, 35), 0.2593)]
)
def test_cohen_s_kappa_by_hand(table, kappa):
    rows = np.repeat([[0, 0], [0, 1], [1, 0], [1, 1]], table, axis=0)
    assert CohenKappa(("yes", "no")).combine(rows) == pytest.approx(kappa, abs=5e-5)


def test_weighted_kappa_by_hand():
    """Of four items one is two places off: Σ w o = 2 / 4, squared 4 / 4; the marginals are written out below."""
    rows = [[0, 0], [1, 1], [2, 2], [0, 2]]
    # first: a 2, b 1, c 1; second: a 1, b 1, c 2; e · 16: ab 2, ac 4, ba 1, bc 2, ca 1, cb 1
    linear, quadratic = (2 + 2 * 4 + 1 + 2 + 2 * 1 + 1) / 16, (2 + 4 * 4 + 1 + 2 + 4 * 1 + 1) / 16
    assert CohenKappa(NAMES[:3], "linear").combine(rows) == pytest.approx(1 - (2 / 4) / linear, abs=1e-12)
    assert CohenKappa(NAMES[:3], "quadratic").combine(rows) == pytest.approx(1 - (4 / 4) / quadratic, abs=1e-12)


def test_tie_discounted_accuracy_is_lima_s():
    """Zhou et al. 2023, 4.2: one point for the same, half for a tie on one side but not on both, none otherwise."""
    metric = TieDiscounted(("A", "tie", "B"))
    said = {
        ("A", "A"): 1,
        ("tie", "tie"): 1,
        ("A", "tie"): 0.5,
        ("tie", "B"): 0.5,
        ("A", "B"): 0,
        ("B", "cannot say"): 0,
    }
    for (people, judge), points in said.items():
        assert metric.combine([metric.row(Output(judge), Example("", people))]) == points
    rows = [metric.row(Output(judge), Example("", people)) for people, judge in said]
    assert metric.combine(rows) == 3 / 6


@pytest.mark.parametrize("seed", range(4))
def test_others_find_the_same(seed):
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 6)), 40
    truth = rng.integers(k, size=n)
    rows = np.where(rng.random((n, 4)) < 0.6, truth[:, None], rng.integers(k, size=(n, 4)))
    table = np.zeros((k, k))
    np.add.at(table, (rows[:, 0], rows[:, 1]), 1)
    for ours, theirs in {"none": None, "linear": "linear", "quadratic": "quadratic"}.items():
        expected = inter_rater.cohens_kappa(table, wt=theirs).kappa
        assert CohenKappa(NAMES[:k], ours).combine(rows[:, :2]) == pytest.approx(expected, abs=1e-9)
    counts = np.stack([(rows == label).sum(1) for label in range(k)], 1)
    assert FleissKappa(NAMES[:k]).combine(rows) == pytest.approx(inter_rater.fleiss_kappa(counts), abs=1e-9)
    holes = np.where(rng.random(rows.shape) < 0.3, NONE, rows)
    theirs = np.where(holes == NONE, np.nan, holes).T
    for scale in ("nominal", "ordinal", "interval"):
        expected = krippendorff.alpha(theirs, value_domain=list(range(k)), level_of_measurement=scale)
        assert KrippendorffAlpha(NAMES[:k], scale).combine(holes) == pytest.approx(expected, abs=1e-9)


def test_what_one_rater_alone_said_counts_for_nothing():
    rows = [[0, 0, 1], [1, 1, 1], [0, 2, 0]]
    more = [*rows, [2, NONE, NONE], [NONE, NONE, NONE]]
    alpha = KrippendorffAlpha(NAMES[:3], "ordinal")
    assert alpha.combine(more) == pytest.approx(alpha.combine(rows), abs=1e-12)
    kappa = CohenKappa(NAMES[:3])
    assert kappa.combine([[0, 0], [0, 1], [1, 1], [NONE, 1]]) == kappa.combine([[0, 0], [0, 1], [1, 1]])


def test_the_order_of_raters_and_the_names_of_labels_do_not_matter():
    rng = np.random.default_rng(7)
    rows = rng.integers(3, size=(30, 3))
    for metric in (FleissKappa(NAMES[:3]), KrippendorffAlpha(NAMES[:3]), KrippendorffAlpha(NAMES[:3], "interval")):
        assert metric.combine(rows[:, [2, 0, 1]]) == pytest.approx(metric.combine(rows), abs=1e-12)
    renamed = np.array([2, 0, 1])[rows]
    for metric in (FleissKappa(NAMES[:3]), KrippendorffAlpha(NAMES[:3])):
        assert metric.combine(renamed) == pytest.approx(metric.combine(rows), abs=1e-12)
    mirrored = 2 - rows
    for scale in ("ordinal", "interval"):
        alpha = KrippendorffAlpha(NAMES[:3], scale)
        assert alpha.combine(mirrored) == pytest.approx(alpha.combine(rows), abs=1e-12)


@pytest.mark.parametrize(
    "metric",
    [
        TieDiscounted(("A", "tie", "B")),
        CohenKappa(NAMES[:3], "linear"),
        FleissKappa(NAMES[:3]),
        *(KrippendorffAlpha(NAMES[:3], scale) for scale in ("nominal", "ordinal", "interval")),
    ],
)
def test_resamples_at_once_are_those_one_by_one(metric):
    rng = np.random.default_rng(3)
    rows = rng.integers(3, size=(12, 2)).astype(float)
    counts = np.stack([np.bincount(rng.integers(12, size=12), minlength=12) for _ in range(20)])
    slow = [metric.combine(np.repeat(rows, taken, axis=0)) for taken in counts]
    np.testing.assert_allclose(metric.resampled(rows, counts.astype(float)), slow, atol=1e-12)
    found = score(metric, rows, draws=300, seed=1)
    assert found.low < found.value < found.high
    assert found == score(metric, rows, draws=300, seed=1)


def test_perfect_agreement_is_one_and_its_interval_leaves_room():
    rows = np.repeat([[0, 0], [1, 1]], 10, axis=0)
    for metric in (CohenKappa(NAMES[:2]), FleissKappa(NAMES[:2]), KrippendorffAlpha(NAMES[:2])):
        found = score(metric, rows, draws=200)
        assert (found.value, found.high) == (1.0, 1.0)
        assert found.low < 0.9


def test_what_has_no_value_is_said():
    same = [[0, 0], [0, 0]]
    for metric in (CohenKappa(NAMES[:2]), FleissKappa(NAMES[:2]), KrippendorffAlpha(NAMES[:2])):
        with pytest.raises(DataError, match="no value"):
            metric.combine(same)
    with pytest.raises(DataError, match="krippendorff_alpha takes items"):
        FleissKappa(NAMES[:2]).combine([[0, NONE], [1, 1]])
    with pytest.raises(DataError, match="index of one of 2 labels"):
        KrippendorffAlpha(NAMES[:2]).combine([[0, 2], [1, 1]])
