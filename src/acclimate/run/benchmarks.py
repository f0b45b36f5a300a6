"""Benchmarks asked of one model, by name: our tasks and those of lm-evaluation-harness, told alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acclimate.data.examples import Example, Output
from acclimate.evaluation.benchmarks import Asked, Benchmark, answers, expected, load, part_of, questions
from acclimate.evaluation.continuations import Continuing
from acclimate.evaluation.evaluate import Measured, rows_of
from acclimate.evaluation.harness import harness
from acclimate.metrics.intervals import Score, score
from acclimate.metrics.metric import Metric

THEIRS = "harness:"  # before the name of a task of lm-evaluation-harness
Told = Callable[[str, int], Callable[[int], None]]  # (what, how many) → a tick for that stretch of work


@dataclass(frozen=True)
class Result:
    """What one task found. groups: scores of its parts, its subjects say. rows: what was asked and answered, a row each."""

    name: str
    about: str
    scores: Mapping[str, Score]
    groups: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()

    def json(self) -> dict[str, Any]:
        """As it stands in scores.json; its rows stand in predictions.jsonl."""
        parts = {name: _json(scores) for name, scores in self.groups.items()}
        return {"about": self.about, "scores": _json(self.scores), **({"groups": parts} if parts else {})}


def _json(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: found.json() for name, found in scores.items()}


def read_tasks(names: Sequence[str], folder: Path, limit: int) -> list[tuple[Benchmark, list[Asked]]]:
    """Our tasks among the names with their questions. limit: of each task, or of each of its parts; 0 is all.

    UsageError for a name that there is not, SourceError where a task has no data in the folder.
    """
    tasks = [load(name) for name in names if not name.startswith(THEIRS)]
    return [(task, questions(task, folder, limit)) for task in tasks]


def their_tasks(names: Sequence[str], asked: Continuing, limit: int) -> list[Result]:
    """The results of those among the names that are tasks of lm-evaluation-harness."""
    others = [name.removeprefix(THEIRS) for name in names if name.startswith(THEIRS)]
    told = harness(others, asked, limit) if others else []
    return [Result(found.name, found.about, found.scores, rows=found.rows) for found in told]


def asked_of(task: Benchmark, given: Sequence[Asked], asked: Continuing, told: Told, draws: int = 2000) -> Result:
    """One of our tasks: the model's answers, and the scores of all rows and of each part of them."""
    count = sum(len(one.continuations) or 1 for one in given)
    outputs = answers(task, given, asked, told(task.name, count))
    rows = [one.example for one in given]
    metrics = task.measures()
    given_by: dict[str, list[Output]] = {"text" if task.max_new else "labels": outputs}
    if any(metric.kind == "number" for metric in metrics):
        given_by["number"] = [expected(output) for output in outputs]
    measured = rows_of(metrics, given_by, rows)
    parts: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        parts.setdefault(part_of(task.group, row), []).append(place)
    groups = {name: _scores(metrics, measured, places, draws) for name, places in sorted(parts.items()) if name}
    lines = tuple(
        _line(task, i, row, output, measured) for i, (row, output) in enumerate(zip(rows, outputs, strict=True))
    )
    return Result(task.name, task.about, _scores(metrics, measured, range(len(rows)), draws), groups, lines)


def _scores(metrics: Sequence[Metric], measured: Measured, places: Sequence[int], draws: int) -> dict[str, Score]:
    return {m.name: score(m, [measured.rows[m.name][i] for i in places], draws=draws) for m in metrics}


def _line(task: Benchmark, place: int, row: Example, output: Output, measured: Measured) -> dict[str, Any]:
    return {
        "row": place,
        "where": row.where,
        **({"group": part_of(task.group, row)} if task.group else {}),
        "prompt_ids": list(output.prompt_ids),
        "truncated": output.truncated,
        "target": row.target,
        "text": output.text,
        "scores": dict(output.scores),
        "metrics": {name: list(found[place]) for name, found in measured.rows.items()},
    }
