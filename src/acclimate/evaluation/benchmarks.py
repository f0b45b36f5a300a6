"""Benchmarks as YAML: what a row becomes, what is asked of the model after it, and how the answer counts.

A task either scores choices (Σ log p of each, after the same context) or lets the model write and finds the answer in that.
Contexts, choices and shots are the strings that lm-evaluation-harness makes for the task of the same name, spelled as it
spells them (`continuations`), so that scores can be compared with published ones. Exceptions stand in the tasks' files.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import yaml

from acclimate.data.benchmarks import READERS, Read, examples, table
from acclimate.data.examples import Example, Output
from acclimate.data.sandbox import compiled
from acclimate.errors import DataError, InputError, SourceError, UsageError, unknown
from acclimate.evaluation.continuations import Continuing
from acclimate.evaluation.predictor import Tick, log_shares
from acclimate.metrics.choice import (
    ChoiceAccuracy,
    ChosenExact,
    ChosenF1,
    Grade,
    NormalisedAccuracy,
    TrueMass,
    WholeQuestions,
)
from acclimate.metrics.correlation import Matthews, Pearson, Spearman
from acclimate.metrics.extract import Extracted
from acclimate.metrics.labels import F1, F1a, MacroF1
from acclimate.metrics.metric import Metric
from acclimate.tokens.codec import Encoded

SEED = 1234  # of lm-evaluation-harness's draws of shots
CHOICE: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *(ChoiceAccuracy(), NormalisedAccuracy(), TrueMass(), Grade()),
        *(WholeQuestions(), ChosenF1(), ChosenExact(), Pearson(), Spearman()),
    )
}
LABELLED = {metric.name: metric for metric in (F1, F1a, MacroF1, Matthews)}
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Shots:
    """Worked examples before a question: `count` rows of `files`, of those that agree with it in the column `by`.

    draw: the first ones, or other ones for each question, as lm-evaluation-harness draws them with its usual seed.
    """

    files: Texts
    count: int
    draw: Literal["first", "each"] = "first"
    by: str = ""
    reader: str = ""  # where it is not the task's


@dataclass(frozen=True)
class Finder:
    """Where the answer stands in what was written: the match of `pattern` that is counted `place`, the last at -1."""

    pattern: str = ""
    place: int = 0


@dataclass(frozen=True)
class Benchmark:
    """One task. Texts in {{ }} are Jinja over a row's columns.

    files: patterns in the data folder; those of the first that any file fits are read. columns: ours, and what it may be
    called in a file. labels: the names of a numbered `label`. choices: texts; those of the row where there are none.
    max_new above 0: the model writes as many tokens at most, up to a stop.
    """

    name: str
    about: str
    files: Texts
    prompt: str
    metrics: Texts = ()
    reader: str = "table"
    columns: Mapping[str, Texts] = field(default_factory=dict)
    labels: Texts = ()
    description: str = ""
    choices: Texts = ()
    delimiter: str = " "  # between a prompt and what answers it
    shown: str = ""  # in a shot, after the prompt; the right choice without it
    shots: Shots | None = None
    group: str = ""  # the column by which scores are also told apart
    target: str = ""
    finders: Mapping[str, Finder] = field(default_factory=dict)  # name of the metric → how its answer is found
    ignored: Texts = ()
    fold: bool = False
    stops: Texts = ()
    max_new: int = 0

    def measures(self) -> tuple[Metric, ...]:
        """What is measured."""
        found = [Extracted(n, f.pattern, f.place, self.ignored, self.fold) for n, f in self.finders.items()]
        return (*(CHOICE[n] if n in CHOICE else LABELLED[n](self.choices) for n in self.metrics), *found)

    def read(self, reader: str = "") -> Read:
        """The reader of its rows."""
        name = reader or self.reader
        return table(self.columns, self.labels) if name == "table" else READERS[name]


@dataclass(frozen=True)
class Asked:
    """A row, the context it makes, and what may follow it with the text between them."""

    example: Example
    context: str
    continuations: Texts


def names() -> list[str]:
    """The built-in tasks."""
    folder = files("acclimate").joinpath("benchmarks")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@lru_cache(maxsize=256)
def load(name: str) -> Benchmark:
    """The built-in task of that name, or the one in a .yaml file. UsageError for a name that there is not."""
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return _parsed(Path(name).read_text(encoding="utf-8"), Path(name).stem)
    if name not in names():
        raise UsageError(unknown("task", name, names()) + " harness:NAME asks lm-evaluation-harness for its task.")
    return _parsed(files("acclimate").joinpath("benchmarks", f"{name}.yaml").read_text(encoding="utf-8"), name)


def _parsed(text: str, name: str) -> Benchmark:
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}.yaml is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(given, dict):
        raise InputError(f"{name}.yaml holds no task; it is a table of {', '.join(f.name for f in fields(Benchmark))}.")
    task: Benchmark = _built(Benchmark, {"name": name, **given}, f"{name}.yaml")
    for what, one, there in (
        *(
            ("reader", reader, ("table", *READERS))
            for reader in (task.reader, (task.shots and task.shots.reader) or "table")
        ),
        *(("metric", metric, (*CHOICE, *LABELLED)) for metric in task.metrics),
    ):
        if one not in there:
            raise InputError(f"{name}.yaml: {unknown(what, one, there)}")
    return task


def _built(kind: type, given: Mapping[str, Any], where: str) -> Any:
    """A dataclass from its table. InputError for a key that there is not, or that is missing."""
    known = {f.name: f for f in fields(kind)}
    for key in given:
        if key not in known:
            raise InputError(f"{where}: {unknown('key', key, known)}")
    for name, one in known.items():
        if name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise InputError(f"{where} has no {name}; it needs one.")
    return kind(**{key: _value(key, value, where) for key, value in given.items()})


def _value(key: str, value: Any, where: str) -> Any:
    if key == "shots":
        return _built(Shots, value, f"{where}, shots")
    if key == "finders":
        return {name: _built(Finder, found or {}, f"{where}, {name}") for name, found in value.items()}
    if key == "columns":
        return {ours: _texts(theirs) for ours, theirs in value.items()}
    return _texts(value) if key in ("files", "metrics", "labels", "choices", "ignored", "stops") else value


def _texts(value: Any) -> Texts:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def questions(task: Benchmark, folder: Path, limit: int = 0) -> list[Asked]:
    """The task's rows as the model is asked them; limit: the first ones of each group, 0 is all."""
    rows = examples(_found(task.name, task.files, folder), task.read())
    rows = tuple(_first(rows, task.group, limit or len(rows)))
    pool = _pool(task, folder)
    return [_asked(task, row, shots) for row, shots in zip(rows, _drawn(task, rows, pool), strict=True)]


def _first(rows: Sequence[Example], group: str, limit: int) -> Iterator[Example]:
    seen: Counter[str] = Counter()
    for row in rows:
        seen[name := part_of(group, row)] += 1
        if seen[name] <= limit:
            yield row


def part_of(group: str, row: Example) -> str:
    """The part of a benchmark that a row belongs to, its subject say."""
    return str(row.fields[group]) if group else ""


def _found(name: str, patterns: Texts, folder: Path) -> list[Path]:
    for pattern in patterns:
        if paths := sorted(folder.glob(pattern)):
            return paths
    raise SourceError(
        f"{name} has no data in {folder}; it looks for {' or '.join(patterns)}. --data-folder names another."
    )


def _pool(task: Benchmark, folder: Path) -> tuple[Example, ...]:
    if task.shots is None or not task.shots.count:
        return ()
    return examples(_found(task.name, task.shots.files, folder), task.read(task.shots.reader))


def _drawn(task: Benchmark, rows: Sequence[Example], pool: Sequence[Example]) -> Iterator[tuple[Example, ...]]:
    """The shots of each row."""
    draws = Random(SEED)
    for row in rows:
        if task.shots is None or not task.shots.count:
            yield ()
            continue
        by = task.shots.by
        near = [shot for shot in pool if not by or shot.fields[by] == row.fields[by]]
        if len(near) < task.shots.count:
            raise DataError(
                f"{task.name} needs {task.shots.count} worked examples for {row.where}; there are {len(near)}."
            )
        yield tuple(near[: task.shots.count] if task.shots.draw == "first" else draws.sample(near, task.shots.count))


def _asked(task: Benchmark, row: Example, shots: Sequence[Example]) -> Asked:
    told = {**(shots[0].fields if shots else {}), **row.fields}
    pieces = [_text(task.description, told, row)]
    for shot in shots:
        pieces += [_text(task.prompt, shot.fields, shot), task.delimiter, _answer(task, shot), "\n\n"]
    context = "".join([*pieces, _text(task.prompt, row.fields, row)])
    if task.max_new:
        return Asked(replace(row, prompt=context, target=_text(task.target, row.fields, row)), context, ())
    choices = _choices(task, row)
    right = next((i for i, weight in enumerate(row.fields["weights"]) if weight == 1), 0)
    target = _text(task.target, row.fields, row) if task.target else choices[right]
    example = replace(row, prompt=context, target=target, fields={**row.fields, "choices": choices})
    return Asked(example, context, tuple(task.delimiter + choice for choice in choices))


def _answer(task: Benchmark, shot: Example) -> str:
    if task.shown:
        return _text(task.shown, shot.fields, shot)
    return _choices(task, shot)[list(shot.fields["weights"]).index(1)]


def _choices(task: Benchmark, row: Example) -> Texts:
    if task.choices:
        return tuple(_text(choice, row.fields, row) for choice in task.choices)
    return tuple(map(str, row.fields["choices"]))


def _text(source: str, values: Mapping[str, Any], row: Example) -> str:
    try:
        return compiled(source)(values) if "{" in source else source
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None


def answers(task: Benchmark, asked: Sequence[Asked], model: Continuing, tick: Tick | None = None) -> list[Output]:
    """What the model answers, in order. tick hears of rows that are scored or written."""
    if task.max_new:
        prompts = model.prompts([one.context for one in asked], task.max_new)
        texts = model.continued(prompts, task.max_new, task.stops, tick=tick)
        return [_output(row, text) for row, text in zip(prompts, texts, strict=True)]
    rows = model.rows([(one.context, continuation) for one in asked for continuation in one.continuations])
    values = iter(zip(rows, model.logprobs(rows, tick), strict=True))
    return [_chosen(one, list(islice(values, len(one.continuations)))) for one in asked]


def expected(output: Output) -> Output:
    """The answer as a number: the mean of choices that are numbers, each weighed by its share of their probability."""
    try:
        value = sum(float(np.exp(share)) * float(choice) for choice, share in log_shares(output.scores).items())
    except ValueError:
        raise InputError(f"Correlations need choices that are numbers, not {', '.join(output.scores)}.") from None
    return replace(output, value=value)


def _chosen(one: Asked, scored: Sequence[tuple[Encoded, float]]) -> Output:
    choices: Texts = one.example.fields["choices"]
    twice = len(set(choices)) < len(choices)
    named = [f"{i}: {choice}" if twice else choice for i, choice in enumerate(choices)]
    best = max(range(len(choices)), key=lambda i: scored[i][1])
    return _output(scored[best][0], choices[best], dict(zip(named, (value for _, value in scored), strict=True)))


def _output(row: Encoded, text: str, scores: Mapping[str, float] | None = None) -> Output:
    prompt = row.source or (row.ids[: row.scored.index(True)] if scores else row.ids)
    return Output(text, scores or {}, prompt_ids=prompt, truncated=row.truncated)
