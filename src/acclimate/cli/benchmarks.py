"""evaluate --tasks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acclimate.cli.voice import voice
from acclimate.errors import UsageError
from acclimate.evaluation.continuations import Continuing
from acclimate.run.benchmarks import Result, asked_of, read_tasks, their_tasks
from acclimate.run.open import open_model
from acclimate.training.checkpoint import atomic_write


def evaluate_tasks(
    model: str, adapter: Path | None, tasks: str, folder: Path, limit: int, out: Path | None, as_json: bool
) -> None:
    """The verb `evaluate --tasks`: a line for each task and metric; scores.json and predictions.jsonl in `out`."""
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UsageError("Give --tasks names with commas between; `acclimate list tasks` shows them.")
    if out is not None and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; give a new folder.")
    ours = read_tasks(names, folder, limit)
    opened = open_model(model, adapter)
    told = voice(quiet=as_json).told
    asked = Continuing(opened.model, opened.codec, opened.context)
    results = [_said(asked_of(task, given, asked, told), as_json) for task, given in ours]
    results += [_said(result, as_json) for result in their_tasks(names, asked, limit)]
    table = {
        "model": model,
        "adapter": str(adapter or ""),
        "limit": limit,
        "tasks": {r.name: r.json() for r in results},
    }
    if out is not None:
        _keep(out, table, results)
    if as_json:
        print(json.dumps(table))


def _said(result: Result, quiet: bool) -> Result:
    for name, found in result.scores.items() if not quiet else ():
        value = f"{found.value:.4f} ± {found.stderr:.4f}  ({found.low:.4f} to {found.high:.4f})"
        print(f"{result.name:<16} {name:<22} {value}, n = {found.n:,}", flush=True)
    return result


def _keep(out: Path, table: dict[str, Any], results: Sequence[Result]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"task": result.name, **row}, ensure_ascii=False, default=str)
        for result in results
        for row in result.rows
    ]
    atomic_write(out / "predictions.jsonl", "".join(line + "\n" for line in lines))
    atomic_write(out / "scores.json", json.dumps(table, indent=1) + "\n")
