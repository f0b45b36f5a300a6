"""A mixture of tasks as the rows of a run: what is learned, what is watched, what is held out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from acclimate.data import instruction
from acclimate.data.examples import Example, Row
from acclimate.data.mixture import Source, first, held_out, mix
from acclimate.data.split import Shares, part, plain
from acclimate.errors import DataError, RecipeError
from acclimate.recipe import Mixture
from acclimate.recipe import Source as Entry

Key = Callable[[Row], str]


@dataclass(frozen=True)
class Mixed:
    """The sources that are learned, with their training rows; their rows of dev and test; and those that are held out."""

    sources: tuple[Source, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    asked: tuple[Source, ...]
    dropped: int

    @property
    def name(self) -> str:
        """As a report names it."""
        return f"a mixture of {len(self.sources)} tasks"


def mixed(given: Mixture, key: Key, shares: Shares) -> Mixed:
    """Read all sources and part them. Dev and test are the same whichever tasks and templates are learned.

    key: the prompt of a row. shares: of the learned sources' prompts, how many are for dev and for test. A row that is
    learned in another wording than it is parted by stays in its part.
    """
    every = read(given.sources)
    learned, _ = held_out(every, given.hold_out)
    where = {source.name: {row.where: part(key(row), shares) for row in source.rows} for source in learned}
    dev, test = (_of(learned, where, name) for name in ("dev", "test"))
    chosen = first(list(where), given.tasks)
    taught = [source for source in read(given.sources, most=given.templates) if source.name in chosen]
    kept = tuple(replace(source, rows=_of([source], where, "train")) for source in taught)
    asked = held_out(read(given.sources, every_prompt=True), given.hold_out)[1] if given.hold_out else ()
    capped = tuple(replace(source, rows=few(source, source.cap or 0)) for source in asked)
    return Mixed(kept, dev, test, capped, sum(len(source.dropped) for source in every))


def _of(sources: Sequence[Source], where: Mapping[str, Mapping[str, str]], name: str) -> tuple[Row, ...]:
    return tuple(row for source in sources for row in source.rows if where[source.name].get(row.where) == name)


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


def read(entries: Sequence[Entry], every_prompt: bool = False, most: int = 0) -> list[Source]:
    """The sources of all entries, each row in one wording (of `most`; 0: of all), or once in every wording."""
    return [source for entry in entries for source in _read(entry, every_prompt, most)]


def _read(entry: Entry, every_prompt: bool, most: int) -> list[Source]:
    said = {f.name: getattr(entry, f.name) for f in fields(Entry)}
    default = Entry()
    spec: dict[str, Any] = {name: value for name, value in said.items() if value != getattr(default, name)}
    if not (entry.rows or entry.natural_instructions):
        raise RecipeError("A source of data.mixture needs rows, a built-in name or a file, or natural_instructions.")
    where, whole = f"data.mixture: {entry.name or entry.rows}", bool(entry.templates or entry.natural_instructions)
    found = instruction.sources(spec, where, every_prompt=every_prompt, most=most)
    return [replace(source, rows=tuple(_told(row, source, whole) for row in source.rows)) for source in found]


def _told(row: Row, source: Source, whole: bool) -> Row:
    """An example that says which task it is of, so that results can be told apart. whole: its prompt needs no template."""
    if not isinstance(row, Example):
        return row
    return replace(row, fields={"task": source.name, "cluster": source.cluster, **row.fields}, rendered=whole)


def evenly(sources: Sequence[Source], most: int) -> tuple[Row, ...]:
    """At most `most` rows (0: all), as many of each source; a row comes in all its wordings or not at all, one at least."""
    return tuple(
        row
        for source in sources
        for row in few(source, max(1, most // len(sources) // _wordings(source)) if most else 0)
    )


def few(source: Source, most: int) -> tuple[Row, ...]:
    """`most` rows of a source (0: all), those with the smallest hash of their place; a row in all its wordings is one."""
    chosen = first([row.where for row in source.rows], most)
    return tuple(row for row in source.rows if row.where in chosen)


def _wordings(source: Source) -> int:
    return max(1, len({row.fields.get("template") for row in source.rows if isinstance(row, Example)}))


def absolute_sources(given: Mixture, full: Callable[[str], str]) -> Mixture:
    """The mixture with its files by their full path; built-in names stay."""
    return replace(given, sources=tuple(_absolute(source, full) for source in given.sources))


def _absolute(source: Entry, full: Callable[[str], str]) -> Entry:
    rows, templates, tasks = map(full, (source.rows, source.templates, source.natural_instructions))
    return replace(source, rows=rows, templates=templates, natural_instructions=tasks)
