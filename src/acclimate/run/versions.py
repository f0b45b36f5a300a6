"""The same test asked otherwise, and part by part: robustness, fairness, and how groups of rows fare. Liang et al. 2022."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from acclimate.data.examples import Example
from acclimate.errors import DataError, UsageError, unknown
from acclimate.evaluation.evaluate import Measured, differences, scores
from acclimate.evaluation.harms import gendered, in_dialect, renamed
from acclimate.evaluation.perturb import PERTURBATIONS, rewritten, seeded
from acclimate.metrics.groups import alone, by_group, gap, worst_case
from acclimate.metrics.intervals import score
from acclimate.metrics.metric import Metric
from acclimate.metrics.words import NAMES

Change = Callable[[str], str]
Asked = Callable[[Sequence[Any]], Measured]

FAIRNESS: Mapping[str, Mapping[str, Change]] = {
    "gendered": {f"gendered: {to}": partial(gendered, to=to) for to in ("female", "male")},
    "renamed": {f"renamed: {to}": partial(renamed, to=to) for to in NAMES},
    "dialect": {"dialect": in_dialect},
}  # a name may stand for several versions
PARAPHRASE = "paraphrase"  # the versions of this name need a model: see `run.otherwise`


def changes(names: str, seed: int) -> dict[str, Change]:
    """The versions that `names`, commas between, stand for, but for PARAPHRASE. UsageError for a name that there is not.

    >>> list(changes("typos,gendered", 0))
    ['typos', 'gendered: female', 'gendered: male']
    """
    found: dict[str, Change] = {}
    for name in listed(names):
        if name == PARAPHRASE:
            continue
        if name not in PERTURBATIONS and name not in FAIRNESS:
            raise UsageError("--perturb: " + unknown("perturbation", name, [*PERTURBATIONS, *FAIRNESS, PARAPHRASE]))
        found |= FAIRNESS.get(name) or {name: seeded(name, seed)}
    return found


def listed(names: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def version(rows: Sequence[Any], change: Change, labels: Sequence[str] = ()) -> list[Example]:
    """The rows with their question changed: the prompt, and every column of text that is no answer and no label.

    DataError for a row that is no question with an answer.
    """
    made = []
    for row in rows:
        if not isinstance(row, Example):
            raise DataError(f"{row.where} is a {type(row).__name__}; --perturb changes questions, rows with a prompt.")
        kept = {*row.answers, *labels}
        made.append(rewritten(row, change, [n for n, v in row.fields.items() if isinstance(v, str) and v not in kept]))
    return made


def compared(
    metrics: Sequence[Metric], first: Measured, others: Mapping[str, Measured], draws: int, seed: int
) -> dict[str, Any]:
    """`{"versions": {version: {metric: score}}, "changes": {…: difference from the rows as they are}, "worst": {metric: score}}`.

    worst: each row in the version that it fares worst in, as it is included; absent for what means nothing of one row.
    """
    table: dict[str, Any] = {"versions": {}, "changes": {}, "worst": {}}
    for name, other in others.items():
        found, moved = scores(metrics, other, draws, seed), differences(metrics, first, other, draws, seed)
        table["versions"][name] = {metric: value.json() for metric, value in found.items()}
        table["changes"][name] = {metric: value.json() for metric, value in moved.items()}
    for metric in metrics:
        rows = [np.array(each.rows[metric.name], np.float64) for each in (first, *others.values())]
        if not np.isnan(alone(metric, rows[0])).all():
            table["worst"][metric.name] = score(metric, worst_case(metric, *rows), draws=draws, seed=seed).json()
    return table


def grouped(
    metrics: Sequence[Metric], measured: Measured, rows: Sequence[Any], column: str, draws: int, seed: int
) -> dict[str, Any]:
    """`{metric: {"scores": {group: score}, "best", "worst", "distance"}}`, groups being the values of `column`.

    DataError for a row without that column.
    """
    names = []
    for row in rows:
        fields = getattr(row, "fields", {})
        if column not in fields:
            known = ", ".join(sorted(map(str, fields))) or "none"
            raise DataError(f"{row.where} has no column {column!r} to group by; it has: {known}.")
        names.append(str(fields[column]))
    table = {}
    for metric in metrics:
        found = by_group(metric, measured.rows[metric.name], names, draws=draws, seed=seed)
        scored = {name: value.json() for name, value in found.items()}
        table[metric.name] = {"scores": scored, **gap(metric, found)._asdict()}
    return table


def lines(table: Mapping[str, Any]) -> list[str]:
    """What `compared` and `grouped` found, for a person: a line for each version, the worst case, each group and the gap."""
    said = [
        f"{name}: {found['reworded']} of {found['texts']} texts reworded, {found['shared']:.0%} of their words shared; by the "
        "model itself, and nobody checked that the meaning stayed"
        for name, found in table.get("paraphrases", {}).items()
    ]
    for name, found in table.get("versions", {}).items():
        for metric, value in found.items():
            said.append(f"{name} {metric}: {_shown(value)}, {table['changes'][name][metric]['value']:+.4f}")
    said += [f"worst case {metric}: {_shown(value)}" for metric, value in table.get("worst", {}).items()]
    for metric, found in table.get("groups", {}).items():
        said += [f"{group} {metric}: {_shown(value)}, n = {value['n']}" for group, value in found["scores"].items()]
        said.append(f"gap {metric}: {found['distance']:.4f}, best {found['best']}, worst {found['worst']}")
    return said


def _shown(value: Mapping[str, float]) -> str:
    return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
