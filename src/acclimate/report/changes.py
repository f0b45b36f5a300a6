"""Which held-out examples to show: what changed most either way, what stays wrong, the first as they come."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.report.answers import (
    SIDES,
    Row,
    Rows,
    confidence,
    is_right,
    ranking_metric,
    rises,
    score,
    shares,
    text,
    wanted,
)
from acclimate.report.figures import at, clean, finite
from acclimate.report.verdict import comparisons

SHOWN = 8  # of each kind


@dataclass(frozen=True)
class Answer:
    """What was answered; `confidence` is its share of the probability of all labels, None where none were compared."""

    text: str
    confidence: float | None
    right: bool


@dataclass(frozen=True)
class Case:
    """One held-out example with both answers. `scores`: (metric, base, result), where a row has one number."""

    where: str
    prompt: str
    wanted: tuple[str, ...]
    base: Answer
    result: Answer
    scores: tuple[tuple[str, float, float], ...]
    truncated: int


@dataclass(frozen=True)
class Changes:
    """At most SHOWN cases of each kind, and how many there are in all. `by` names what "better" went by."""

    by: str
    better: tuple[Case, ...]
    worse: tuple[Case, ...]
    stuck: tuple[Case, ...]
    first: tuple[Case, ...]
    totals: Mapping[str, int]


def changes(report: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Changes:
    """Choose by right and wrong where there are labels, else by the first metric with one number a row."""
    by, split = (
        ("label", _by_label) if at(report, "task", "labels") else (ranking_metric(report, predictions), _by_score)
    )
    better, worse, stuck = split(predictions, by, rises(report, by))
    totals = {"all": len(predictions), "better": len(better), "worse": len(worse), "stuck": len(stuck)}
    names = [each.name for each in comparisons(report)][:4] if by != "label" else []
    first = () if by == "label" else predictions[: SHOWN // 2]
    kinds = [tuple(_case(each, names) for each in kind[:SHOWN]) for kind in (better, worse, stuck, first)]
    return Changes(by, kinds[0], kinds[1], kinds[2], kinds[3], totals)


def _by_label(rows: Rows, _by: str, _higher: bool) -> tuple[list[Row], ...]:
    def moved(row: Row) -> float:
        """How much of the labels' probability the wanted label gained."""
        base, result = (shares(row, side).get(wanted(row)[0], 0.0) for side in SIDES)
        return result - base

    def trust(row: Row) -> float:
        return confidence(row, "result") or 0.0

    kinds: dict[tuple[bool, bool], list[Row]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for row in rows:
        kinds[is_right(row, "base"), is_right(row, "result")].append(row)
    better = sorted(kinds[False, True], key=moved, reverse=True)
    return better, sorted(kinds[True, False], key=moved), sorted(kinds[False, False], key=trust, reverse=True)


def _by_score(rows: Rows, by: str, higher: bool) -> tuple[list[Row], ...]:
    """By the change of one metric; "stuck" are the worst of those that changed by less than a tenth of the most."""
    sign = 1.0 if higher else -1.0
    scored = [(a * sign, b * sign, row) for row in rows if (a := score(row, by, "base")) is not None
              and (b := score(row, by, "result")) is not None]  # fmt: skip
    spread = max((abs(b - a) for a, b, _ in scored), default=0.0)
    gain = sorted(scored, key=lambda item: item[1] - item[0], reverse=True)
    better = [row for a, b, row in gain if b > a]
    worse = [row for a, b, row in reversed(gain) if b < a]
    still = [item for item in scored if abs(item[1] - item[0]) <= spread / 10]
    return better, worse, [row for _, _, row in sorted(still, key=lambda item: item[1])]


def _case(row: Row, metrics: Sequence[str]) -> Case:
    scores = []
    for name in metrics:
        base, result = score(row, name, "base"), score(row, name, "result")
        if base is not None and result is not None:
            scores.append((name, base, result))
    right = tuple(clean(each, 800) for each in wanted(row)[:4])
    where = clean(row.get("where") or f"row {row.get('row', '?')}", 80)
    truncated = int(finite(row.get("truncated")) or 0)
    answers = _answer(row, "base"), _answer(row, "result")
    return Case(where, clean(row.get("prompt", ""), 900), right, *answers, tuple(scores), truncated)


def _answer(row: Row, side: str) -> Answer:
    return Answer(clean(text(row, side), 800), confidence(row, side), is_right(row, side))


def confused(predictions: Rows, most: int = 12) -> list[tuple[str, str, int, int]]:
    """(wanted, answered, times by the base, times by the result): the result's commonest mistakes."""
    counts = {
        side: Counter((wanted(row)[0], text(row, side)) for row in predictions if not is_right(row, side))
        for side in SIDES
    }
    common = sorted(counts["result"].items(), key=lambda item: (-item[1], item[0]))[:most]
    return [(clean(a, 60), clean(b, 60), counts["base"][a, b], count) for (a, b), count in common]
