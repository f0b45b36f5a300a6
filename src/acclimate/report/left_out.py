"""The page of runs that each left one category out: a line for every category that was never learned."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from acclimate.report import pictures
from acclimate.report.figures import capital, clean, fixed, probability, spoken
from acclimate.report.page import environment, printable
from acclimate.report.verdict import BETTER, WORSE, Comparison, comparisons

AT_ONCE = 8  # categories in one picture


def left_out_page(found: Mapping[str, Any]) -> str:
    """One HTML document from what report.json holds. Same input, same bytes."""
    first = found["task"]["metrics"][0]
    named = [replace(each, name=clean(name, 60)) for name, metric, each in _all(found) if metric == first]
    parts = [named[start : start + AT_ONCE] for start in range(0, len(named), AT_ONCE)]
    return (
        environment()
        .get_template("left_out.html.j2")
        .render(
            model=clean(found["model"], 80),
            method=spoken(found["method"]),
            headline=headline(found),
            metric=spoken(first),
            metrics=[capital(spoken(name)) for name in found["task"]["metrics"]],
            rows=[(clean(row["cluster"], 80), row["folder"], _cells(found, row)) for row in found["held_out"]],
            mean=[_mean(found, name) for name in found["task"]["metrics"]],
            charts=[chart for part in parts for chart in pictures.score_charts(part)],
            recipe=clean(yaml.safe_dump(printable(found["recipe"]), sort_keys=False, allow_unicode=True), 40_000),
        )
    )


def headline(found: Mapping[str, Any]) -> str:
    """How many categories that were never learned are answered better, in a sentence."""
    first = found["task"]["metrics"][0]
    readings = [each.reading for _, metric, each in _all(found) if metric == first]
    return (
        f"{spoken(first)} of kinds of tasks that were never learned: clearly better in {readings.count(BETTER)} of "
        f"{len(readings)}, clearly worse in {readings.count(WORSE)}"
    )


def lines(found: Mapping[str, Any]) -> list[str]:
    """The table for a terminal."""
    wide = max(len(row["cluster"]) for row in found["held_out"])
    told = [
        f"{row['cluster']:<{wide}}  {name}: {_change(*_ends(row, name), row['difference'][name])}, "
        f"n = {row['result']['scores'][name]['n']}"
        for row in found["held_out"]
        for name in found["task"]["metrics"]
    ]
    told += [
        f"{'mean':<{wide}}  {name}: {_change(mean['base'], mean['result'], mean['difference'])}, "
        f"over {len(found['held_out'])} categories"
        for name, mean in found["mean"].items()
    ]
    return [*told, capital(headline(found)) + "."]


def _ends(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    return row["base"]["scores"][metric]["value"], row["result"]["scores"][metric]["value"]


def _all(found: Mapping[str, Any]) -> list[tuple[str, str, Comparison]]:
    """(category, metric, what changed) of every category and metric."""
    return [
        (row["cluster"], each.name, each)
        for row in found["held_out"]
        for each in comparisons({"task": found["task"], **row})
    ]


def _change(before: float, after: float, gap: Mapping[str, float]) -> str:
    return (
        f"{before:.4f} → {after:.4f}  difference {gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}), "
        f"p = {gap['p']:.2g}"
    )


def _cells(found: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [pictures.score_row(each) for each in comparisons({"task": found["task"], **row})]


def _mean(found: Mapping[str, Any], metric: str) -> dict[str, str]:
    mean = found["mean"][metric]
    gap = mean["difference"]
    return {
        "name": capital(spoken(metric)),
        "before": fixed(mean["base"], 3),
        "after": fixed(mean["result"], 3),
        "difference": fixed(gap["value"], 3, sign=True),
        "interval": f"{fixed(gap['low'], 3)} to {fixed(gap['high'], 3)}",
        "p": probability(gap["p"]),
    }
