"""An entry of a recipe's list of instruction data to sources: rows through templates, rows as they are, or many tasks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from acclimate.data.examples import Example, Row
from acclimate.data.mixture import Source, first
from acclimate.data.natural import Parts, examples, natural_instructions
from acclimate.data.problem import Refused
from acclimate.data.prompts import PromptSet, labelled
from acclimate.data.promptsets import prompt_set
from acclimate.data.read import read
from acclimate.data.records import records
from acclimate.data.sources import resolve_data
from acclimate.data.values import Raw, needed, sound
from acclimate.errors import DataError, unknown

BOTH = ("weight", "cap")
ROWS = ("name", "rows", "templates", "cluster", "columns", "labels", *BOTH)
NATURAL = ("natural_instructions", "parts", *BOTH)
NONE = Parts(definition=False, emphasis=False, positive=0)
USUAL = 2  # examples of a task that `parts` shows unless it says how many


def sources(
    spec: Mapping[str, Any], where: str, *, seed: int = 0, every_prompt: bool = False, most: int = 0
) -> list[Source]:
    """The sources of one entry: a file of rows, or one for each task of Natural Instructions with its category as cluster.

    rows: a built-in name or a file. templates: a built-in set or a file; without any the rows are taken as they are.
    columns: the template's name → the file's. labels: what the column label means, in the order of its numbers.
    Each row comes in one prompt, drawn by its hash and the seed; with every_prompt once in each that is not turned around.
    most: of a set's prompts only so many are drawn from, those whose names have the smallest hash; 0: all.
    Raises DataError with `where` or the place in a file, SourceError for rows that cannot be had.
    """
    if "natural_instructions" in spec:
        return _natural(spec, where)
    _keys(spec, ROWS, where)
    path = resolve_data(_text(spec, "rows", where))
    columns, labels = _columns(spec, where), _labels(spec, where)
    if "templates" not in spec:
        rows: tuple[Row, ...] = read(path, columns=columns, labels=labels).rows
        name = _text(spec, "name", where, path.stem)
        return [Source(name, rows, _text(spec, "cluster", where, name), *_share(spec, where))]
    prompts = _prompts(_text(spec, "templates", where), where)
    name, cluster = _text(spec, "name", where, prompts.task), _text(spec, "cluster", where, prompts.cluster)
    few = first([prompt.name for prompt in prompts.prompts], most)
    prompts = replace(prompts, task=name, cluster=cluster, prompts=tuple(p for p in prompts.prompts if p.name in few))
    raw = raw_rows(path, columns, labels, by_name=bool(prompts.labels))
    rows, dropped = _rendered(prompts, raw, seed, every_prompt)
    if not rows:
        raise DataError(f"{where}: no prompt of {spec['templates']} has anything to say about a row of {path.name}.")
    return [Source(name, rows, cluster, *_share(spec, where), dropped)]


def _prompts(name: str, where: str) -> PromptSet:
    try:
        return prompt_set(name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def raw_rows(
    path: Path, columns: Mapping[str, str], labels: Sequence[str] = (), by_name: bool = False
) -> Iterator[tuple[str, Raw | DataError]]:
    """(place, row or what is wrong with it), columns renamed (ours → the file's), labels as names or as their places.

    Raises DataError for a file that cannot be read.
    """
    try:
        for where, record in records(path):
            try:
                yield where, _renamed(record, columns, labels, by_name)
            except Refused as refusal:
                yield where, DataError(refusal.at(where).message)
    except Refused as refusal:
        raise DataError(refusal.at(path.name).message) from None


def _renamed(record: Raw | Refused, columns: Mapping[str, str], labels: Sequence[str], by_name: bool) -> Raw:
    if isinstance(record, Refused):
        raise record
    sound(record)
    named = {**record, **{ours: needed(record, theirs, "row") for ours, theirs in columns.items()}}
    return labelled(named, labels, by_name) if labels else named


def _rendered(
    prompts: PromptSet, raw: Iterable[tuple[str, Raw | DataError]], seed: int, every_prompt: bool
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Examples, and the places of rows left out. Raises the first row's DataError when these are more than 1 %."""
    rows: list[Example] = []
    refused: dict[str, DataError] = {}
    total = 0
    for where, row in raw:
        total += 1
        try:
            if isinstance(row, DataError):
                raise row
            rows += prompts.every(row, where) if every_prompt else prompts.draw(row, where, seed)
        except DataError as error:
            refused[where] = error
    if len(refused) * 100 > total:
        raise DataError(
            f"{next(iter(refused.values()))} ({len(refused)} of {total} rows; up to 1 % would be left out.)"
        )
    return tuple(rows), tuple(refused)


def _natural(spec: Mapping[str, Any], where: str) -> list[Source]:
    _keys(spec, NATURAL, where)
    path, parts = Path(_text(spec, "natural_instructions", where)).expanduser(), _parts(spec.get("parts"), where)
    weight, cap = _share(spec, where)
    tasks = natural_instructions(path)
    return [Source(task.name, examples(task, parts), task.category, weight, cap) for task in tasks]


def _keys(spec: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in spec:
        if key not in allowed:
            raise DataError(f"{where}: " + unknown("option of a source", str(key), allowed))


def _text(spec: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    given = spec.get(key, default)
    if not isinstance(given, str) or not given.strip():
        raise DataError(
            f"{where}: a source needs text as {key}, not {given!r}."
            if key in spec
            else f"{where}: a source needs {key}; or natural_instructions, a folder of tasks."
        )
    return given


def _share(spec: Mapping[str, Any], where: str) -> tuple[float, int | None]:
    """weight and cap."""
    weight, cap = spec.get("weight", 1), spec.get("cap")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise DataError(f"{where}: weight is a number above 0, not {weight!r}.")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise DataError(f"{where}: cap is a whole number of rows above 0, not {cap!r}.")
    return float(weight), cap


def _columns(spec: Mapping[str, Any], where: str) -> Mapping[str, str]:
    given = spec.get("columns", {})
    if not isinstance(given, Mapping) or not all(isinstance(one, str) for pair in given.items() for one in pair):
        raise DataError(f"{where}: columns is a table of our names, each with the file's name for it.")
    return given


def _labels(spec: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = spec.get("labels", [])
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise DataError(f"{where}: labels is a list of words, in the order of the data set's numbers.")
    return tuple(given)


def _parts(given: Any, where: str) -> Parts:
    """A list of parts, or a table with a number of examples for positive and negative and true or false for the others."""
    if given is None:
        return Parts()
    known = {name: type(value) for name, value in asdict(Parts()).items()}
    if not isinstance(given, list | tuple | Mapping):
        raise DataError(f"{where}: parts is a list of {', '.join(known)}.")
    for name in given:
        if name not in known:
            raise DataError(f"{where}: " + unknown("part of a task", str(name), known))
    counted = given if isinstance(given, Mapping) else {name: USUAL if known[name] is int else True for name in given}
    for name, value in counted.items():
        if type(value) is not known[name] or value < 0:
            possible = "a number of examples" if known[name] is int else "true or false"
            raise DataError(f"{where}: parts.{name} is {possible}, not {value!r}.")
    return replace(NONE, **counted)
