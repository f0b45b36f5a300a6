"""The examples that a report shows are those it says it shows."""

import math
from typing import Any

import pytest

from acclimate.report.changes import changes, confused
from tests import reports

LABELS = {"task": {"labels": ["no", "yes"], "metrics": ["accuracy"]}}


def row(index: int, target: str, base: float, result: float) -> dict[str, Any]:
    """A row whose `yes` has these probabilities before and after; what is over one half is answered."""
    sides = {}
    for side, share in (("base", base), ("result", result)):
        scores = {"no": math.log(1 - share) - 3, "yes": math.log(share) - 3}  # the other 95 % lie on other text
        sides[side] = {"text": "yes" if share > 0.5 else "no", "scores": scores, "finish": ""}
    return {"row": index, "where": f"f:{index}", "prompt": f"p{index}", "target": target, "references": [], **sides}


def places(cases: Any) -> list[str]:
    return [case.where for case in cases]


def test_kinds_and_their_order() -> None:
    rows = [
        row(1, "yes", 0.4, 0.6),  # better by 0.2
        row(2, "yes", 0.1, 0.9),  # better by 0.8
        row(3, "no", 0.2, 0.7),  # worse by 0.5
        row(4, "no", 0.4, 0.95),  # worse by 0.55
        row(5, "yes", 0.3, 0.2),  # stuck, sure by 0.8
        row(6, "yes", 0.3, 0.1),  # stuck, sure by 0.9
        row(7, "no", 0.1, 0.1),  # right both times
    ]
    found = changes(LABELS, rows)
    assert places(found.better) == ["f:2", "f:1"]
    assert places(found.worse) == ["f:4", "f:3"]
    assert places(found.stuck) == ["f:6", "f:5"]
    assert found.first == ()
    assert found.totals == {"all": 7, "better": 2, "worse": 2, "stuck": 2}
    assert found.by == "label"


def test_confidence_is_the_share_among_the_labels() -> None:
    case = changes(LABELS, [row(1, "yes", 0.1, 0.9)]).better[0]
    assert (case.base.text, case.base.right, case.result.text, case.result.right) == ("no", False, "yes", True)
    assert case.base.confidence == pytest.approx(0.9, abs=1e-12)
    assert case.result.confidence == pytest.approx(0.9, abs=1e-12)
    assert case.wanted == ("yes",)


def test_scores_of_the_schema_by_hand() -> None:
    example = row(0, "positive", 0.5, 0.5)
    example["base"] = {"text": "negative", "scores": {"negative": -0.1, "positive": -2.3}, "finish": ""}
    example["result"] = {"text": "positive", "scores": {}, "finish": ""}
    case = changes(LABELS, [example]).better[0]
    assert case.base.confidence == pytest.approx(0.9048374180 / (0.9048374180 + 0.1002588437), abs=1e-9)
    assert case.result.confidence is None


def test_no_more_than_eight_and_ties_by_position() -> None:
    found = changes(LABELS, [row(index, "yes", 0.2, 0.8) for index in range(30)])
    assert places(found.better) == [f"f:{index}" for index in range(8)]
    assert found.totals["better"] == 30


def test_space_at_the_ends_is_not_a_mistake() -> None:
    example = row(1, "yes", 0.2, 0.8)
    example["result"]["text"] = " yes\n"
    assert places(changes(LABELS, [example]).better) == ["f:1"]


def test_any_reference_will_do() -> None:
    example = row(1, "yes", 0.2, 0.8) | {"references": ["sure", "no"]}
    assert changes(LABELS, [example]).totals == {"all": 1, "better": 0, "worse": 1, "stuck": 0}


def written(index: int, **metrics: tuple[list[float], list[float]]) -> dict[str, Any]:
    sides = {side: {"text": f"{side} {index}", "scores": {}, "finish": "stop"} for side in ("base", "result")}
    rows = {name: {"base": base, "result": result} for name, (base, result) in metrics.items()}
    return {"row": index, "where": f"f:{index}", "prompt": "p", "target": "t", "references": ["t", "u"], **sides,
            "metrics": rows}  # fmt: skip


def scores(*names: str) -> dict[str, Any]:
    return {side: {"scores": {name: reports.estimate(0.5, 0.4, 0.6) for name in names}} for side in ("base", "result")}


def test_free_text_goes_by_the_first_metric_with_one_number_a_row() -> None:
    rows = [
        written(1, bleu=([9.0, 9.0], [1.0, 1.0]), rouge1=([0.1], [0.2])),
        written(2, bleu=([9.0, 9.0], [1.0, 1.0]), rouge1=([0.1], [0.9])),
        written(3, bleu=([9.0, 9.0], [1.0, 1.0]), rouge1=([0.8], [0.3])),
        written(4, bleu=([9.0, 9.0], [1.0, 1.0]), rouge1=([0.4], [0.4])),
        written(5, bleu=([9.0, 9.0], [1.0, 1.0]), rouge1=([0.2], [0.2])),
    ]
    found = changes(scores("bleu", "rouge1"), rows)
    assert found.by == "rouge1"
    assert (places(found.better), places(found.worse)) == (["f:2", "f:1"], ["f:3"])
    assert places(found.stuck) == ["f:5", "f:4"]  # unchanged, the lowest first
    assert places(found.first) == ["f:1", "f:2", "f:3", "f:4"]
    assert found.better[0].scores == (("rouge1", 0.1, 0.9),)
    assert found.better[0].wanted == ("t", "u")


def test_where_lower_is_better_a_fall_is_better() -> None:
    report = scores("errors") | {"task": {"directions": {"errors": False}}}
    found = changes(report, [written(1, errors=([5.0], [2.0])), written(2, errors=([1.0], [4.0]))])
    assert (places(found.better), places(found.worse)) == (["f:1"], ["f:2"])


def test_a_likelihood_is_worked_out_for_the_row() -> None:
    # perplexity exp(-logprob / tokens): exp(20 / 10) = 7.389 becomes exp(5 / 10) = 1.649; the other row rises.
    rows = [written(1, perplexity=([-20.0, 10.0], [-5.0, 10.0])), written(2, perplexity=([-5.0, 5.0], [-9.0, 5.0]))]
    found = changes(scores("perplexity"), [*rows, written(3, perplexity=([0.0, 0.0], [0.0, 0.0]))])
    assert (found.by, places(found.better), places(found.worse)) == ("perplexity", ["f:1"], ["f:2"])
    name, base, result = found.better[0].scores[0]
    assert (name, base, result) == ("perplexity", pytest.approx(7.38905609893), pytest.approx(1.6487212707))


def test_without_a_number_a_row_only_the_first_are_shown() -> None:
    found = changes(scores("bleu"), [written(1, bleu=([1.0, 2.0], [3.0, 4.0]))])
    assert (found.by, found.better, found.worse, found.stuck, places(found.first)) == ("", (), (), (), ["f:1"])


def test_the_commonest_mistakes() -> None:
    rows = [row(1, "yes", 0.2, 0.2), row(2, "yes", 0.8, 0.2), row(3, "no", 0.2, 0.8), row(4, "no", 0.2, 0.2)]
    assert confused(rows) == [("yes", "no", 1, 2), ("no", "yes", 0, 1)]
