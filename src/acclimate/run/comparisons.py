"""What is to be judged: rows of two answers, the predictions of finished runs, and what a person said of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from acclimate.data.examples import Example
from acclimate.data.problem import Refused
from acclimate.data.records import records
from acclimate.data.values import Raw, found, needed, sound, text
from acclimate.errors import DataError, UsageError
from acclimate.evaluation.verdicts import A, B, comparison
from acclimate.metrics.agreement import TIE

PREDICTIONS = "predictions.jsonl"
SIDE = {"1": A, "a": A, "2": B, "b": B, "tie": TIE}
OTHER_NAMES = {"instruction": "prompt", "first": "output_1", "second": "output_2", "completion": "output"}


@dataclass(frozen=True)
class Contest:
    """Two systems and the comparisons of their answers, one for each prompt."""

    first: str
    second: str
    comparisons: tuple[Example, ...]


@dataclass(frozen=True)
class Answered:
    """One system's answers: Examples with the fields prompt and answer, whose target is a person's grade, if any."""

    name: str
    answers: tuple[Example, ...]


def pairs(path: Path) -> tuple[Example, ...]:
    """Rows of prompt, output_1, output_2 and perhaps label (1, 2 or tie), subset and id, as comparisons.

    Their field `id` is subset/id; without an id, the row's number from 0.
    """
    made = []
    for number, (where, row) in enumerate(_rows(path)):
        try:
            prompt, first, second = (
                text(needed(row, name, "pair"), name) for name in ("prompt", "output_1", "output_2")
            )
            label = side(row["label"]) if row.get("label") is not None else ""
        except Refused as refusal:
            raise DataError(refusal.at(where).message) from None
        made.append(_named(comparison(prompt, first, second, label, where), row, number))
    _once(made)
    return tuple(made)


def side(value: object) -> str:
    """A, B or tie, from 1, 2, A, B or tie in any case. Refused for anything else.

    >>> side(1), side("2"), side("Tie")
    ('A', 'B', 'tie')
    """
    known = SIDE.get(str(value).strip().lower())
    if known is None or isinstance(value, bool | float):
        raise Refused("label", f"has {found(value)} as the better one; it is 1, 2 or tie.")
    return known


def person(path: Path) -> dict[str, str]:
    """What a person said, by comparison: rows of id (and subset) and verdict (1, 2, A, B or tie; empty for none)."""
    said: dict[str, str] = {}
    for where, row in _rows(path):
        try:
            value, name = row.get("verdict", row.get("label")), item(row, needed(row, "id", "verdict"))
            if value is None or not str(value).strip():
                continue
            if name in said:
                raise Refused("duplicate", f"judges {name!r} again; one verdict of each is read.")
            said[name] = side(value)
        except Refused as refusal:
            raise DataError(refusal.at(where).message) from None
    return said


def graded(path: Path, points: Sequence[str]) -> tuple[Answered, ...]:
    """Rows of prompt and output, and perhaps grade: one of `points`, what a person gave it."""
    made = []
    for number, (where, row) in enumerate(_rows(path)):
        try:
            prompt, answer = (text(needed(row, name, "answer"), name) for name in ("prompt", "output"))
        except Refused as refusal:
            raise DataError(refusal.at(where).message) from None
        grade = str(row["grade"]) if row.get("grade") is not None else ""
        if grade and grade not in points:
            raise DataError(f"{where} has {found(row['grade'])} as grade; it is one of {', '.join(points)}.")
        made.append(_named(_answer(prompt, answer, grade, where), row, number))
    return (Answered(path.stem, tuple(made)),)


def prompts(path: Path) -> tuple[Example, ...]:
    """Rows of prompt, as questions without an answer."""
    made = []
    for where, row in _rows(path):
        try:
            asked = text(needed(row, "prompt", "prompt"), "prompt")
        except Refused as refusal:
            raise DataError(refusal.at(where).message) from None
        made.append(Example(asked, fields={"prompt": asked}, where=where))
    return tuple(made)


def systems(folders: Sequence[Path]) -> tuple[Answered, ...]:
    """What each run's result answered to its test rows; of a single run, what its base answered as well.

    DataError where two runs were not asked the same prompts in the same order.
    """
    if len(folders) == 1:
        rows = _predictions(folders[0])
        return tuple(_answers(side, rows, side) for side in ("base", "result"))
    made = [_answers(name, _predictions(path), "result") for name, path in zip(_names(folders), folders, strict=True)]
    for other in made[1:]:
        _same(made[0], other)
    return tuple(made)


def contests(answered: Sequence[Answered]) -> tuple[Contest, ...]:
    """Every two systems against each other."""
    return tuple(Contest(one.name, two.name, _against(one, two)) for one, two in combinations(answered, 2))


def _against(one: Answered, two: Answered) -> tuple[Example, ...]:
    made = []
    for number, (mine, theirs) in enumerate(zip(one.answers, two.answers, strict=True)):
        given = comparison(mine.prompt, mine.fields["answer"], theirs.fields["answer"], where=mine.where)
        made.append(_named(given, {"subset": f"{one.name}|{two.name}"}, number))
    return tuple(made)


def item(row: Raw, name: object) -> str:
    """The name of a row's comparison: subset/id, for ids may begin anew in each subset."""
    return f"{row['subset']}/{name}" if row.get("subset") else str(name)


def digest(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _named(example: Example, row: Raw, number: int) -> Example:
    name, subset = row.get("id", number), str(row.get("subset") or "")
    return replace(example, fields={**example.fields, "id": item(row, name), "subset": subset})


def _once(examples: Sequence[Example]) -> None:
    seen: dict[str, str] = {}
    for example in examples:
        name = str(example.fields["id"])
        if name in seen:
            raise DataError(f"{example.where} has the id {name!r}, as has {seen[name]}; an id names one comparison.")
        seen[name] = example.where


def _rows(path: Path) -> Iterator[tuple[str, Raw]]:
    """(place, row) of a file, under our names. DataError for a row that cannot be read, and for a file without rows."""
    count = 0
    try:
        for where, row in records(path):
            if isinstance(row, Refused):
                raise DataError(row.at(where).message)
            sound(row)
            count += 1
            extra = {ours: row[theirs] for theirs, ours in OTHER_NAMES.items() if theirs in row and ours not in row}
            yield where, {**row, **extra}
    except Refused as refusal:
        raise DataError(refusal.at(path.name).message) from None
    if not count:
        raise DataError(f"{path.name} holds no rows.")


def _predictions(folder: Path) -> list[dict[str, Any]]:
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UsageError(f"{folder} has no {PREDICTIONS}; give the folder of a finished acclimate run.")
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not rows or any("text" not in (row.get("result") or {}) or "prompt" not in row for row in rows):
        raise DataError(f"{path} does not hold the prompts and answers of a run, as `acclimate run` writes them.")
    return rows


def _answers(name: str, rows: Sequence[Mapping[str, Any]], side: str) -> Answered:
    return Answered(name, tuple(_answer(row["prompt"], row[side]["text"], "", row["where"]) for row in rows))


def _answer(prompt: str, answer: str, grade: str, where: str) -> Example:
    return Example(prompt, grade, fields={"prompt": prompt, "answer": answer}, where=where)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two are alike."""
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder.resolve()) for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError("A run is named twice; each is compared with the others once.")
    return names


def _same(one: Answered, other: Answered) -> None:
    asked, theirs = ([answer.prompt for answer in each.answers] for each in (one, other))
    if asked != theirs:
        place = next((i for i, (a, b) in enumerate(zip(asked, theirs)) if a != b), min(len(asked), len(theirs)))
        raise DataError(
            f"{one.name} and {other.name} were not asked the same: they part at row {place} (from 0) of "
            f"{len(asked)} and {len(theirs)}. Only answers to the same prompts are compared."
        )
