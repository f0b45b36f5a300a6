"""compare.json: what the rungs left in their folders, as rows of one table with intervals and paired tests."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

import acclimate
from acclimate.data.yaml_tables import plain
from acclimate.evaluation.evaluate import scores
from acclimate.metrics.intervals import paired
from acclimate.metrics.metric import Metric
from acclimate.metrics.wins import Scenario, mean_win_rate
from acclimate.report.dimension import found_among
from acclimate.run.carry import licence_of
from acclimate.run.compare import Bench, read
from acclimate.run.measure import Answers, from_json, metrics_of
from acclimate.run.parts import Part
from acclimate.run.rungs import Rung, entry, has, method_name, stands_apart, table, way
from acclimate.run.write import forgetting, machine, provenance

DRAWS = 9999  # of a paired test, at least


def comparison(bench: Bench) -> dict[str, Any]:
    """compare.json as contract.md has it. Every rung is done, or failed."""
    found = bench.comparison
    metrics, base = metrics_of(bench.base), read(bench.out / "base.json")
    before = from_json(base["answers"])
    every = [(rung, read(bench.folder(rung) / "result.json")) for rung in found.rungs]
    rungs = [(rung, raw) for rung, raw in every if not stands_apart(rung, found.shared) or "failed" in raw]
    answers = {rung.name: from_json(raw["seeds"][0]["answers"]) for rung, raw in rungs if "failed" not in raw}
    rows = [_row(bench, metrics, rung, raw, before, answers.get(rung.name)) for rung, raw in rungs]
    best = best_of(rows, metrics[0])
    won = _win_rates(bench, metrics, answers)
    for row in rows:
        row |= won.get(row["name"], {})
        if row["name"] != best and not row["failed"]:
            row["difference"]["best"] = _differences(bench, metrics[:1], answers[best], answers[row["name"]])
    return {
        "acclimate": acclimate.__version__,
        "model": found.shared.model,
        "task": _task(bench, metrics),
        "data": {name: _data(part) for name, part in vars(bench.base.parts).items() if isinstance(part, Part)},
        "search": plain(found.search),
        "seeds": list(found.seeds),
        "base": {"scores": _scores(bench, metrics, before), **_seconds_of(bench, base)},
        "best": best,
        "rows": rows,
        "d90": found_among(rows, metrics[0].name, metrics[0].higher_is_better),
        "reward_models": [_reward_model(*each) for each in every if each not in rungs],
        "picture": _picture(bench, metrics[0]),
        "seconds": _stages(bench, base, rows),
        "machine": machine(bench.base.model),
        "provenance": {
            **provenance(bench.base, bench.stamp, licence_of(found.shared.model)),
            "command": "acclimate compare recipe.yaml",
        },
        "warnings": list(bench.base.parts.warnings),
        "recipe": table(found),
    }


def best_of(rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """The name of the row with the best mean over seeds of the first metric; of equal ones that which trains least."""
    sign = -1 if metric.higher_is_better else 1
    well = [row for row in rows if not row["failed"]]
    ordered = sorted(well, key=lambda r: (sign * r["spread"][metric.name]["mean"], r["trainable_parameters"]))
    return str(ordered[0]["name"]) if ordered else ""


def _row(
    bench: Bench, metrics: Sequence[Metric], rung: Rung, raw: Mapping[str, Any], base: Answers, mine: Answers | None
) -> dict[str, Any]:
    named = {"name": rung.name, "method": method_name(rung), "options": plain(rung.method)}
    if mine is None:
        return {**named, "failed": raw["failed"], "seconds": {"all": raw["seconds"]}}
    first = raw["seeds"][0]
    return {
        **named,
        "failed": "",
        "scores": _scores(bench, metrics, mine),
        "difference": {"base": _differences(bench, metrics, base, mine)},
        **{key: first[key] for key in ("trainable_parameters", "total_parameters", "training", "artifact")},
        "kept_parameters": first.get("kept_parameters", first["trainable_parameters"]),
        "learned": first.get("learned", {}),
        **_seconds_of(bench, first),
        "forgetting": forgetting(bench.base, base, mine) if mine.texts else {},
        "rate": raw["rate"],
        "search": raw["search"],
        **_seeds(metrics, raw["seeds"]),
        "curve": _curve(first.get("log", ())),
        "seconds": _spent(raw),
    }


def _scores(bench: Bench, metrics: Sequence[Metric], answers: Answers) -> dict[str, Any]:
    given = bench.comparison.shared.evaluation
    return {name: found.json() for name, found in scores(metrics, answers.task, given.draws, given.seed).items()}


def _differences(bench: Bench, metrics: Sequence[Metric], base: Answers, mine: Answers) -> dict[str, Any]:
    """`mine` minus `base` on the same examples."""
    given = bench.comparison.shared.evaluation
    return {
        m.name: paired(
            m, base.task.rows[m.name], mine.task.rows[m.name], draws=max(DRAWS, given.draws), seed=given.seed
        ).json()
        for m in metrics
    }


def _win_rates(bench: Bench, metrics: Sequence[Metric], answers: Mapping[str, Answers]) -> dict[str, dict[str, Any]]:
    """Each rung's mean win rate against the others over the metrics, where there are several of both."""
    if len(metrics) < 2 or len(answers) < 2:
        return {}
    given = bench.comparison.shared.evaluation
    scenarios = [Scenario(m, {name: each.task.rows[m.name] for name, each in answers.items()}) for m in metrics]
    found = mean_win_rate(scenarios, draws=given.draws, seed=given.seed)
    return {name: {"mean_win_rate": rate.json()} for name, rate in found.items()}


def _seconds_of(bench: Bench, asked: Mapping[str, Any]) -> dict[str, float]:
    """Of the test's evaluation alone, batches and all."""
    return {"inference_seconds_per_example": asked["task_seconds"] / len(bench.base.parts.test.rows)}


def _seeds(metrics: Sequence[Metric], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every seed's scores, and their mean and ends: what the seed alone moves. Scores and tests are of the first."""
    values = {
        m.name: [float(m.combine(np.array(run["answers"]["task"]["rows"][m.name]))) for run in runs] for m in metrics
    }
    return {
        "seeds": [
            {
                "seed": run["seed"],
                "scores": {name: found[i] for name, found in values.items()},
                "training": run["training"],
            }
            for i, run in enumerate(runs)
        ],
        "spread": {name: {"mean": fmean(v), "low": min(v), "high": max(v)} for name, v in values.items()},
    }


def _curve(log: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """(step, loss) of the training and of dev."""
    train = [[row["step"], row["loss"]] for row in log if "loss" in row]
    return {"train": train, "dev": [[row["step"], row["dev"]["loss"]] for row in log if "dev" in row]}


def _spent(raw: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage of a rung, all seeds together; `all` is since it began, or was last resumed."""
    runs = raw["seeds"]
    return {
        "search": raw["search"]["seconds"],
        "training": sum(run["training"]["seconds"] for run in runs),
        "saving": sum(run.get("saving_seconds", 0.0) for run in runs),
        "test": sum(run["task_seconds"] for run in runs),
        "forgetting": sum(run["forgetting_seconds"] for run in runs),
        "all": raw["seconds"],
    }


def _stages(bench: Bench, base: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each stage, all rungs together."""
    kinds = ("search", "training", "saving", "test", "forgetting")
    spent = {kind: sum(row["seconds"].get(kind, 0.0) for row in rows) for kind in kinds}
    before = {"preparation": bench.seconds, "base": base["task_seconds"] + base["forgetting_seconds"]}
    return {**before, **spent, "all": sum(before.values()) + sum(row["seconds"]["all"] for row in rows)}


def _task(bench: Bench, metrics: Sequence[Metric]) -> dict[str, Any]:
    given = bench.base.recipe.task
    directions = {m.name: m.higher_is_better for m in metrics}
    return {"labels": list(given.labels) or None, "metrics": list(directions), "directions": directions}


def _data(part: Part) -> dict[str, Any]:
    return {"name": part.name, "rows": len(part.rows), "dropped": dict(part.dropped), "sha256": part.sha256}


def _picture(bench: Bench, first: Metric) -> dict[str, Any] | None:
    """The study's chart: what each rung has at the entry or the metric that the recipe names, and the line it is on."""
    given, rungs = bench.comparison.picture, bench.comparison.rungs
    if given is None:
        return None
    places = {rung.name: entry(rung, given.x) for rung in rungs if has(rung, given.x)}
    series = {rung.name: rung.series or (way(rung) if not places else method_name(rung)) for rung in rungs}
    return {"x": given.x, "metric": given.metric or first.name, "places": places, "series": series}


def _reward_model(rung: Rung, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A rung that scores texts: what it is right in on held-out rows of its own, which no other rung is asked."""
    first, named = raw["seeds"][0], {"name": rung.name, "method": method_name(rung)}
    told = {key: first[key] for key in ("learned", "training", "artifact", "trainable_parameters")}
    return {**named, **told, "seconds": _spent(raw)}
