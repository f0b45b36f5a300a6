"""A user's file to typed rows, or to sentences that say what is wrong with it and where."""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from acclimate.data.examples import Row
from acclimate.data.formats import Asked, Format, formats, like, recognise
from acclimate.data.problem import Problem, Refused
from acclimate.data.records import records
from acclimate.data.strict import broken, decode
from acclimate.data.values import LONG, Raw, near, sound
from acclimate.errors import DataError, unknown

Columns = Mapping[str, str | Sequence[str]]  # our name → theirs, of which the first that a row has is taken

LISTS = (
    *("messages", "conversations", "completions", "ranking", "spans", "tokens", "tags"),
    *("choices", "endings", "answers"),
)
SHOWN = 5  # sentences in an error
SEEN = 100  # columns a sentence lists
LISTED = 100  # problems in a validation


@dataclass(frozen=True)
class Table:
    """A file's rows, all of one kind. `dropped`: the places of the rows left out, by the rule they broke."""

    kind: type
    rows: tuple[Row, ...]
    dropped: Mapping[str, tuple[str, ...]]
    sha256: str  # of the file's bytes, hex
    name: str


@dataclass(frozen=True)
class Validation:
    """What a file holds: how many rows, of what kind, how many break which rule, and the first problems."""

    total: int
    kind: type | None  # None: no row is good
    rules: Mapping[str, int]
    problems: tuple[Problem, ...]


def read(
    path: Path,
    *,
    columns: Columns | None = None,
    labels: Sequence[str] = (),
    target: str | None = None,
    limit: int | None = None,
    numbers: bool = False,
) -> Table:
    """The rows of a .jsonl, .json, .csv, .tsv (these also .gz) or .parquet file.

    columns: our name → theirs. labels: the answers there are; a row's must be one, or count into them from 0.
    target: the column that holds the answer, where the task's template has columns of its own. limit: rows at most.
    numbers: the answers are numbers, so that a `score` beside a `text` is one.
    Raises DataError when more than 1 % of the rows are refused, SourceError for .parquet without pyarrow.
    """
    rows: list[Row] = []
    first: list[str] = []
    dropped: dict[str, list[str]] = {}
    try:
        for where, row in _rows(path, columns or {}, Asked(tuple(labels), target or "", numbers), limit):
            if isinstance(row, Refused):
                dropped.setdefault(row.rule, []).append(where)
                first += [row.at(where).message] if len(first) < SHOWN else []
            else:
                rows.append(row)
    except Refused as refusal:
        raise DataError(refusal.at(_name(path)).message) from None
    rules = {rule: len(places) for rule, places in dropped.items()}
    total = len(rows) + sum(rules.values())
    if sum(rules.values()) * 100 > total:
        raise DataError(_verdict(_name(path), total, rules, first))
    places = {rule: tuple(where) for rule, where in dropped.items()}
    return Table(type(rows[0]), tuple(rows), places, _sha256(path), path.name)


def problems(
    path: Path, *, columns: Columns | None = None, labels: Sequence[str] = (), target: str | None = None
) -> Iterator[Problem]:
    """Everything that is wrong with a file, as it is found. Raises SourceError for .parquet without pyarrow."""
    for row in _checked(path, columns, labels, target):
        if isinstance(row, Problem):
            yield row


def validate(
    path: Path, *, columns: Columns | None = None, labels: Sequence[str] = (), target: str | None = None
) -> Validation:
    """What a file holds and what is wrong with it. Raises SourceError for .parquet without pyarrow."""
    total, kind = 0, None
    rules: Counter[str] = Counter()
    first: list[Problem] = []
    for row in _checked(path, columns, labels, target):
        if isinstance(row, Problem):
            total += row.where != _name(path)  # else it is the file that has it
            rules[row.rule] += 1
            first += [row] if len(first) < LISTED else []
        else:
            total, kind = total + 1, type(row)
    return Validation(total, kind, dict(rules), tuple(first))


def _checked(path: Path, columns: Columns | None, labels: Sequence[str], target: str | None) -> Iterator[Row | Problem]:
    try:
        for where, row in _rows(path, columns or {}, Asked(tuple(labels), target or ""), None):
            yield row.at(where) if isinstance(row, Refused) else row
    except Refused as refusal:
        yield refusal.at(_name(path))


def _rows(path: Path, columns: Columns, asked: Asked, limit: int | None) -> Iterator[tuple[str, Row | Refused]]:
    """Each row or its refusal, with its place; raises the Refused of the file as a whole."""
    known = formats(asked)
    first: tuple[Format, str] | None = None
    unmet, seen = dict(columns), set[str]()
    good = total = 0
    for where, record in records(path):
        total += 1
        try:
            raw = _raw(record, columns, unmet, seen)
            if first is None:
                form = recognise(raw, known)
            else:
                form = first[0]
                like(raw, *first, known)
            row = form.build(raw, where, asked)
        except Refused as refusal:
            yield where, refusal
            continue
        first = first or (form, where)
        yield where, row
        good += 1
        if good == limit:
            break
    if not total:
        raise Refused("empty", "holds no rows; each row is an object, or a line below a header.")
    if seen:
        _met(unmet, seen)


def _raw(record: Raw | Refused, columns: Columns, unmet: dict[str, str | Sequence[str]], seen: set[str]) -> Raw:
    """The row under our names, found sound. The columns that it has are no longer `unmet`, and some of it is `seen`."""
    if isinstance(record, Refused):
        raise record
    for ours in [ours for ours, theirs in unmet.items() if _first(theirs, record)]:
        del unmet[ours]
    if unmet:
        seen.update(islice(record, SEEN))
    raw = _unpacked(_renamed(record, columns))
    sound(raw)
    return raw


def _renamed(row: Raw, columns: Columns) -> Raw:
    if not columns:
        return row
    taken = {ours: name for ours, theirs in columns.items() if (name := _first(theirs, row)) is not None}
    kept = {name: value for name, value in row.items() if name not in taken.values() and name not in taken}
    return {ours: row[name] for ours, name in taken.items()} | kept


def _first(theirs: str | Sequence[str], names: Container[str]) -> str | None:
    return next((name for name in _names(theirs) if name in names), None)


def _names(theirs: str | Sequence[str]) -> Sequence[str]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _met(unmet: Columns, seen: Iterable[str]) -> None:
    for ours, theirs in unmet.items():
        wrong = next((name for name in _names(theirs) if near(name, seen)), _names(theirs)[0])
        said = unknown("column", wrong, (name for name in seen if name.isprintable() and len(name) <= LONG))
        raise Refused("columns", f"has no column for {ours!r}, as data.columns has it. {said}")


def _unpacked(row: Raw) -> Raw:
    """The lists that a table's cell can only hold as JSON text."""
    packed = {name: text for name in LISTS if isinstance(text := row.get(name), str) and text.startswith(("[", "{"))}
    try:
        return {**row, **{name: decode(text) for name, text in packed.items()}} if packed else row
    except json.JSONDecodeError as error:
        raise Refused("json", f"has a list in a cell that {broken(error)}") from None


def _verdict(name: str, total: int, rules: Mapping[str, int], first: Sequence[str]) -> str:
    """Why a file is refused: how many rows break which rule, and the first sentences."""
    refused = sum(rules.values())
    totals = ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items(), key=lambda item: -item[1]))
    head = f"{name}: {refused} of {total} rows cannot be used; up to 1 % would be left out. By rule: {totals}."
    return "\n".join([head, *first, *(["…"] if refused > len(first) else [])])


def _name(path: Path) -> str:
    return path.name or str(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
