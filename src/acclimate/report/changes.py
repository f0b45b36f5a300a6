"""Which held-out examples to show: what changed most either way, what stays wrong, the first as they come."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.metrics import METRICS
from acclimate.metrics.labels import plain
from acclimate.report.figures import at, clean, finite
from acclimate.report.verdict import comparisons

SHOWN = 8  # of each kind
OTHER = "other"  # an answer that is none of the labels


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
        ("label", _by_label) if at(report, "task", "labels") else (_ranking_metric(report, predictions), _by_score)
    )
    directions = {each.name: each.higher_is_better for each in comparisons(report)}
    better, worse, stuck = split(predictions, by, directions.get(by, True))
    totals = {"all": len(predictions), "better": len(better), "worse": len(worse), "stuck": len(stuck)}
    names = [each.name for each in comparisons(report)][:4] if by != "label" else []
    first = () if by == "label" else predictions[: SHOWN // 2]
    kinds = [tuple(_case(each, names) for each in kind[:SHOWN]) for kind in (better, worse, stuck, first)]
    return Changes(by, kinds[0], kinds[1], kinds[2], kinds[3], totals)


def confusion(
    predictions: Sequence[Mapping[str, Any]], labels: Sequence[str], side: str
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Columns (the labels, and OTHER if it was ever answered) and one row of counts for each wanted label."""
    counts = Counter((plain(str(each.get("target"))), plain(_text(each, side))) for each in predictions)
    columns, known = tuple(labels), [plain(label) for label in labels]
    table = [[counts[label, answer] for answer in known] for label in known]
    stray = [sum(count for (target, _), count in counts.items() if target == label) for label in known]
    others = [everything - sum(row) for everything, row in zip(stray, table)]
    if any(others):
        return (*columns, OTHER), tuple((*row, other) for row, other in zip(table, others))
    return columns, tuple(map(tuple, table))


Rows = Sequence[Mapping[str, Any]]


def _text(prediction: Mapping[str, Any], side: str) -> str:
    return str(at(prediction, side, "text") or "")


def _wanted(prediction: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, prediction.get("references") or [prediction.get("target", "")]))


def _shares(scores: Any) -> dict[str, float]:
    """Softmax of the labels' log-probabilities: what each label has of the probability of all of them."""
    known = {str(name): real for name, value in (scores or {}).items() if (real := finite(value)) is not None}
    if not known:
        return {}
    top = max(known.values())
    weights = {name: math.exp(value - top) for name, value in known.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _is_right(prediction: Mapping[str, Any], side: str) -> bool:
    return plain(_text(prediction, side)) in map(plain, _wanted(prediction))


def _by_label(rows: Rows, _by: str, _higher: bool) -> tuple[list[Mapping[str, Any]], ...]:
    def moved(row: Mapping[str, Any]) -> float:
        """How much of the labels' probability the wanted label gained."""
        shares = [_shares(at(row, side, "scores")).get(_wanted(row)[0], 0.0) for side in ("base", "result")]
        return shares[1] - shares[0]

    def trust(row: Mapping[str, Any]) -> float:
        return _shares(at(row, "result", "scores")).get(_text(row, "result"), 0.0)

    kinds: dict[tuple[bool, bool], list[Mapping[str, Any]]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for row in rows:
        kinds[_is_right(row, "base"), _is_right(row, "result")].append(row)
    better = sorted(kinds[False, True], key=moved, reverse=True)
    return better, sorted(kinds[True, False], key=moved), sorted(kinds[False, False], key=trust, reverse=True)


def _by_score(rows: Rows, by: str, higher: bool) -> tuple[list[Mapping[str, Any]], ...]:
    """By the change of one metric; "stuck" are the worst of those that changed by less than a tenth of the most."""
    sign = 1.0 if higher else -1.0
    scored = [(a * sign, b * sign, row) for row in rows if (a := _score(row, by, "base")) is not None
              and (b := _score(row, by, "result")) is not None]  # fmt: skip
    spread = max((abs(b - a) for a, b, _ in scored), default=0.0)
    gain = sorted(scored, key=lambda item: item[1] - item[0], reverse=True)
    better = [row for a, b, row in gain if b > a]
    worse = [row for a, b, row in reversed(gain) if b < a]
    still = [item for item in scored if abs(item[1] - item[0]) <= spread / 10]
    return better, worse, [row for _, _, row in sorted(still, key=lambda item: item[1])]


def _score(row: Mapping[str, Any], metric: str, side: str) -> float | None:
    """A row's own number under a metric; None for metrics that mean nothing for one row (BLEU, say)."""
    value = at(row, "metrics", metric, side)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return finite(value)
    if len(value) == 1:
        return finite(value[0])
    known = METRICS.get(metric)
    if known is None or known.kind != "likelihood" or len(value) != 2 or not value[1]:
        return None
    return finite(known().combine([value]))


def _ranking_metric(report: Mapping[str, Any], predictions: Rows) -> str:
    for each in comparisons(report):
        if any(_score(row, each.name, "result") is not None for row in predictions):
            return each.name
    return ""


def _case(row: Mapping[str, Any], metrics: Sequence[str]) -> Case:
    scores = []
    for name in metrics:
        base, result = _score(row, name, "base"), _score(row, name, "result")
        if base is not None and result is not None:
            scores.append((name, base, result))
    wanted = tuple(clean(text, 800) for text in _wanted(row)[:4])
    where = clean(row.get("where") or f"row {row.get('row', '?')}", 80)
    truncated = int(finite(row.get("truncated")) or 0)
    answers = _answer(row, "base"), _answer(row, "result")
    return Case(where, clean(row.get("prompt", ""), 900), wanted, *answers, tuple(scores), truncated)


def _answer(row: Mapping[str, Any], side: str) -> Answer:
    text = _text(row, side)
    return Answer(clean(text, 800), _shares(at(row, side, "scores")).get(text), _is_right(row, side))


def confused(predictions: Rows, most: int = 12) -> list[tuple[str, str, int, int]]:
    """(wanted, answered, times by the base, times by the result): the result's commonest mistakes."""
    counts = {
        side: Counter((_wanted(row)[0], _text(row, side)) for row in predictions if not _is_right(row, side))
        for side in ("base", "result")
    }
    common = sorted(counts["result"].items(), key=lambda item: (-item[1], item[0]))[:most]
    return [(clean(a, 60), clean(b, 60), counts["base"][a, b], count) for (a, b), count in common]
