"""Metrics of held-out comparisons, by hand."""

import math

import pytest

from acclimate.data.examples import Message, Output, Preference, Ranking
from acclimate.errors import RecipeError
from acclimate.evaluation.preferences import METRICS, choose
from acclimate.metrics.intervals import paired, score

ASK = (Message("user", "?"),)
LONG = Preference(ASK, "aaaa", "b", "f:1")  # the longer one is the better one, by 3 characters
SHORT = Preference(ASK, "a", "bbbbb", "f:2")
THREE = Ranking(ASK, ("aa", "b", "cccc"), (1, 2, 2), "f:3")


def output(*rewards, logprobs=()):
    told = {f"reward {i}": r for i, r in enumerate(rewards, start=1)}
    return Output(scores={**told, **{f"log p {i}": r for i, r in enumerate(logprobs, start=1)}})


TOLD = [(output(2.0, 0.5), LONG), (output(0.0, 1.0), SHORT), (output(1.0, 1.0, 3.0), THREE)]


def value(name, told=TOLD):
    metric = METRICS[name]()
    return metric.combine([metric.row(o, e) for o, e in told])


def test_accuracy_counts_pairs_and_halves_what_is_alike():
    assert value("pair_accuracy") == pytest.approx((1 + 0 + 0.5 + 0) / 4)  # two pairs of THREE, none of its tie


def test_margins_are_better_minus_worse():
    assert value("margin") == pytest.approx((1.5 - 1.0 + 0.0 - 2.0) / 4)


def test_accuracy_where_the_longer_one_is_wrong():
    assert value("pair_accuracy_longer_wrong") == 0.0  # SHORT, and THREE's first against its third
    assert value("pair_accuracy_longer_wrong", [*TOLD, (output(3.0, 1.0), SHORT)]) == pytest.approx(1 / 3)


def test_calibration_compares_sigma_of_the_margin_with_who_was_right():
    sure = [1 / (1 + math.exp(-m)) for m in (1.5, 1.0, 0.0, 2.0)]  # 0.82, 0.73, 0.5, 0.88: bins 3, 2, 0, 3
    gaps = (1 - sure[0]) + (0 - sure[3]), 0 - sure[1], 0.5 - sure[2]
    assert value("pair_ece") == pytest.approx(sum(map(abs, gaps)) / 4)


def test_length_and_reward_correlate_within_a_prompt():
    """LONG: lengths ±1.5, rewards ±0.75. SHORT: ∓2, ∓0.5."""
    products, lengths, rewards = 2 * (1.5 * 0.75 + 2 * 0.5), 2 * (1.5**2 + 2**2), 2 * (0.75**2 + 0.5**2)
    assert value("length_correlation", TOLD[:2]) == pytest.approx(products / math.sqrt(lengths * rewards))
    moved = [(output(102.0, 100.5), LONG), TOLD[1]]  # a constant at a prompt says nothing
    assert value("length_correlation", moved) == pytest.approx(value("length_correlation", TOLD[:2]))
    assert value("length_correlation", [(output(1.0, 1.0), LONG)]) == 0.0


def test_likelihood_is_that_of_the_whole_completion():
    told = [(output(0.0, 0.0, logprobs=(-9.0, -3.0)), LONG), (output(0.0, 0.0, logprobs=(-3.0, -9.0)), SHORT)]
    assert value("likelihood_accuracy", told) == 0.5


def test_every_metric_has_an_interval_and_a_paired_difference():
    base = [(output(0.0, 0.0, logprobs=(-1.0, -2.0)), LONG), (output(0.0, 0.0, logprobs=(-1.0, -2.0)), SHORT)] * 6
    after = [(output(2.0, 0.5, logprobs=(-1.0, -2.0)), LONG), (output(0.3, 1.0, logprobs=(-3.0, -2.0)), SHORT)] * 6
    for name, kind in METRICS.items():
        one, other = ([kind().row(o, e) for o, e in side] for side in (base, after))
        found, change = score(kind(), other, draws=50), paired(kind(), one, other, draws=99)
        assert found.low <= found.value <= found.high, name
        assert change.value == pytest.approx(found.value - score(kind(), one, draws=50).value), name


def test_metrics_are_those_that_have_a_value():
    names = lambda chosen: [metric.name for metric in chosen]  # noqa: E731
    assert names(choose((), [LONG, SHORT], writes=True)) == list(METRICS)
    assert "likelihood_accuracy" not in names(choose((), [LONG, SHORT], writes=False))
    assert "pair_accuracy_longer_wrong" not in names(choose((), [LONG], writes=True))
    assert names(choose(("margin",), [LONG], writes=True)) == ["margin"]
    with pytest.raises(RecipeError, match="pair_accuracy"):
        choose(("pair_accurcy",), [LONG], writes=True)
    with pytest.raises(RecipeError, match="has no value here"):
        choose(("likelihood_accuracy",), [LONG], writes=False)
