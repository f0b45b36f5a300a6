"""The sentences of a report say what its numbers allow and nothing more."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.report.verdict import comparisons, verdict
from tests import reports

FIRST = (0.60, 0.55, 0.65), (0.88, 0.84, 0.91), (0.28, 0.22, 0.34)


def only(name: str = "balanced_accuracy", parts: Any = FIRST, p: float = 0.0001, n: int = 312) -> dict[str, Any]:
    """A report of nothing but one metric under LoRA."""
    return {"method": "lora"} | reports.scored(name, *parts, p=p, n=n)


def several(**gaps: tuple[float, float]) -> dict[str, Any]:
    """Metrics that start at 0.5, named with the interval of their difference."""
    made: dict[str, Any] = {"method": "lora", "base": {"scores": {}}, "result": {"scores": {}}, "difference": {}}
    for name, (low, high) in gaps.items():
        middle = (low + high) / 2
        made["base"]["scores"][name] = reports.estimate(0.5, 0.45, 0.55, n=100)
        made["result"]["scores"][name] = reports.estimate(0.5 + middle, 0.45 + middle, 0.55 + middle, n=100)
        made["difference"][name] = reports.estimate(middle, low, high, p=0.01)
    return made


def test_the_sentence_of_the_contract() -> None:
    told = verdict(reports.common() | only())
    assert told.headline == "Better: balanced accuracy 0.60 → 0.88"
    assert " ".join(told.sentences) == (
        "LoRA raised balanced accuracy on 312 held-out examples from 0.60 to 0.88 "
        "(+0.28, 95 % interval 0.22 to 0.34, p = 0.0001). "
        "0.34 % of the weights trained in 95 s. "
        "General text got slightly harder: perplexity 21.3 → 21.9."
    )


def test_worse_is_called_worse() -> None:
    told = verdict(only(parts=((0.80, 0.75, 0.85), (0.60, 0.54, 0.66), (-0.20, -0.26, -0.13))))
    assert (told.reading, told.headline) == ("worse", "Worse: balanced accuracy 0.80 → 0.60")
    assert told.sentences == (
        "LoRA lowered balanced accuracy on 312 held-out examples from 0.80 to 0.60 "
        "(−0.20, 95 % interval −0.26 to −0.13, p = 0.0001); that is worse.",
    )


def test_an_interval_around_zero_is_no_clear_difference() -> None:
    told = verdict(only(parts=((0.60, 0.55, 0.65), (0.63, 0.58, 0.68), (0.03, -0.02, 0.08)), p=0.22))
    assert told.headline == "No clear difference: balanced accuracy 0.60 → 0.63"
    assert told.sentences == (
        "LoRA made no clear difference to balanced accuracy on 312 held-out examples: "
        "0.60 before, 0.63 after (+0.03, 95 % interval −0.02 to 0.08, p = 0.22).",
    )


@pytest.mark.parametrize("gap", [(0.05, 0.0, 0.1), (0.0, 0.0, 0.0), (-0.05, -0.1, 0.0)])
def test_an_interval_that_touches_zero_is_no_clear_difference(gap: tuple[float, float, float]) -> None:
    assert verdict(only(parts=(*FIRST[:2], gap))).reading == "no clear difference"


def test_lower_is_better_for_perplexity() -> None:
    told = verdict(only("perplexity", ((20.0, 19.0, 21.0), (15.0, 14.0, 16.0), (-5.0, -6.0, -4.0))))
    assert told.headline == "Better: perplexity 20.0 → 15.0"
    assert told.sentences == (
        "LoRA lowered perplexity on 312 held-out examples from 20.0 to 15.0 "
        "(−5.0, 95 % interval −6.0 to −4.0, p = 0.0001); lower is better.",
    )
    told = verdict(only("perplexity", ((15.0, 14.0, 16.0), (20.0, 19.0, 21.0), (5.0, 4.0, 6.0))))
    assert told.headline == "Worse: perplexity 15.0 → 20.0"
    assert told.sentences[0].endswith("; lower is better, so that is worse.")


def test_the_report_says_which_way_is_better() -> None:
    report = only("errors") | {"task": {"directions": {"errors": False}}}
    assert verdict(report).reading == "worse"
    assert verdict(only("errors")).reading == "better"
    assert verdict(only("bits_per_byte")).reading == "worse"


ENDS = st.floats(-1e6, 1e6, allow_nan=False) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-12, -1e-7])


@settings(max_examples=300, deadline=None)
@given(ENDS, ENDS, ENDS, st.booleans(), st.integers(1, 1000), st.floats(0, 1))
def test_the_words_agree_with_the_interval(a: float, b: float, base: float, higher: bool, n: int, p: float) -> None:
    low, high = min(a, b), max(a, b)
    middle = low + (high - low) / 2
    parts = (base, base - 1, base + 1), (base + middle, base + middle - 1, base + middle + 1), (middle, low, high)
    told = verdict(only("score", parts, p, n) | {"task": {"directions": {"score": higher}}})
    if n < 6 or (low <= 0 and high >= 0):
        word, verb = "No clear difference", " made no clear difference to "
    else:
        word, verb = ("Better" if (low > 0) == higher else "Worse"), (" raised " if low > 0 else " lowered ")
    assert told.headline.startswith(word + ": ")
    assert verb in told.sentences[0]
    assert ("that is worse" in told.sentences[0]) == (word == "Worse")
    assert ("too few to rely on" in " ".join(told.sentences)) == (n < 30)
    assert ("borderline" in " ".join(told.sentences)) == (word != "No clear difference" and p > 0.05)


@settings(max_examples=300, deadline=None)
@given(ENDS, ENDS)
def test_rounding_never_moves_an_end_onto_zero(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    shown = verdict(only(parts=((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), (low, low, high)))).sentences[0]
    interval = shown.split("interval ")[1].split(", p")[0].replace("−", "-").replace(",", "")
    ends = [float(end) for end in interval.split(" to ")]
    assert [math.copysign(1, end) if end else 0 for end in ends] == [
        math.copysign(1, end) if end else 0 for end in (low, high)
    ]


def test_several_metrics_that_disagree_are_called_mixed() -> None:
    told = verdict(several(rouge1=(0.1, 0.2), rouge2=(-0.2, -0.1), rougeL=(-0.1, 0.1)))
    assert told.reading == "mixed"
    assert told.headline == "Mixed: better on ROUGE-1; worse on ROUGE-2; no clear difference on ROUGE-L"
    assert told.sentences[1] == (
        "The metrics disagree: worse on ROUGE-2, 0.50 → 0.35; no clear difference on ROUGE-L, 0.50 → 0.50."
    )


def test_several_metrics_that_agree_are_said_to() -> None:
    told = verdict(several(rouge1=(0.1, 0.2), rouge2=(0.2, 0.3)))
    assert told.headline == "Better: ROUGE-1 0.50 → 0.65"
    assert told.sentences[1] == "The other metric agrees: better on ROUGE-2, 0.50 → 0.75."


def test_better_on_some_is_not_better_on_all() -> None:
    told = verdict(several(rouge1=(-0.1, 0.2), rouge2=(0.1, 0.3)))
    assert told.headline == "Better on ROUGE-2; no clear difference on ROUGE-1"
    assert told.sentences[0].startswith("LoRA made no clear difference to ROUGE-1")
    assert told.sentences[1].startswith("The metrics do not all say the same: better on ROUGE-2")


def test_the_tasks_own_order_decides_which_comes_first() -> None:
    report = several(bleu=(0.1, 0.2), chrf=(0.1, 0.2), rouge1=(0.1, 0.2)) | {"task": {"metrics": ["rouge1", "absent"]}}
    assert [each.name for each in comparisons(report)] == ["rouge1", "bleu", "chrf"]


def test_five_pairs_cannot_be_clear_and_six_can() -> None:
    # Of the 2**n ways to flip signs, two are as extreme as all alike: 2 / 2**5 = 0.0625, 2 / 2**6 = 0.031.
    assert verdict(only(n=5)).reading == "no clear difference"
    assert verdict(only(n=6)).reading == "better"
    assert "Only 1 held-out example: too few to rely on." in verdict(only(n=1)).sentences


def test_without_a_paired_difference_nothing_is_claimed() -> None:
    report = only()
    del report["difference"]
    told = verdict(report)
    assert (told.reading, told.headline) == ("not compared", "Not compared: balanced accuracy 0.600 → 0.880")
    assert told.sentences == (
        "Balanced accuracy on 312 held-out examples: 0.600 before, 0.880 after; no paired comparison was made.",
    )


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, "0.28", True, {}])
def test_a_difference_that_is_no_number_claims_nothing(broken: Any) -> None:
    report = only()
    report["difference"]["balanced_accuracy"]["value"] = broken
    assert verdict(report).reading == "not compared"


def test_no_scores_at_all() -> None:
    told = verdict({})
    assert (told.reading, told.headline) == ("not compared", "Nothing was compared")
    assert len(told.sentences) == 1


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (21.3, 21.9, "General text got slightly harder: perplexity 21.3 → 21.9."),
        (20.0, 20.08, "General text is as hard as before: perplexity 20.0 → 20.1."),
        (20.0, 20.0, "General text is as hard as before: perplexity 20.0 → 20.0."),
        (20.0, 22.0, "General text got harder: perplexity 20.0 → 22.0."),
        (20.0, 40.0, "General text got much harder: perplexity 20.0 → 40.0."),
        (20.0, 19.5, "General text got slightly easier: perplexity 20.0 → 19.5."),
        (20.0, math.nan, "General text can no longer be scored: its perplexity is not a finite number."),
        (20.0, math.inf, "General text can no longer be scored: its perplexity is not a finite number."),
    ],
)
def test_forgetting_in_words(before: float, after: float, sentence: str) -> None:
    report = only() | {"forgetting": {"perplexity_base": before, "perplexity_result": after}}
    assert verdict(report).sentences[-1] == sentence


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ((0.2, 0.1, 0.29), "General instructions are followed less well: 0.43 → 0.20."),
        ((0.8, 0.6, 0.9), "General instructions are followed better: 0.43 → 0.80."),
        ((0.3, 0.2, 0.4), None),  # the intervals meet
    ],
)
def test_instructions_are_named_only_where_intervals_part(result: Any, sentence: str | None) -> None:
    sides = {"instructions_base": reports.estimate(0.43, 0.30, 0.56), "instructions_result": reports.estimate(*result)}
    told = verdict(only() | {"forgetting": sides}).sentences
    assert (told[-1] if len(told) > 1 else None) == sentence


@pytest.mark.parametrize(
    ("trained", "total", "seconds", "sentence"),
    [
        (460800, 134975808, 95.0, "0.34 % of the weights trained in 95 s."),
        (100, 100, 7300.0, "All weights were trained in 2 h 1 min."),
        (0, 100, None, "No weights were trained."),
        (None, None, 5.0, "Training took 5.0 s."),
    ],
)
def test_the_cost_in_words(trained: int | None, total: int | None, seconds: float | None, sentence: str) -> None:
    cost = {"trainable_parameters": trained, "total_parameters": total, "training": {"seconds": seconds}}
    assert verdict(only() | cost).sentences[-1] == sentence
