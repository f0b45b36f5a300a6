"""Leave one category out: a run for each cluster of a mixture, asked about the one that it never learned.

Mishra et al. 2022, arXiv:2104.08773. A recipe asks for it with `data.mixture.hold_out: each`. Each run has a
folder of its own with its own report; those that are finished are not carried out again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import acclimate
from acclimate.data.examples import Example, Output
from acclimate.data.yaml_tables import plain
from acclimate.errors import RecipeError
from acclimate.metrics.intervals import paired
from acclimate.metrics.metric import Kind, Summed
from acclimate.recipe import Recipe, dump
from acclimate.report.left_out import left_out_page
from acclimate.run.carry import Voice, absolute, carry
from acclimate.run.mixture import read
from acclimate.run.rungs import slug
from acclimate.training.checkpoint import atomic_write
from acclimate.training.folder import RunFolder, claim
from acclimate.training.signals import Stop

EACH = ("each",)  # what hold_out says


@dataclass(frozen=True)
class Mean(Summed):
    """The mean of numbers: here of one metric's values, one a cluster."""

    name: ClassVar[str] = "mean"
    kind: ClassVar[Kind] = "number"
    limits: ClassVar[tuple[float, float]] = (-np.inf, np.inf)

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The number."""
        return (output.value,)


def leaves_out(recipe: Recipe) -> bool:
    """Whether the recipe asks for a run without each cluster."""
    return recipe.data.mixture is not None and recipe.data.mixture.hold_out == EACH


def one_out(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of every run by the cluster that it holds out. RecipeError for fewer than two clusters."""
    given = recipe.data.mixture
    assert given is not None
    names = sorted({source.cluster for source in read(given.sources)})
    if len(names) < 2 or len({slug(name) for name in names}) < len(names):
        raise RecipeError(f"hold_out: each needs clusters with different names, two at least; there is: {names}.")
    held = {name: replace(given, hold_out=(name,)) for name in names}
    return {name: replace(recipe, data=replace(recipe.data, mixture=mixture)) for name, mixture in held.items()}


def carry_each(recipe: Recipe, run: RunFolder, stop: Stop, voice: Voice) -> Path:
    """Carry out every run that is not finished; returns the path of the page with all of them in one table."""
    recipe = absolute(recipe)
    each = one_out(recipe)
    atomic_write(run.recipe, dump(recipe))
    found = []
    for number, (cluster, without) in enumerate(each.items(), start=1):
        folder = run.path / slug(cluster)
        if not (folder / "report.json").exists():
            voice.say(f"{number} of {len(each)}: without {cluster}")
            with claim(folder, resume=(folder / "recipe.yaml").exists()) as one:
                carry(without, one, stop, voice)
        found.append((cluster, json.loads((folder / "report.json").read_text(encoding="utf-8"))))
    table = together(recipe, found)
    atomic_write(run.path / "report.html", left_out_page(table))
    atomic_write(run.report, json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return run.path / "report.html"


def together(recipe: Recipe, found: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """report.json of all runs: each cluster's scores as its own report has them, and their mean over clusters."""
    task, given = found[0][1]["task"], recipe.evaluation
    rows = [
        {"cluster": name, "folder": slug(name), **{key: one[key] for key in ("base", "result", "difference")}}
        for name, one in found
    ]
    return {
        "acclimate": acclimate.__version__,
        "model": recipe.model,
        "method": plain(recipe)["method"]["name"],
        "task": {key: task[key] for key in ("metrics", "directions")},
        "held_out": rows,
        "mean": {name: _mean(rows, name, given.draws, given.seed) for name in task["metrics"]},
        "recipe": plain(recipe),
    }


def _mean(rows: Sequence[Mapping[str, Any]], metric: str, draws: int, seed: int) -> dict[str, Any]:
    """Before, after and their difference, whose interval and p are over clusters."""
    before, after = ([[row[side]["scores"][metric]["value"]] for row in rows] for side in ("base", "result"))
    changed = paired(Mean(), before, after, draws=max(9999, draws), seed=seed)
    return {"base": float(np.mean(before)), "result": float(np.mean(after)), "difference": changed.json()}
