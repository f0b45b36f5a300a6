"""Scores by group: one for every task that rows name in `task`, spread over the wordings that they name in `template`."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from acclimate.errors import DataError
from acclimate.metrics import choose
from acclimate.metrics.metric import Metric
from acclimate.report.answers import SIDES, Rows
from acclimate.report.figures import at, finite
from acclimate.report.verdict import comparisons

NAMES = ("task", "template")
FEWEST = 2  # rows a group must have on average: what differs in every row is no group


def groups(report: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """`{"metric": name, "tasks": {task: {"n", "base", "result", "templates": {template: {"n", "base", "result"}}}}}`.

    The report's first metric of each task's rows and, where they have templates, of those of each template. {} where the
    rows are of one task and one template, or the metric has no value for any group.
    """
    found = comparisons(report)
    named = [row for row in rows if any(row.get(name) not in (None, "") for name in NAMES)]
    kinds = {_names(row) for row in named}
    if not found or len(kinds) < 2 or len(named) < FEWEST * len(kinds):
        return {}
    metric = choose([found[0].name], tuple(map(str, at(report, "task", "labels") or ())))[0]
    tasks = {}
    for task, own in groupby(sorted(named, key=_names), key=lambda row: _names(row)[0]):
        listed = list(own)
        parts = {name: list(some) for name, some in groupby(listed, key=lambda row: _names(row)[1]) if name}
        wordings = {name: scored for name, some in parts.items() if (scored := _scored(metric, some))}
        if whole := _scored(metric, listed):
            tasks[task] = {**whole, "templates": wordings}
    return {"metric": metric.name, "tasks": tasks} if tasks else {}


def _names(row: Mapping[str, Any]) -> tuple[str, str]:
    task, template = (row.get(name) for name in NAMES)
    return "" if task is None else str(task), "" if template is None else str(template)


def _scored(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metric over some rows, before and after; {} where it has no value for them."""
    try:
        values = [
            metric.combine(np.array([at(row, "metrics", metric.name, side) for row in rows], np.float64))
            for side in SIDES
        ]
    except (DataError, TypeError, ValueError):  # nothing that counts, or rows without this metric
        return {}
    return {"n": len(rows), **dict(zip(SIDES, values))} if all(finite(v) is not None for v in values) else {}
