"""Natural Instructions: a task is a definition, what to mind and to avoid, good and bad examples with reasons, and instances.

Mishra et al. 2022, arXiv:2104.08773, section 3 (schema) and 5.1 (encodings with and without each part); Wang et al. 2022,
arXiv:2204.07705 (the schema of version 2). The words around the parts are our own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from acclimate.data.examples import Example
from acclimate.data.problem import Refused
from acclimate.data.records import records
from acclimate.data.strict import broken, decode
from acclimate.data.values import Raw, found, items, needed, sequence, sound, text, texts
from acclimate.errors import DataError, unknown

T = TypeVar("T")
KINDS = ("Positive", "Negative")
SHOWN = ("input", "output")
NOTHING = ("", "-")  # how the first version writes that a part is absent
_SECTION = re.compile(r"^\s*(things to avoid|emphasis(?: & caution)?)\s*:\s*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Demonstration:
    """One of a task's own examples, good or bad, and why it is."""

    input: str
    output: str
    reason: str = ""


@dataclass(frozen=True)
class Instance:
    """An input and its acceptable outputs."""

    input: str
    outputs: tuple[str, ...]
    where: str = ""


@dataclass(frozen=True)
class Task:
    """One task of the collection."""

    name: str
    category: str
    definition: str
    emphasis: str
    avoid: str
    positive: tuple[Demonstration, ...]
    negative: tuple[Demonstration, ...]
    instances: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Parts:
    """What of a task a prompt shows: emphasis with the things to avoid; at most so many examples; their reasons."""

    definition: bool = True
    emphasis: bool = True
    positive: int = 2
    negative: int = 0
    explanations: bool = False

    @property
    def name(self) -> str:
        """Such as definition+emphasis+positive2."""
        said = {"definition": self.definition, "emphasis": self.emphasis, "explanations": self.explanations}
        counts = {"positive": self.positive, "negative": self.negative}
        shown = [name for name, on in said.items() if on] + [f"{name}{n}" for name, n in counts.items() if n]
        return "+".join(shown) or "input"


def natural_instructions(path: Path) -> tuple[Task, ...]:
    """The tasks of a folder with tasks.jsonl and instances.jsonl, of a folder of task files, or of one task file.

    Raises DataError with file and line, or file and element.
    """
    if (path / "tasks.jsonl").is_file():
        return _folder(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds neither tasks.jsonl nor task files (.json).")
    return tuple(_file(file) for file in files)


def encode(task: Task, asked: str, parts: Parts) -> str:
    """The prompt for one input. An example that is the input itself is left out, as it would give the answer away."""
    pieces = [f"Your task: {task.definition}"] if parts.definition else []
    if parts.emphasis:
        pieces += [f"Mind this: {task.emphasis}"] if task.emphasis else []
        pieces += [f"Avoid this: {task.avoid}"] if task.avoid else []
    for kind, shown, count in (("Good", task.positive, parts.positive), ("Bad", task.negative, parts.negative)):
        others = [each for each in shown if each.input != asked][:count]
        pieces += [_shown(f"{kind} example {i + 1}", each, parts.explanations) for i, each in enumerate(others)]
    return "\n\n".join([*pieces, f"Input: {asked}\nOutput:"])


def examples(task: Task, parts: Parts) -> tuple[Example, ...]:
    """Every instance as an Example; `fields` are task, template (the parts shown), cluster (the category) and input."""
    told = {"task": task.name, "template": parts.name, "cluster": task.category}
    return tuple(
        Example(
            encode(task, each.input, parts),
            each.outputs[0],
            each.outputs if len(each.outputs) > 1 else (),
            {**told, "input": each.input},
            each.where,
        )
        for each in task.instances
    )


def _shown(title: str, each: Demonstration, explained: bool) -> str:
    reason = f"\nReason: {each.reason}" if explained and each.reason else ""
    return f"{title}\nInput: {each.input}\nOutput: {each.output}{reason}"


def _folder(path: Path) -> tuple[Task, ...]:
    tasks = {task.name: task for _, task in _built(path / "tasks.jsonl", _task)}
    instances: dict[str, list[Instance]] = {}
    for where, (name, instance) in _built(path / "instances.jsonl", _named):
        if name not in tasks:
            raise DataError(f"{where} is of no known task. " + unknown("task", name, tasks))
        instances.setdefault(name, []).append(instance)
    for name in sorted(tasks.keys() - instances.keys()):
        raise DataError(f"instances.jsonl has no instance of {name}, which tasks.jsonl has.")
    return tuple(replace(task, instances=tuple(instances[name])) for name, task in tasks.items())


def _built(path: Path, build: Callable[[Raw, str], T]) -> Iterator[tuple[str, T]]:
    where = path.name
    try:
        for where, row in records(path):
            if isinstance(row, Refused):
                raise row
            sound(row)
            yield where, build(row, where)
    except Refused as refusal:
        raise DataError(refusal.at(where).message) from None


def _task(row: Raw, where: str) -> Task:
    definition, emphasis, avoid = _sections(text(needed(row, "definition", "task"), "definition"))
    good, bad = (_demonstrations(row.get(f"{kind}_examples") or [], kind) for kind in ("positive", "negative"))
    return Task(_text(row, "task"), _text(row, "category"), definition, emphasis, avoid, good, bad)


def _named(row: Raw, where: str) -> tuple[str, Instance]:
    return _text(row, "task"), _instance(row, where, "outputs")


def _instance(row: Raw, where: str, column: str) -> Instance:
    outputs = needed(row, column, "instance")
    said = texts(outputs, column) if isinstance(outputs, list) else (text(outputs, column),)
    return Instance(_text(row, "input"), said, where)


def _text(row: Raw, name: str) -> str:
    return text(needed(row, name, "row of Natural Instructions"), name)


def _sections(written: str) -> tuple[str, str, str]:
    """Definition, emphasis and things to avoid, where a definition has the other two below it under their names."""
    first, *rest = _SECTION.split(written)
    found = {name[0].lower(): said.strip() for name, said in zip(rest[::2], rest[1::2])}
    return first.strip(), found.get("e", ""), found.get("t", "")


def _demonstrations(value: object, name: str) -> tuple[Demonstration, ...]:
    shown = []
    for i, each in enumerate(items(value, name)):
        if not isinstance(each, Mapping):
            raise Refused("type", f"has {found(each)} as {name}[{i}]; an example is an object with input and output.")
        given, said = (text(needed(each, part, "example", f" at {name}[{i}]"), f"{name}[{i}].{part}") for part in SHOWN)
        reason = str(each.get("explanation") or each.get("reason") or "")
        shown.append(Demonstration(given, said, "" if reason in NOTHING else reason))
    return tuple(shown)


def _file(path: Path) -> Task:
    """A task file as its authors publish it: Definition, Positive Examples, Negative Examples, Instances, Categories."""
    where = path.name
    try:
        row = _read(path)
        listed = needed(row, "Instances", "task")
        pairs = [(f"{path.name} Instances[{i}]", each) for i, each in enumerate(sequence(listed, "Instances"))]
        instances = []
        for where, each in pairs:
            instances.append(_instance(each if isinstance(each, Mapping) else {}, where, "output"))
        where = path.name
        return replace(_described(row, path.stem), instances=tuple(instances))
    except Refused as refusal:
        raise DataError(refusal.at(where).message) from None


def _read(path: Path) -> Raw:
    try:
        row = decode(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name}:{error.lineno} {broken(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if isinstance(row, Refused):
        raise row
    if not isinstance(row, Mapping):
        raise Refused("type", f"is {found(row)}; a task file is an object with Definition and Instances.")
    sound(row)
    return row


def _described(row: Raw, name: str) -> Task:
    definition, emphasis, avoid = _sections(_joined(needed(row, "Definition", "task"), "Definition"))
    inner = row.get("Examples")
    places = inner if isinstance(inner, Mapping) else row  # the first version has them one level down
    good, bad = (_demonstrations(places.get(f"{kind} Examples") or [], f"{kind} Examples") for kind in KINDS)
    category = _joined(row.get("Categories") or row.get("Category") or "none", "Categories")
    emphasis, avoid = _part(row, "Emphasis & Caution") or emphasis, _part(row, "Things to Avoid") or avoid
    return Task(name, category, definition, emphasis, avoid, good, bad)


def _joined(value: object, name: str) -> str:
    return "\n".join(texts(value, name)) if isinstance(value, list) else text(value, name)


def _part(row: Raw, name: str) -> str:
    said = row.get(name) or ""
    return "" if said in NOTHING else text(said, name).strip()
