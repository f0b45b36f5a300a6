"""A mixture of tasks as the rows of a run: what is learned, what is watched, what is held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any

from acclimate.data import instruction
from acclimate.data.examples import Example, Row
from acclimate.data.mixture import Source, held_out, mix
from acclimate.data.split import Shares, part, plain
from acclimate.errors import DataError, RecipeError
from acclimate.recipe import Mixture
from acclimate.recipe import Source as Entry

Key = Callable[[Row], str]


@dataclass(frozen=True)
class Mixed:
    """The sources that are learned, with their training rows; and the rows of dev and test (of none: ())."""

    sources: tuple[Source, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    dropped: int

    @property
    def name(self) -> str:
        """As a report names it."""
        return f"a mixture of {len(self.sources)} tasks"


def mixed(given: Mixture, key: Key, shares: Shares) -> Mixed:
    """Read all sources and part them. Dev and test are the same whichever tasks and templates are learned.

    key: the prompt of a row. shares: of the learned sources' prompts, how many are for dev and for test.
    """
    every = [source for entry in given.sources for source in read(entry)]
    learned, _ = held_out(every, given.hold_out)
    asked = _asked(given) if given.hold_out else ()
    cut = [(source, {name: _of(source, name, key, shares) for name in ("train", "dev", "test")}) for source in learned]
    dev, test = (tuple(row for _, parts in cut for row in parts[name]) for name in ("dev", "test"))
    chosen = first([source.name for source, _ in cut], given.tasks)
    kept = tuple(
        replace(source, rows=worded(parts["train"], given.templates)) for source, parts in cut if source.name in chosen
    )
    return Mixed(kept, dev, asked or test, sum(len(source.dropped) for source in every))


def learned_rows(found: Mixed, given: Mixture, seed: int, total: int, held: set[str], key: Key) -> tuple[Row, ...]:
    """The training rows in their order, those whose prompt is held out left out; `total` of them, or (0) as many as count."""
    clean = tuple(
        replace(source, rows=tuple(row for row in source.rows if plain(key(row)) not in held))
        for source in found.sources
    )
    if not any(source.rows for source in clean):
        raise DataError(
            "Every prompt of the mixture is in the test or dev data as well: nothing is left to learn from."
        )
    return mix([source for source in clean if source.rows], seed, total or None, given.temperature)


def read(entry: Entry, every_prompt: bool = False) -> list[Source]:
    """The sources of an entry, each row under its template once, or once in every wording."""
    said = {f.name: getattr(entry, f.name) for f in fields(Entry)}
    default = Entry()
    spec: dict[str, Any] = {name: value for name, value in said.items() if value != getattr(default, name)}
    if "parts" in spec:
        spec["parts"] = list(spec["parts"])
    if not (entry.rows or entry.natural_instructions):
        raise RecipeError("A source of data.mixture needs rows, a built-in name or a file, or natural_instructions.")
    found = instruction.sources(spec, f"data.mixture: {entry.name or entry.rows}", every_prompt=every_prompt)
    whole = bool(entry.templates or entry.natural_instructions)
    return [replace(source, rows=tuple(_rendered(row, source, whole) for row in source.rows)) for source in found]


def _rendered(row: Row, source: Source, whole: bool) -> Row:
    """An example that says which task it is of, so that results can be told apart."""
    if not isinstance(row, Example):
        return row
    named = {"task": source.name, "cluster": source.cluster, **row.fields} if whole else row.fields
    return replace(row, fields=named, rendered=whole)


def _asked(given: Mixture) -> tuple[Row, ...]:
    """The rows of the clusters held out, in every wording, at most as many of a task as its cap."""
    every = [source for entry in given.sources for source in read(entry, every_prompt=True)]
    _, asked = held_out(every, given.hold_out)
    return tuple(row for source in asked for row in _capped(source))


def _capped(source: Source) -> Sequence[Row]:
    """Rows of a source up to its cap, those with the smallest hash of their place; a row in all its wordings is one."""
    chosen = first([row.where for row in source.rows], source.cap or 0)
    return [row for row in source.rows if row.where in chosen]


def evenly(rows: Sequence[Any], most: int) -> tuple[Any, ...]:
    """At most `most` rows (0: all), as many of each task; a row comes in all its wordings or not at all, one at least."""
    tasks = {task: [row for row in rows if row.fields["task"] == task] for task in {row.fields["task"] for row in rows}}
    kept: set[tuple[str, str]] = set()
    for task, own in tasks.items():
        wordings = max(1, len({row.fields.get("template", "") for row in own}))
        places = max(1, most // len(tasks) // wordings) if most else 0
        kept |= {(task, place) for place in first([row.where for row in own], places)}
    return tuple(row for row in rows if (row.fields["task"], row.where) in kept)


def _of(source: Source, name: str, key: Key, shares: Shares) -> tuple[Row, ...]:
    return tuple(row for row in source.rows if part(key(row), shares) == name)


def worded(rows: Sequence[Row], most: int) -> tuple[Row, ...]:
    """The rows in at most `most` wordings of their task (0: all), chosen by hash of their names; if none is left, all."""
    names = [row.fields.get("template", "") for row in rows if isinstance(row, Example)]
    kept = first(names, most)
    return tuple(row for row in rows if not isinstance(row, Example) or row.fields.get("template", "") in kept)


def first(names: Sequence[str], most: int) -> set[str]:
    """`most` of the different names (0: all), those with the smallest hash: fewer are always among more.

    >>> first(["a", "b", "c", "a"], 2) < first(["c", "b", "a"], 3)
    True
    """
    ranked = sorted(set(names), key=lambda name: sha256(f"first {name}".encode()).digest())
    return set(ranked[:most] if most else ranked)


def absolute_sources(given: Mixture, full: Callable[[str], str]) -> Mixture:
    """The mixture with its files by their full path; built-in names stay."""
    return replace(
        given,
        sources=tuple(
            replace(
                source,
                rows=full(source.rows),
                templates=full(source.templates),
                natural_instructions=full(source.natural_instructions),
            )
            for source in given.sources
        ),
    )
