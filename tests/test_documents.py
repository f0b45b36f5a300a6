"""What is written is true: commands run, entries parse, files named exist and files that exist are named."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from jinja2 import Environment, meta
from torch import nn

import acclimate
from acclimate.cli.main import app
from acclimate.data.formats import FORMATS
from acclimate.errors import AcclimateError, InputError, Interrupted
from acclimate.methods import METHODS
from acclimate.methods.delta import Delta, attach
from acclimate.methods.targets import find
from acclimate.metrics import METRICS
from acclimate.recipe import Recipe, parse
from acclimate.run.leave_out import leaves_out
from tests import spelling, test_architecture, tiny

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "acclimate"
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md")
EVERY = sorted((ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path for path in EVERY if "\nrungs:" not in path.read_text(encoding="utf-8")]  # comparisons: test_recipe.py
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SMALL = ("evaluation.draws=20", "evaluation.forgetting=false", "training.precision=float32", "training.steps=2")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(name: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text(name), re.DOTALL | re.MULTILINE)


def commands(name: str) -> list[list[str]]:
    """The lines of the blocks of commands as words, without prompt and comment."""
    blocks = [block for language, block in fences(name) if language in ("", "console", "sh")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"make |(\S*/)?acclimate ", line)]


def codes(name: str) -> list[str]:
    """Everything between single backticks outside the fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text(name), flags=re.DOTALL | re.MULTILINE))


def rows_after(name: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    part = text(name).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return cells[2:]


def call(*words: str) -> None:
    """One call of the command line that must succeed."""
    assert not app(list(words), standalone_mode=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder of a few thousand weights."""
    folder = tmp_path_factory.mktemp("documents") / "model"
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_for(recipe: Recipe, first: int, count: int) -> list[dict[str, Any]]:
    """Rows with every column that a recipe's template, columns, target and labels ask for; those of heads by name."""
    if recipe.task.metrics[0] == "f1 error":
        kinds = [kind for each in recipe.objective.kinds.values() for kind in each]
        spans = [[{"start": 0, "end": 3, "kind": kinds[n % len(kinds)]}] for n in range(first, first + count)]
        return [
            {"prompt": f"say {n}", "completion": "bad, good.", "spans": each} for n, each in enumerate(spans, first)
        ]
    if recipe.task.metrics[0] == "pair_accuracy":
        return [
            {"prompt": f"say {n}", "chosen": f"good dog {n}", "rejected": "bad"} for n in range(first, first + count)
        ]
    if recipe.task.metrics[0] == "entity_f1":
        return [
            {"tokens": ["Ada", "in", f"Rome{n}"], "tags": ["B-person", "O", "B-place"]}
            for n in range(first, first + count)
        ]
    if recipe.task.threshold == "dev":
        halves = {n: recipe.task.labels[n % 2] for n in range(first, first + count)}
        return [{"sentence1": f"one {n}", "sentence2": f"two {n}", "label": label} for n, label in halves.items()]
    environment = Environment()
    asked = meta.find_undeclared_variables(environment.parse(recipe.task.template))
    theirs = {ours: names[0] for ours, names in recipe.data.columns.items()}
    answer = recipe.data.target or ("label" if recipe.task.labels else "completion")
    labels = recipe.task.labels or ("a short answer",)
    return [
        {
            **{theirs.get(name, name): f"text number {n} of the lazy dog" for name in asked},
            theirs.get(answer, answer): labels[n % len(labels)],
        }
        for n in range(first, first + count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Commands


@pytest.mark.parametrize("name", WRITTEN)
def test_documents_exist_and_promise_targets_that_the_makefile_has(name):
    targets = set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    named = [words[1] for words in commands(name) if words[0] == "make"]
    named += [code.split()[1] for code in codes(name) if code.startswith("make ")]
    assert set(named) <= targets


def test_demo_and_test_are_the_first_two_commands_and_what_the_machine_runs():
    assert [words[1] for words in commands("README.md")[:2]] == ["demo", "test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.search(r"^make .*\btest\b", text(".ci/run"), re.MULTILINE)
    recipe = re.search(r"^demo:.*\n\t.*acclimate run (\S+)$", text("Makefile"), re.MULTILINE)
    assert recipe is not None
    assert ROOT / recipe[1] in RECIPES


def test_the_readme_s_own_file_goes_the_whole_way(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (recipe,) = [block for language, block in fences("README.md") if language == "yaml"]
    (tmp_path / "my.yaml").write_text(recipe, encoding="utf-8")
    (shown,) = [json.loads(code) for code in codes("README.md") if code.startswith('{"')]
    labels = parse(recipe).task.labels
    assert shown["label"] in labels
    write(tmp_path / "my.jsonl", [{**shown, "text": f"{shown['text']} {n}", "label": labels[n % 2]} for n in range(60)])
    ran = []
    for _, verb, *words in [line for line in commands("README.md") if line[0] != "make"]:
        small = (f"model={model}", *SMALL) if verb in ("run", "plan") else ()
        call(verb, *words, *small, *(["--quiet"] if verb == "run" else []))
        ran.append(verb)
    assert {"validate", "plan", "run"} <= set(ran)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("my-")
    assert f"report: runs/{folder.name}/report.html" in capsys.readouterr().out
    kept = re.search(r"The run folder holds (.*?)\.\n", text("README.md"), re.DOTALL)
    assert kept is not None
    assert all((folder / name).exists() for name in re.findall(r"`([\w.]+/?)`", kept[1]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.jsonl", "my.yaml", "runs"]


@pytest.mark.parametrize("name", WRITTEN)
def test_every_verb_and_option_named_exists(name):
    spoken = [
        shlex.split(code.replace("[", " ").replace("]", " ")) for code in codes(name) if code.startswith("acclimate ")
    ]
    for words in [code[1:] for code in spoken] + [line[1:] for line in commands(name) if line[0] != "make"]:
        if words and not words[0].startswith("-"):
            assert words[0] in VERBS, words
            known = {option for parameter in VERBS[words[0]].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, words


def test_every_verb_is_named():
    shown = {words[1] for words in map(str.split, codes("README.md")) if len(words) > 1 and words[0] == "acclimate"}
    assert VERBS.keys() - {"env"} <= shown
    (line,) = [line for line in text("CHANGELOG.md").splitlines() if line.startswith("- Verbs: ")]
    assert set(re.findall(r"`(\w+)`", line)) == VERBS.keys()
    assert re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)[1] == acclimate.__version__  # type: ignore[index]


@pytest.mark.parametrize("name", WRITTEN)
def test_recipe_entries_parse(name):
    keys = tuple(f"{entry.name}: " for entry in fields(Recipe))
    for code in [code for code in codes(name) if code.startswith(keys)]:
        given = yaml.safe_load(code.replace("<name>", "lora").replace("[…]", "[one, two]").replace("…", "some"))
        table = {"model": "m", "data": {"train": "r"}}
        parse(json.dumps({**table, **given}), f"{name}: {code}")


def test_the_lists_of_the_readme_are_those_of_the_package():
    (measured,) = [what for what, how in rows_after("README.md", "What works") if "metrics: […]" in how]
    said = {word.strip().lower().replace("-", "_").replace(" ", "_") for word in measured.split(",")}
    families = {name.lower().rstrip("12l") if name.startswith("rouge") else name for name in METRICS}
    assert said == families
    (listed,) = re.findall(
        r"^Rows understood without being told: (.*?)\. \(", text("README.md"), re.DOTALL | re.MULTILINE
    )
    shown = [set(re.findall(r"`(\w+)`", one)) for one in listed.split(";")]
    assert len(shown) == len(FORMATS)
    assert all(any(set(form.needs) <= columns for columns in shown) for form in FORMATS)


def test_exit_statuses_are_as_written():
    said = dict(re.findall(r"(\d) (the run failed|the input is wrong|stopped)", text("README.md")))
    kinds = {AcclimateError: "the run failed", InputError: "the input is wrong", Interrupted: "stopped"}
    assert {str(kind.status): words for kind, words in kinds.items()} == said


# Recipes


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_runs(path, model, tmp_path, capsys):
    recipe = parse(path.read_text(encoding="utf-8"), str(path))
    if recipe.data.mixture:
        mixture_runs(path, model, tmp_path, recipe)
        return
    train = write(tmp_path / "train.jsonl", rows_for(recipe, 0, 30))
    test = write(tmp_path / "test.jsonl", rows_for(recipe, 100, 8))
    small = (
        *SMALL,
        "task.max_new_tokens=4",
        "data.max_tokens=0",
        "data.dev=",
        "task.head=true" * (recipe.model == "minilm"),
        f"model={model}",
    )
    small = tuple(filter(None, small))
    call(
        "run", str(path), f"data.train={train}", f"data.test={test}", *small, "--out", str(tmp_path / "run"), "--quiet"
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training"]["steps"] == 2
    assert report["data"]["test"]["rows"] == 8
    assert set(report["result"]["scores"]) == set(recipe.task.metrics)
    assert "→" in capsys.readouterr().out


def mixture_runs(path: Path, model: Path, tmp_path: Path, recipe: Recipe) -> None:
    """A recipe of Natural Instructions, on tasks of ours: one of every category that it holds out, and one more."""
    for name in (*recipe.data.mixture.hold_out, "Judging"):
        task = {
            "Definition": [f"This is {name}: repeat the word."],
            "Categories": [name],
            "Positive Examples": [{"input": "dog", "output": "dog", "explanation": "It is the word."}],
            "Negative Examples": [],
            "Instances": [{"id": str(i), "input": f"word {i}", "output": [f"word {i}"]} for i in range(40)],
        }
        (tmp_path / f"task_{name.replace(' ', '_')}.json").write_text(json.dumps(task))
    sources = f"data.mixture.sources=[{{natural_instructions: {tmp_path}, parts: [definition, positive], cap: 20}}]"
    small = (*SMALL, "task.max_new_tokens=4", "data.limit.test=14", "data.max_tokens=0", f"model={model}")
    call("run", str(path), sources, *small, "--out", str(tmp_path / "run"), "--quiet")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    if leaves_out(recipe):
        assert [row["cluster"] for row in report["held_out"]] == ["Judging", "each"]
        return
    assert set(report["groups"]["tasks"]) == {f"task_{name.replace(' ', '_')}" for name in recipe.data.mixture.hold_out}


def test_recipes_say_what_they_are_for():
    assert RECIPES
    for path in RECIPES:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        assert len(first) > 20


# Files


def test_the_map_and_the_files_agree():
    named = [re.findall(r"`([^`]+)`", cells[0])[0] for cells in rows_after("README.md", "Map of the files")]
    assert [name for name in named if not (ROOT / name).exists()] == []
    parts = [f"src/acclimate/{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")]
    assert sorted(parts) == sorted(name for name in named if name.startswith("src/acclimate/") and name.endswith("/"))
    assert {"recipes/", "docs/design.md", "tests/"} <= set(named)


@pytest.mark.parametrize("name", WRITTEN)
def test_paths_named_in_backticks_exist(name):
    paths = [code for code in codes(name) if re.fullmatch(r"(src|tests|docs|recipes)/[\w./-]*", code)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    inside = [code for code in codes(name) if re.fullmatch(r"(\w+/)?\w+\.py", code) and code not in paths]
    places = (SOURCE, ROOT / "tests", *(path.parent for path in SOURCE.glob("*/__init__.py")))
    assert [path for path in inside if not any((place / path).exists() for place in places)] == []


def test_the_layout_of_the_design_names_what_there_is():
    (layout,) = [block for _, block in fences("docs/design.md") if "errors.py" in block]
    folder, described = "", set()
    for line in layout.splitlines():
        head = line.split()[0] if line[:1].strip() else ""
        folder = head if head.endswith("/") else folder
        described |= {head} - {""}
        for file in re.findall(r"\w+\.py", line):
            assert (SOURCE / (file if file == head else f"{folder}{file}")).exists(), f"{folder}{file}"
    there = {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")} | {"errors.py", "recipe.py"}
    assert described == there


def test_the_order_of_imports_is_the_one_tested():
    said = re.search(r"never sideways: (.*?)\.\s`methods`", text("docs/design.md"), re.DOTALL)
    assert said is not None
    written = [{name.strip() for name in level.split(",")} for level in said[1].replace("\n", " ").split("<")]
    there = set(re.findall(r"\w+", said[1]))
    assert written == [level & there for level in test_architecture.LAYERS if level & there]


# CONTRIBUTING


def test_the_limits_are_those_tested():
    assert re.search(
        rf"at most {test_architecture.LINES} lines a file and {test_architecture.FUNCTION} a function",
        text("CONTRIBUTING.md"),
    )
    assert (
        f"≤ {test_architecture.LINES} lines a file, ≤ {test_architecture.FUNCTION} a function; median ≤ "
        f"{test_architecture.MEDIAN}" in text("docs/design.md")
    )
    assert 40 <= len((SOURCE / "methods" / "lora.py").read_text().splitlines()) <= 60  # "about fifty lines"


@dataclass(frozen=True)
class Shift:
    """A vector added to the answers of the targets: what CONTRIBUTING says is enough for a method."""

    targets: tuple[str, ...] = ("value",)

    def install(self, model: nn.Module, name: str = "default") -> None:
        for layer in find(model, self.targets).values():
            attach(layer, Moved(layer.weight.shape[0]), name)


class Moved(Delta):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.by.to(y.dtype)


def test_a_method_is_a_file_and_a_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "shift", Shift)
    call("list", "methods")
    assert re.search(r"^shift +A vector added to .* \[targets\]$", capsys.readouterr().out, re.MULTILINE)
    recipe = tmp_path / "r.yaml"
    train = write(tmp_path / "rows.jsonl", [{"text": f"dog {n}", "label": "ab"[n % 2]} for n in range(40)])
    recipe.write_text(
        f"model: {model}\ndata: {{train: {train}}}\nmethod: {{name: shift, targets: [key, value]}}\n"
        "task: {template: '{{ text }}:', labels: [a, b]}\n"
    )
    call("run", str(recipe), *SMALL, "training.rate=0.1", "--out", str(tmp_path / "run"), "--quiet")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["method"] == "shift"
    assert report["trainable_parameters"] == 2 * 2 * 16  # two layers, keys and values of 2 heads × 8
    capsys.readouterr()
    call(
        "evaluate",
        "--model",
        str(model),
        "--adapter",
        str(tmp_path / "run" / "adapter"),
        "--recipe",
        str(recipe),
        "--json",
    )
    found = json.loads(capsys.readouterr().out)["scores"]
    assert found["accuracy"]["value"] == report["result"]["scores"]["accuracy"]["value"]
