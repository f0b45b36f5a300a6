"""The rows that a run learns from, watches during training, and asks about: read, split, held apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from acclimate.data.examples import Conversation, Document, Example, Feedback, Preference, Ranking, Row, Tagged
from acclimate.data.read import Table, read
from acclimate.data.sources import resolve_data
from acclimate.data.split import Shares, overlap, plain, prompt_of, split
from acclimate.data.template import Template
from acclimate.errors import DataError
from acclimate.recipe import Data, Mixture, Task
from acclimate.run.mixture import evenly, learned_rows, mixed

LEARNABLE = (Example, Conversation, Document, Tagged, Preference, Ranking, Feedback)
HELD_OUT = {"dev": 0.1, "test": 0.15}  # of the training source, where it has no file of its own


@dataclass(frozen=True)
class Part:
    """One part of the data: its rows, and what was left out and why."""

    name: str
    rows: tuple[Any, ...]
    sha256: str
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Parts:
    """The rows that are learned from, watched during training, and asked about in the end."""

    train: Part
    dev: Part
    test: Part
    warnings: tuple[str, ...] = ()


def parts(data: Data, task: Task) -> Parts:
    """Read and split what the recipe names. Prompts that are in train and test are taken out of train."""
    if data.mixture:
        return _mixed(data, data.mixture, task)
    train = _table(data.train, data, task)
    test = train if data.test in ("", data.train) else _table(data.test, data, task)
    dev = train if data.dev in ("", data.train) else _table(data.dev, data, task)
    _refuse_kinds({"train": train, "test": test, "dev": dev})
    key = _key(task)
    own = [name for name, table in (("dev", dev), ("test", test)) if table is train]
    cut = split(train.rows, _shares(own), key)
    chosen = {
        "train": cut.train,
        "dev": cut.dev if "dev" in own else dev.rows,
        "test": cut.test if "test" in own else test.rows,
    }
    held = {plain(key(row)) for row in (*chosen["dev"], *chosen["test"])}
    clean = tuple(row for row in chosen["train"] if plain(key(row)) not in held)
    warnings = _overlap_warnings(len(chosen["train"]) - len(clean), overlap(chosen["dev"], chosen["test"], key))
    if not clean:
        raise DataError(
            f"Every prompt of {train.name} is in the test or dev data as well: nothing is left to learn from."
        )
    limits = {"train": data.limit.train, "dev": data.limit.dev, "test": data.limit.test}
    made = {
        name: _part(table, limited(rows, limits[name], key))
        for (name, table, rows) in (
            ("train", train, clean),
            ("dev", dev, chosen["dev"]),
            ("test", test, chosen["test"]),
        )
    }
    found = Parts(made["train"], made["dev"], made["test"])
    return replace(found, warnings=(*left_out(found), *warnings))


def _refuse_kinds(tables: Mapping[str, Table]) -> None:
    """DataError for rows that no run learns from."""
    for name, table in tables.items():
        if table.kind not in LEARNABLE:
            raise DataError(
                f"data.{name}: {table.name} holds rows of kind {table.kind.__name__}; a run learns from "
                f"{', '.join(kind.__name__ for kind in LEARNABLE)}."
            )


def _mixed(data: Data, given: Mixture, task: Task) -> Parts:
    """The parts of many tasks. A dev or test source that is one of the mixture's gives its own part alone."""
    key = _key(task)
    own = [name for name in ("dev", "test") if not getattr(data, name) and (name == "dev" or not given.hold_out)]
    found = mixed(given, key, _shares(own))
    rows = {"dev": found.dev, "test": found.test or tuple(row for source in found.asked for row in source.rows)}
    rows |= {name: _apart(name, data, given, task) for name in ("dev", "test") if getattr(data, name)}
    held = {plain(key(row)) for part in rows.values() for row in part}
    learned = learned_rows(found, given, 0, data.limit.train, held, key)
    kinds = {type(row) for part in (learned, *rows.values()) for row in part}
    if not kinds <= {Example, Conversation, Document}:
        raise DataError("A mixture is learned from examples, conversations and texts; a source holds something else.")
    cut = {name: limited(part, getattr(data.limit, name), key) for name, part in rows.items()}
    if given.hold_out:
        cut["test"] = evenly(found.asked, data.limit.test)
    asked = f"held out: {', '.join(given.hold_out)}" if given.hold_out else f"{found.name} (test)"
    names = {"dev": data.dev or f"{found.name} (dev)", "test": data.test or asked}
    dev, test = (Part(names[name], cut[name], stamp(cut[name]), {}) for name in ("dev", "test"))
    return Parts(
        Part(found.name, learned, stamp(learned), {"template": found.dropped} if found.dropped else {}), dev, test
    )


def _shares(own: Sequence[str]) -> Shares:
    """What part of a source goes where, of which `own` are cut off."""
    dev, test = (HELD_OUT[name] if name in own else 0.0 for name in ("dev", "test"))
    return Shares(1.0 - dev - test, dev, test)


def _apart(name: str, data: Data, given: Mixture, task: Task) -> tuple[Any, ...]:
    """The rows of data.dev or data.test: all, or the part of that name where the mixture learns from the same source."""
    table = _table(getattr(data, name), data, task)
    shared = getattr(data, name) in {source.rows for source in given.sources}
    if not shared:
        return table.rows
    return getattr(split(table.rows, _shares(tuple(HELD_OUT)), _key(task)), name)  # type: ignore[no-any-return]


def stamp(rows: Sequence[Any]) -> str:
    """A hash of all that the rows say."""
    return f"sha256:{sha256(''.join(map(repr, rows)).encode('utf-8', 'surrogatepass')).hexdigest()}"


def left_out(found: Parts) -> tuple[str, ...]:
    """A sentence for each part of which rows were refused."""
    said = []
    for part in (found.train, found.dev, found.test):
        if part.dropped:
            rules = ", ".join(f"{rule}: {count}" for rule, count in part.dropped.items())
            said.append(f"{sum(part.dropped.values())} rows of {part.name} were left out ({rules}).")
    return tuple(dict.fromkeys(said))


def _overlap_warnings(removed: int, shared: Sequence[str]) -> tuple[str, ...]:
    said = []
    if removed:
        said.append(f"{removed} training rows have a prompt that is also in the dev or test data; they were left out.")
    if shared:
        said.append(f"{len(shared)} prompts are in both the dev and the test data.")
    return tuple(said)


def _table(name: str, data: Data, task: Task) -> Table:
    return read(
        resolve_data(name),
        columns=data.columns,
        labels=task.labels,
        target=data.target or None,
        numbers=task.numbers,
    )


def _part(table: Table, rows: tuple[Any, ...]) -> Part:
    return Part(
        table.name, rows, f"sha256:{table.sha256}", {rule: len(places) for rule, places in table.dropped.items()}
    )


def _key(task: Task) -> Any:
    """What counts as the prompt of a row: an example's is its text under the template."""
    template = Template(task.template)

    def key(row: Row) -> str:
        if isinstance(row, Example):
            return template.question(row)
        if isinstance(row, Document):
            return row.text
        if isinstance(row, Tagged):
            return " ".join(row.tokens)
        if isinstance(row, Preference | Ranking | Feedback):
            return prompt_of(row)
        assert isinstance(row, Conversation)
        return "\n".join(m.content for m in row.messages if m.role != "assistant")

    return key


def limited(rows: Sequence[Any], most: int, key: Any) -> tuple[Any, ...]:
    """At most `most` rows (0: all), those with the smallest hash of their prompt, in the order they came."""
    if not most or len(rows) <= most:
        return tuple(rows)
    rank = sorted(range(len(rows)), key=lambda i: (sha256(f"limit {key(rows[i])}".encode()).digest(), i))[:most]
    return tuple(rows[i] for i in sorted(rank))
