"""What a row of predictions.jsonl says: what was wanted, what was answered, whether it is right, and how surely."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from acclimate.metrics import METRICS
from acclimate.metrics.labels import plain
from acclimate.report.figures import at, finite
from acclimate.report.verdict import comparisons

SIDES = ("base", "result")
DISTANCE = "absolute_error"  # the score of a number answered, where no metric has one

Row = Mapping[str, Any]
Rows = Sequence[Row]


def text(row: Row, side: str) -> str:
    """What was answered."""
    return str(at(row, side, "text") or "")


def wanted(row: Row) -> tuple[str, ...]:
    """Every acceptable answer."""
    return tuple(map(str, row.get("references") or [row.get("target", "")]))


def is_right(row: Row, side: str) -> bool:
    """Whether the answer is one of those wanted, but for white space."""
    return plain(text(row, side)) in map(plain, wanted(row))


def shares(row: Row, side: str) -> dict[str, float]:
    """Softmax of the labels' log-probabilities: what each label has of the probability of all of them.

    >>> shares({"base": {"scores": {"no": -1.0, "yes": -1.0}}}, "base")
    {'no': 0.5, 'yes': 0.5}
    """
    scores = at(row, side, "scores") or {}
    known = {str(name): real for name, value in scores.items() if (real := finite(value)) is not None}
    if not known:
        return {}
    top = max(known.values())
    weights = {name: math.exp(value - top) for name, value in known.items()}
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def confidence(row: Row, side: str) -> float | None:
    """The share of the label that was answered; None where no labels were compared."""
    return shares(row, side).get(text(row, side))


def lead(row: Row, side: str) -> float | None:
    """By how much the likeliest label's share exceeds the next one's; None where fewer than two were compared."""
    first = sorted(shares(row, side).values(), reverse=True)[:2]
    return first[0] - first[1] if len(first) == 2 else None


def score(row: Row, metric: str, side: str) -> float | None:
    """A row's own number under a metric; None for metrics that mean nothing for one row (BLEU, say)."""
    if metric == DISTANCE:
        return _distance(row, side)
    value = at(row, "metrics", metric, side)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return finite(value)
    if len(value) == 1:
        return finite(value[0])
    known = METRICS.get(metric)
    if known is None or known.kind != "likelihood" or len(value) != 2 or not value[1]:
        return None
    return finite(known().combine([value]))


def ranking_metric(report: Mapping[str, Any], rows: Rows) -> str:
    """The first metric under which rows have a number of their own; DISTANCE for numbers; "" where there is none."""
    for each in comparisons(report):
        if any(score(row, each.name, "result") is not None for row in rows):
            return each.name
    return DISTANCE if any(_distance(row, "result") is not None for row in rows) else ""


def rises(report: Mapping[str, Any], metric: str) -> bool:
    """Whether more of a metric is better."""
    return {DISTANCE: False, **{each.name: each.higher_is_better for each in comparisons(report)}}.get(metric, True)


def _distance(row: Row, side: str) -> float | None:
    try:
        return finite(abs(float(text(row, side)) - float(wanted(row)[0])))
    except ValueError:
        return None
