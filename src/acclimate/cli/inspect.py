"""validate, list and env."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from acclimate.data.examples import Example
from acclimate.data.prompts import Prompt, PromptSet
from acclimate.data.read import validate
from acclimate.data.sources import list_data, list_models, resolve_data
from acclimate.errors import DataError, UsageError, unknown

SHOWN = 2  # rows of a preview
LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "jinja2",
    "sacrebleu",
    "rouge-score",
    "pyarrow",
    "peft",
)


def validate_file(path: Path, labels: tuple[str, ...], columns: list[str], as_json: bool) -> None:
    """The verb `validate`: a data file's problems, or a recipe's with those of its data."""
    if path.suffix in (".yaml", ".yml"):
        _validate_recipe(path)
        return
    renamed = dict(_pair(column) for column in columns)
    found = validate(path, columns=renamed, labels=labels)
    if as_json:
        problems = [{"where": p.where, "rule": p.rule, "message": p.message} for p in found.problems]
        kind = found.kind.__name__ if found.kind else None
        print(json.dumps({"rows": found.total, "kind": kind, "rules": dict(found.rules), "problems": problems}))
    else:
        for problem in found.problems:
            print(problem.message)
        print(f"{path}: {found.total:,} rows of kind {found.kind.__name__ if found.kind else 'unknown'}.")
    if found.rules:
        totals = ", ".join(f"{rule}: {count}" for rule, count in found.rules.items())
        raise DataError(f"{path} has {sum(found.rules.values())} bad rows ({totals}).")


def _pair(text: str) -> tuple[str, str]:
    ours, sign, theirs = text.partition("=")
    if not sign or not ours or not theirs:
        raise UsageError(f"{text!r} renames nothing; write ours=theirs, such as prompt=question.")
    return ours, theirs


def _validate_recipe(path: Path) -> None:
    from acclimate.metrics import choose
    from acclimate.recipe import load
    from acclimate.run.parts import parts

    recipe = load(path)
    choose(recipe.task.metrics, recipe.task.labels or None)
    found = parts(recipe.data, recipe.task)
    for name in ("train", "dev", "test"):
        part = getattr(found, name)
        dropped = ", ".join(f"{rule}: {count}" for rule, count in part.dropped.items()) or "none"
        print(f"{name}: {len(part.rows):,} rows of {part.name}; left out: {dropped}.")
    for warning in found.warnings:
        print(f"note: {warning}")
    unlabelled = [row.where for row in found.test.rows if isinstance(row, Example) and not row.target]
    if unlabelled:
        raise DataError(f"{unlabelled[0]} has no answer; {len(unlabelled)} test rows lack one.")
    print(f"{path} is a good recipe.")


def list_things(what: str, as_json: bool, folder: Path | None = None, data: str = "") -> None:
    """The verb `list`. folder: where adapters are looked for; it belongs to them alone."""
    if data:
        raise UsageError(f"`list {what}` reads no data; `list templates NAME --data FILE` does.")
    if what == "adapters":
        _list_adapters(folder or Path(), as_json)
        return
    if folder is not None:
        raise UsageError(f"`list {what}` looks into no folder; `list adapters FOLDER` does.")
    tables = {
        "models": lambda: {row["name"]: row["about"] for row in list_models()},
        "data": lambda: {row["name"]: row["about"] for row in list_data()},
        "methods": _methods,
        "objectives": _objectives,
        "metrics": _metrics,
        "samplers": _samplers,
        "schedules": _schedules,
        "tasks": _tasks,
        "templates": _templates,
    }
    if what not in tables:
        raise UsageError(unknown("list", what, [*tables, "adapters"]))
    table = tables[what]()
    if as_json:
        print(json.dumps([{"name": name, "about": about} for name, about in table.items()], ensure_ascii=False))
        return
    width = max(map(len, table))
    for name, about in table.items():
        print(f"{name:<{width}}  {about}")


def _list_adapters(folder: Path, as_json: bool) -> None:
    from acclimate.interchange.shelf import shelf

    rows = shelf(folder)
    if as_json:
        print(json.dumps([asdict(row) | {"path": str(row.path)} for row in rows], ensure_ascii=False))
        return
    width = max((len(str(row.path)) for row in rows), default=0)
    for row in rows:
        print(f"{row.path!s:<{width}}  {row.method} of {row.model or 'no named base'}, {row.date}, {row.bytes:,} bytes")


def _methods() -> dict[str, str]:
    from acclimate.methods import METHODS

    return _lines(METHODS)


def _objectives() -> dict[str, str]:
    from acclimate.objectives import OBJECTIVES

    return _lines(OBJECTIVES)


def _metrics() -> dict[str, str]:
    from acclimate.metrics import describe

    return describe()


def _samplers() -> dict[str, str]:
    from acclimate.recipe import SAMPLERS

    return _lines(SAMPLERS)


def _schedules() -> dict[str, str]:
    from acclimate.training.rates import SCHEDULES

    return _lines(SCHEDULES)


def _tasks() -> dict[str, str]:
    from acclimate.evaluation.benchmarks import load, names

    return {name: load(name).about for name in names()}


def _templates() -> dict[str, str]:
    from acclimate.data.promptsets import builtin, prompt_set

    sets = {name: prompt_set(name) for name in builtin()}
    return {name: f"{made.task}, cluster {made.cluster}, {len(made.prompts)} prompts" for name, made in sets.items()}


def preview(name: str, data: str, as_json: bool) -> None:
    """The verb `list templates NAME`: its prompts, or the first rows of `data` in each of them."""
    from acclimate.data.promptsets import prompt_set

    made = prompt_set(name)
    if not data:
        columns = ", ".join(made.columns) or "those of its data set"
        shown = [asdict(prompt) for prompt in made.prompts]
        said = [f"== {p.name}{' (turned around)' * p.turned}\n{p.input}\n=> {p.target}" for p in made.prompts]
        head = f"{made.task}, cluster {made.cluster}, columns {columns}"
    else:
        rows = [(prompt, example) for prompt in made.prompts for example in _first_rows(made, prompt, data)]
        shown = [{"template": p.name, "prompt": e.prompt, "answers": e.answers, "where": e.where} for p, e in rows]
        said = [f"== {p.name}, {e.where}\n{e.prompt}\n=> {' | '.join(e.answers)}" for p, e in rows]
        head = f"{made.task}, cluster {made.cluster}, the first rows of {data}"
    print(json.dumps(shown, ensure_ascii=False) if as_json else "\n\n".join([head, *said]))


def _first_rows(made: PromptSet, prompt: Prompt, data: str) -> list[Example]:
    """Of the first SHOWN rows, those of which the prompt has something to say."""
    from acclimate.data.instruction import raw_rows

    examples = []
    for where, row in islice(raw_rows(resolve_data(data), {}), SHOWN):
        if isinstance(row, DataError):
            raise row
        example = made.render(prompt, row, where)
        examples += [example] if example is not None else []
    return examples


def _lines(classes: Mapping[str, type]) -> dict[str, str]:
    return {name: f"{_first(cls)} {_options(cls)}".strip() for name, cls in classes.items()}


def _first(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def _options(cls: type) -> str:
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    return f"[{', '.join(names)}]" if names else ""


def show_environment(as_json: bool) -> None:
    """The verb `env`."""
    import torch

    from acclimate.data.sources import cache
    from acclimate.models.precision import choose, device, rate
    from acclimate.training.decided import decided

    table = {
        "acclimate": version("acclimate"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "precision": str(choose("auto", device())).removeprefix("torch."),
        "cpu_gflops_float32": round(rate(torch.float32) / 1e9),
        "cpu_gflops_bfloat16": round(rate(torch.bfloat16) / 1e9),
        **decided(),
        "cache": str(cache()),
        **{name: _version(name) for name in LIBRARIES},
    }
    if as_json:
        print(json.dumps(table))
        return
    for name, value in table.items():
        print(f"{name:<20} {value}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
