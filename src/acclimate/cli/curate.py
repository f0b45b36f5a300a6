"""curate."""

import json
from collections.abc import Sequence
from pathlib import Path

from acclimate.data.novelty import too_like
from acclimate.data.problem import Refused
from acclimate.data.read import Table, read
from acclimate.data.records import records
from acclimate.data.sources import resolve_data
from acclimate.data.split import prompt_of
from acclimate.errors import UsageError
from acclimate.training.checkpoint import atomic_write


def curate_rows(name: str, out: Path, novel: float, known: Sequence[str], as_json: bool) -> None:
    """The verb `curate`: rows whose prompt is too like an earlier one, or one of `known`, are left out."""
    if not 0 < novel <= 1:
        raise UsageError(f"--novel is {novel:g}; ROUGE-L is above 0 and at most 1.")
    if out.exists():
        raise UsageError(f"{out} exists already; give a new file.")
    if out.suffix != ".jsonl":
        raise UsageError(f"--out is {out}; rows are written as .jsonl, so give a name that ends so.")
    path = resolve_data(name)
    table, pool = read(path), [prompt_of(row) for other in known for row in read(resolve_data(other)).rows]
    found = too_like([prompt_of(row) for row in table.rows], novel, pool)
    kept = {row.where for row, hit in zip(table.rows, found, strict=True) if hit is None}
    lines = [record for where, record in records(path) if where in kept and not isinstance(record, Refused)]
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, "".join(json.dumps(dict(line), ensure_ascii=False) + "\n" for line in lines))
    told = {
        "rows": len(table.rows),
        "kept": len(lines),
        "like_known": sum(h is not None and h < len(pool) for h in found),
    }
    print(json.dumps(told) if as_json else _said(table, told, novel, out))


def _said(table: Table, told: dict[str, int], novel: float, out: Path) -> str:
    left, known = told["rows"] - told["kept"], told["like_known"]
    return (
        f"{table.name}: {told['kept']:,} of {told['rows']:,} rows are kept in {out}; left out for a prompt with ROUGE-L of "
        f"{novel:g} or more with one before it: {left:,}{f' ({known:,} with one of --known)' if known else ''}."
    )
