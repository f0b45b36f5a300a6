"""The parts of a report that are drawn: scores with their intervals, the course of training, labels one by one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from acclimate.report import charts
from acclimate.report.changes import confused, confusion
from acclimate.report.figures import at, capital, clean, finite, fixed, number, pair, probability, spoken
from acclimate.report.verdict import BETTER, WORSE, Comparison, Estimate

LABELS = 10  # more labels than this: the commonest mistakes instead of a matrix
ROWS = 40  # of the table of labels


def _span(estimate: Estimate | None, decimals: int) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{fixed(estimate.low, decimals)} to {fixed(estimate.high, decimals)}"


def score_row(each: Comparison) -> dict[str, Any]:
    """One metric before, after and their difference, as a line of the table and a picture of its interval."""
    cells = []
    for name, estimate in (("Before", each.base), ("After", each.result), ("Difference", each.difference)):
        text = fixed(estimate.value, each.decimals, sign=name == "Difference") if estimate else "–"
        cells.append((name, text, _span(estimate, each.decimals)))
    lower = "" if each.higher_is_better else "lower is better"
    return {
        "name": capital(spoken(each.name)),
        "lower": lower,
        "reading": each.reading,
        "cells": cells,
        "p": probability(each.p),
        "n": number(each.n),
    }


def score_charts(found: Sequence[Comparison]) -> list[tuple[Markup, Markup]]:
    """Scores beside differences; metrics between 0 and 1 share an axis, each other one has its own."""
    known = [each for each in found if each.base and each.result and each.difference][:8]
    shared = [each for each in known if _is_share(each)]
    groups = ([shared] if shared else []) + [[each] for each in known if not _is_share(each)]
    return [(_before_after(group), _differences(group)) for group in groups]


def _is_share(each: Comparison) -> bool:
    ends = [
        end for side in (each.base, each.result) if side for end in (side.value, side.low, side.high) if end is not None
    ]
    return each.higher_is_better and all(0 <= end <= 1 for end in ends)


def _before_after(group: Sequence[Comparison]) -> Markup:
    lines = []
    for each in group:
        sides = [(kind, side) for kind, side in (("base", each.base), ("result", each.result)) if side]
        words = " → ".join(fixed(side.value, each.decimals) for _, side in sides)
        marks = tuple(charts.Mark(kind, side.value, side.low, side.high) for kind, side in sides)
        lines.append(charts.Line(_short(each.name), words, marks))
    axis = "score" if len(group) > 1 else spoken(group[0].name)
    label = "Score before and after with 95 % intervals. " + ". ".join(f"{line.name}: {line.words}" for line in lines)
    return charts.forest(lines, axis + ("" if group[0].higher_is_better else " (lower is better)"), label)


def _differences(group: Sequence[Comparison]) -> Markup:
    lines = []
    for each in group:
        if each.difference is None:
            continue
        kind = {BETTER: "gain", WORSE: "loss"}.get(each.reading, "even")
        words = f"{fixed(each.difference.value, each.decimals, sign=True)} ({_span(each.difference, each.decimals)})"
        mark = charts.Mark(kind, each.difference.value, each.difference.low, each.difference.high)
        lines.append(charts.Line(_short(each.name), words, (mark,)))
    label = "Difference, result minus base, with 95 % intervals. " + ". ".join(
        f"{line.name}: {line.words}" for line in lines
    )
    return charts.forest(lines, "difference, result − base", label, zero=True)


def _short(name: str) -> str:
    text = capital(spoken(name))
    return text if len(text) <= 24 else text[:23] + "…"


def _points(log: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[float, float]]:
    """(step, value under `keys`) of the rows that have both as finite numbers, by step."""
    pairs = ((finite(row.get("step")), finite(at(row, *keys))) for row in log)
    return sorted((step, value) for step, value in pairs if step is not None and value is not None)


def loss(report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The loss curve and what it shows in words; None where nothing was logged."""
    train, dev, rate = _points(log, "loss"), _points(log, "dev", "loss"), _points(log, "rate")
    if not train:
        return None
    first, last = pair(train[0][1], train[-1][1])
    label = f"Training loss: {first} at step {number(int(train[0][0]))}, {last} at step {number(int(train[-1][0]))}."
    if dev:
        lowest = number(min(y for _, y in dev))
        label += f" Dev loss: {number(dev[0][1])} at first, {number(dev[-1][1])} at last, lowest {lowest}."
    shown = [charts.Series("train", charts.thinned(train))]
    shown += [charts.Series("dev", charts.thinned(dev), dots=len(dev) <= 40)] if dev else []
    unit = "loss, nats per scored token" if report.get("objective") == "lm" else "loss"
    chart = charts.curve(
        shown, _ends(train + dev), ("step", unit), label, floor=0.0 if min(y for _, y in train + dev) >= 0 else None
    )
    run = -(-len(train) // 160)
    return {
        "chart": chart,
        "label": label,
        "dev": bool(dev),
        "thinned": number(run) if run > 1 else "",
        "rate": _rate(rate) if rate else None,
    }


def _rate(rate: Sequence[tuple[float, float]]) -> Markup:
    ends = f"{number(rate[0][1])} at first, {number(rate[-1][1])} at last"
    label = f"Learning rate: {ends}, {number(max(y for _, y in rate))} at most."
    line = charts.Series("rate", charts.thinned(rate))
    return charts.curve([line], _ends(rate), ("step", "learning rate"), label, floor=0.0)


def _ends(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return min(x for x, _ in points), max(x for x, _ in points)


def labels(report: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Recall of each label and who was taken for whom, before and after; None for a task without labels."""
    names = [str(label) for label in at(report, "task", "labels") or ()]
    if not names:
        return None
    recalls = [_recall(name, at(report, "per_label", name)) for name in names]
    rows = [row for row in recalls if row]
    if len(names) > LABELS:
        rows = sorted(rows, key=lambda row: (-row["n"], row["name"]))
    matrices = []
    if len(names) <= LABELS and predictions:
        tables = [(side, confusion(predictions, names, side)) for side in ("base", "result")]
        matrices = [
            (side, [clean(c, 24) for c in columns], list(zip(map(_short_label, names), table)))
            for side, (columns, table) in tables
        ]
    return {
        "rows": rows[:ROWS],
        "left_out": max(0, len(rows) - ROWS),
        "chart": _recall_chart(rows[:LABELS]),
        "matrices": matrices,
        "mistakes": confused(predictions) if len(names) > LABELS else [],
    }


def _short_label(name: str) -> str:
    return clean(name, 24)


def _recall(name: str, row: Any) -> dict[str, Any] | None:
    base, result, n = (finite(at(row, key)) for key in ("base", "result", "n"))
    if base is None or result is None or n is None:
        return None
    change = fixed(result - base, 2, sign=True)
    return {"name": clean(name, 60), "n": int(n), "base": base, "result": result, "change": change}


def _recall_chart(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not rows:
        return None
    lines = []
    for row in rows:
        words = f"{fixed(row['base'], 2)} → {fixed(row['result'], 2)}"
        marks = (charts.Mark("base", row["base"]), charts.Mark("result", row["result"]))
        lines.append(charts.Line(row["name"][:30], words, marks))
    label = "Share answered rightly, by label. " + ". ".join(f"{line.name}: {line.words}" for line in lines)
    return charts.forest(lines, "share of the label's examples answered rightly (recall)", label, within=(0.0, 1.0))
