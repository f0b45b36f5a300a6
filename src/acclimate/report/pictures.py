"""The parts of a report that are drawn: scores with intervals, the course of training, labels, calibration, groups."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from acclimate.report import boxes, calibration, charts
from acclimate.report.answers import SIDES
from acclimate.report.changes import confused
from acclimate.report.figures import at, capital, clean, finite, fixed, number, pair, probability, spoken
from acclimate.report.verdict import BETTER, WORSE, Comparison, Estimate

LABELS = 10  # more labels than this: the commonest mistakes besides the matrices, which stand one below the other
ROWS = 40  # of the table of labels
GROUPS = 30  # tasks that have a box


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


def opening(found: Sequence[Comparison]) -> Markup | None:
    """The first metric before and after, on its whole scale where it has one: the picture beside the verdict."""
    if not found or not (found[0].base and found[0].result):
        return None
    return _before_after(found[:1], within=(0.0, 1.0) if _is_share(found[0]) else None)


def _is_share(each: Comparison) -> bool:
    ends = [
        end for side in (each.base, each.result) if side for end in (side.value, side.low, side.high) if end is not None
    ]
    return each.higher_is_better and all(0 <= end <= 1 for end in ends)


def _before_after(group: Sequence[Comparison], within: tuple[float, float] | None = None) -> Markup:
    lines = []
    for each in group:
        sides = [(kind, side) for kind, side in (("base", each.base), ("result", each.result)) if side]
        words = " → ".join(fixed(side.value, each.decimals) for _, side in sides)
        marks = tuple(charts.Mark(kind, side.value, side.low, side.high) for kind, side in sides)
        lines.append(charts.Line(_short(each.name), words, marks))
    axis = "score" if len(group) > 1 else spoken(group[0].name)
    label = "Score before and after with 95 % intervals. " + ". ".join(f"{line.name}: {line.words}" for line in lines)
    return charts.forest(
        lines, axis + ("" if group[0].higher_is_better else " (lower is better)"), label, within=within
    )


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


COURSES = {
    "reward": "mean reward of the completions",
    "judge": "mean of the judge, which teaches nothing",
    "rollout_kl": "KL to the reference, nats a completion",
    "length": "tokens a completion",
    "entropy": "entropy, nats a token",
    "clip_fraction": "share of tokens that clipping held back",
    "value_error": "squared error of the value head",
}


def courses(report: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """What was seen of each iteration's completions: a name and a curve over the steps for every quantity that varied."""
    rows, shown = at(report, "rollouts", "iterations") or (), []
    for name, title in COURSES.items():
        points = _points(rows, name)
        if len(points) > 1 and len({value for _, value in points}) > 1:
            first, last = pair(points[0][1], points[-1][1])
            line = charts.Series("train", charts.thinned(points))
            told = f"{capital(title)}: {first} at first, {last} at last."
            shown.append((title, charts.curve([line], _ends(points), ("step", spoken(name)), told)))
    return shown


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
    return {
        "rows": rows[:ROWS],
        "left_out": max(0, len(rows) - ROWS),
        "chart": _recall_chart(rows[:LABELS]),
        "matrices": _matrices(report.get("confusion") or {}),
        "side_by_side": len(names) <= LABELS // 2,
        "folded": finite(at(report, "confusion", "folded")) or 0,
        "mistakes": confused(predictions) if len(names) > LABELS else [],
    }


def _matrices(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Before and after: names of columns, and rows of (name, cells), a cell being (count, its share of the row)."""
    if not found:
        return []
    columns, names = ([clean(name, 24) for name in found[key]] for key in ("answered", "wanted"))
    tables = [
        [
            (name, [(n, n / sum(counts) if any(counts) else 0.0) for n in counts])
            for name, counts in zip(names, found[side])
        ]
        for side in SIDES
    ]
    return [{"title": title, "columns": columns, "rows": rows} for title, rows in zip(("Before", "After"), tables)]


def _recall(name: str, row: Any) -> dict[str, Any] | None:
    base, result, n = (finite(at(row, key)) for key in ("base", "result", "n"))
    if base is None or result is None or n is None:
        return None
    change, ends = fixed(result - base, 2, sign=True), {side: _ends_of(row, side) for side in SIDES}
    return {"name": clean(name, 60), "n": int(n), "base": base, "result": result, "change": change, "ends": ends}


def _ends_of(row: Any, side: str) -> tuple[float, float] | None:
    low, high = (finite(at(row, f"{side}_interval", end)) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _recall_chart(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not rows:
        return None
    lines = []
    for row in rows:
        words = f"{fixed(row['base'], 2)} → {fixed(row['result'], 2)}"
        marks = tuple(charts.Mark(side, row[side], *(row["ends"][side] or ())) for side in SIDES)
        lines.append(charts.Line(row["name"][:30], words, marks))
    label = "Share answered rightly, by label, with 95 % intervals where they are known. " + ". ".join(
        f"{line.name}: {line.words}" for line in lines
    )
    return charts.forest(lines, "share of the label's examples answered rightly (recall)", label, within=(0.0, 1.0))


def reliability(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Confidence against accuracy before and after, and the calibration error with its interval."""
    shown = []
    for title, side in zip(("Before", "After"), SIDES):
        found = at(report, "calibration", side)
        if not found:
            return []
        ece = found["ece"]
        told = f"calibration error {fixed(ece['value'], 3)} ({fixed(ece['low'], 3)} to {fixed(ece['high'], 3)})"
        told += f" over {ece['bins']} bins"
        chart = calibration.diagram(found, side)
        shown.append({"title": title, "side": side, "told": told, "chart": chart, "leaning": _leaning(found)})
    return shown


def _leaning(side: Mapping[str, Any]) -> str:
    sure, right = (f"{100 * side[key]:.0f} %" for key in ("confidence", "accuracy"))
    gap = side["confidence"] - side["accuracy"]
    if abs(gap) < 0.02:
        return f"as sure as right: {sure} confident, {right} right"
    return f"{'surer' if gap > 0 else 'less sure'} than right: {sure} confident, {right} right"


def groups(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """A box for each task over its templates before and after, and the numbers in a table."""
    found = report.get("groups")
    if not found:
        return None
    tasks = sorted(found["tasks"].items(), key=lambda item: -item[1]["n"])
    lines = [_boxed(name, task) for name, task in tasks[:GROUPS]]
    metric = spoken(found["metric"])
    label = f"{capital(metric)} by task, before and after. " + ". ".join(f"{x.name}: {x.words}" for x in lines)
    ends = [v for line in lines for values in line.values.values() for v in values]
    within = (0.0, 1.0) if all(0 <= end <= 1 for end in ends) else None
    return {
        "chart": boxes.boxes(lines, metric, label, within),
        "metric": metric,
        "left_out": max(0, len(tasks) - GROUPS),
        "spread": any(task["templates"] for _, task in tasks),
    }


def _boxed(name: str, task: Mapping[str, Any]) -> boxes.Boxed:
    parts = list(task["templates"].values()) or [task]
    wordings = f", {len(parts)} wordings" if len(parts) > 1 else ""
    told = f"{fixed(task['base'], 2)} → {fixed(task['result'], 2)} (n = {number(task['n'])}{wordings})"
    values = {side: tuple(float(part[side]) for part in parts) for side in SIDES}
    return boxes.Boxed(clean(name or "all rows", 28), told, values)
