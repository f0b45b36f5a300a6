"""What may be chosen by: dev rows in the place of test, and nothing of test."""

import math
from dataclasses import replace
from typing import Any

from acclimate.data.split import overlap, plain
from acclimate.errors import DataError
from acclimate.evaluation.evaluate import kinds
from acclimate.run.measure import metrics_of
from acclimate.run.parts import limited
from acclimate.run.prepare import Prepared
from acclimate.run.write import asked


def rounds(candidates: int, most: int, keep: float, share: float) -> list[tuple[int, int]]:
    """Successive halving: (candidates, budget of each) of every round. It depends on no result.

    most: what a candidate may have at most (steps, rows). share: of it, in the first round; later rounds have 1 / keep
    times more, and the share `keep` of the candidates, rounded down, one at least.

    >>> rounds(4, 40, 0.5, 0.25), rounds(3, 12, 0.5, 1.0), rounds(1, 40, 0.5, 0.25)
    ([(4, 10), (2, 20)], [(3, 12)], [])
    """
    found: list[tuple[int, int]] = []
    while candidates > 1:
        found.append((candidates, min(most, math.ceil(most * share / keep ** len(found)))))
        candidates = max(1, math.floor(candidates * keep))
    return found


def chooses(prepared: Prepared) -> bool:
    """Whether the model answers with the likeliest of the task's labels, so that its answers hold their loss."""
    labels = prepared.recipe.task.labels
    return bool(labels) and prepared.head is None and "labels" in kinds(metrics_of(prepared), labels)


def on_dev(prepared: Prepared, rows: int) -> Prepared:
    """The same inputs with dev in the place of test, and at most `rows` of it; nothing of test is left in them.

    Where the answers to dev hold a loss, no row is left to take it from apart: the rows would be read twice.

    Dev rows whose prompt is in test as well are left out: to choose by them would be to choose by test.
    Raises DataError where that leaves none.
    """
    dev, test = prepared.parts.dev, prepared.parts.test

    def prompt(row: Any) -> str:
        return plain(asked(prepared, row))

    shared = set(overlap(dev.rows, test.rows, prompt))
    chosen = limited([row for row in dev.rows if prompt(row) not in shared], rows, prompt)
    if not chosen:
        raise DataError(
            f"The search has no dev rows: {len(dev.rows)} are given and {len(shared)} of their prompts are in test as well. "
            "Give data.dev other rows, or leave it empty to hold some of the training rows out."
        )
    pairs = prepared.pairs
    if pairs and pairs.test:  # what is asked about are comparisons
        asked_of = {row.where: row for row in pairs.dev}
        chosen = tuple(row for row in chosen if row.where in asked_of)
        pairs = replace(pairs, test=tuple(asked_of[row.where] for row in chosen))
    places = set() if chooses(prepared) else {row.where for row in chosen}
    part, fitted = replace(dev, rows=chosen), [row for row in prepared.dev.rows if row.where in places]
    recipe = replace(prepared.recipe, evaluation=replace(prepared.recipe.evaluation, forgetting=False))
    parts = replace(prepared.parts, dev=part, test=part)
    return replace(prepared, recipe=recipe, parts=parts, pairs=pairs, dev=prepared.dev._replace(rows=fitted))
