"""Who was taken for whom: one table of counts before and one after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from acclimate.metrics.labels import plain
from acclimate.report.answers import SIDES, Rows, text

MOST = 20  # labels with a row of their own; of more, the commonest have one and the others share one
STRAY = "no label"  # an answer that is none of the labels


def confusion(rows: Rows, labels: Sequence[str], most: int = MOST) -> dict[str, Any]:
    """`{"wanted": names of rows, "answered": names of columns, "folded": how many labels, "base": counts, "result": counts}`.

    Rows and columns are the labels in their order, then the folded ones together, then STRAY if it was ever answered.

    >>> row = {"target": "no", "base": {"text": "yes"}, "result": {"text": "no"}}
    >>> confusion([row], ["no", "yes"])["result"]
    [[1, 0], [0, 0]]
    """
    place = {plain(label): index for index, label in enumerate(labels)}
    known = [(target, row) for row in rows if (target := place.get(plain(str(row.get("target"))))) is not None]
    kept = _kept(Counter(target for target, _ in known), len(labels), most)
    cell = {index: order for order, index in enumerate(kept)}
    folded = len(labels) - len(kept)
    names = [str(labels[index]) for index in kept] + ([f"{folded} other labels"] if folded else [])
    tables = {side: _counted(known, place, cell, len(names), side) for side in SIDES}
    stray = any(counts[-1] for table in tables.values() for counts in table)
    if not stray:
        tables = {side: [counts[:-1] for counts in table] for side, table in tables.items()}
    return {"wanted": names, "answered": names + ([STRAY] if stray else []), "folded": folded, **tables}


def _kept(targets: Mapping[int, int], count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted(sorted(range(count), key=lambda index: -targets[index])[: most - 1])


def _counted(
    known: Sequence[tuple[int, Mapping[str, Any]]],
    place: Mapping[str, int],
    cell: Mapping[int, int],
    size: int,
    side: str,
) -> list[list[int]]:
    """One row for each name, one column more than that for strays; what has no cell of its own is in the last."""
    table = [[0] * (size + 1) for _ in range(size)]
    for target, row in known:
        answer = place.get(plain(text(row, side)))
        column = size if answer is None else cell.get(answer, size - 1)
        table[cell.get(target, size - 1)][column] += 1
    return table
