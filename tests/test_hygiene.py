"""Nothing foreign runs, nothing is written where nobody asked, nothing goes over the network (G35 to G38), by the command line.

A canary is a file that exists only once somebody's code has run.
"""

import io
import json
import os
import pickle
import shutil
import socket
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from pytest_socket import SocketBlockedError
from safetensors import safe_open

from acclimate.cli.main import app
from acclimate.errors import AcclimateError
from tests import spelling, tiny

ROOT = Path(__file__).parent.parent
ASK = "is it good or bad? {{ text }}:"


class Bomb:
    """Unpickling it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, rows, a recipe and a finished run."""
    folder = tmp_path_factory.mktemp("hygiene")
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    tiny.llama(tied=True, vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"dog {n}", "label": ("bad", "good")[n % 2]} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.jsonl")},
        "task": {"template": ASK, "labels": ["bad", "good"]},
        "training": {"steps": 3, "tokens_per_step": 128, "precision": "float32", "checkpoint_every": 2},
        "evaluation": {"draws": 20, "forgetting": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(table))
    app(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--quiet"], standalone_mode=False)
    return folder


@pytest.fixture
def canary(tmp_path):
    """Must not be there in the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refused(*words: object) -> str:
    """The sentence with which the command line refuses: a status of 2, and no other error."""
    with pytest.raises(AcclimateError) as caught:
        app([str(word) for word in words], standalone_mode=False)
    assert caught.value.status == 2
    return str(caught.value)


def copied(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "model", tmp_path / "foreign"))


# Foreign code


def test_the_bomb_is_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))  # noqa: S301
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("alone", [True, False])
def test_pickled_weights_are_never_read(home, tmp_path, canary, alone):
    model = copied(home, tmp_path)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    if alone:
        (model / "model.safetensors").unlink()
        assert "pytorch_model.bin" in refused("generate", "--model", model, "dog", "--max-new", 1)
        assert "pytorch_model.bin" in refused("run", home / "recipe.yaml", f"model={model}", "--out", tmp_path / "run")
    else:
        app(["generate", "--model", str(model), "dog", "--max-new", "1"], standalone_mode=False)


@pytest.mark.parametrize("kind", ["llama", "foreign"])
def test_code_of_a_model_folder_does_not_run(home, tmp_path, canary, kind):
    model = copied(home, tmp_path)
    (model / "code.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Model: ...\nclass Config: ...\n")
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.Model", None]}
    (model / "config.json").write_text(json.dumps({**config, "auto_map": names, "model_type": kind}))
    said = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**said, "auto_map": names}))
    if kind == "foreign":
        assert "cannot be loaded" in refused("score", "--model", model, "dog")
    else:
        app(["score", "--model", str(model), "dog"], standalone_mode=False)  # a known kind needs no code of its own


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.safetensors", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_never_read(home, tmp_path, canary, name):
    adapter = tmp_path / "adapter"
    shutil.copytree(home / "run" / "adapter", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(pickle.dumps(Bomb(canary)))
    assert "adapter" in refused("generate", "--model", home / "model", "--adapter", adapter, "dog")


ESCAPES = [
    "{{ cycler.__init__.__globals__.os.mkdir(%r) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__()[80].__init__.__globals__ }}",
    "{%% for x in ().__class__.__base__.__subclasses__() %%}{{ x.__init__.__globals__['os'].mkdir(%r) }}{%% endfor %%}",
    "{{ lipsum.__globals__['os'].mkdir(%r) }}",
    "{{ (text | attr('__class__')).__mro__ }}",
    "{%% set x = '{0.__class__}'.format(42) %%}{{ x.__class__.mro() }}",
    "{%% include %r %%}",
    "{{ 'a' * 10**10 }}",
    "{%% for a in range(99999999) %%}{%% for b in range(99999999) %%}x{%% endfor %%}{%% endfor %%}",
]


def planted(template: str, canary: Path) -> str:
    return template % str(canary) if "%r" in template else template % ()


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_of_a_recipe_stays_in_its_sandbox(home, tmp_path, canary, template):
    evil = planted(template, canary)
    said = refused("run", home / "recipe.yaml", f"task.template=x {evil}", "--out", tmp_path / "run", "--quiet")
    assert "emplate" in said


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_of_a_model_stays_in_its_sandbox(home, tmp_path, canary, template):
    model = copied(home, tmp_path)
    (model / "chat_template.jinja").write_text(planted(template, canary).replace("text", "messages"))
    said = refused("generate", "--model", model, "dog", "--max-new", 1)
    assert "emplate" in said or "no tokens" in said  # what is forbidden may also be just nothing


@pytest.mark.parametrize(
    "line",
    [
        "model: !!python/object/apply:os.mkdir [CANARY]",
        "model: !!python/object/new:os.mkdir [CANARY]",
        "model: !!python/name:os.mkdir",
        "? !!python/object/apply:os.mkdir [CANARY]\n: x",
        "training: !!python/object/apply:os.mkdir {args: [CANARY]}",
        "task: {labels: !!python/object/apply:os.mkdir [CANARY, b]}",
    ],
)
def test_tags_of_yaml_run_nothing(home, tmp_path, canary, line):
    text = (home / "recipe.yaml").read_text()
    key = line.split(":")[0]
    kept = {k: v for k, v in yaml.safe_load(text).items() if k != key}
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"{line.replace('CANARY', str(canary))}\n{yaml.safe_dump(kept)}")
    refused("run", recipe, "--out", tmp_path / "run", "--quiet")
    refused("run", home / "recipe.yaml", f"{key}={line.partition(':')[2].replace('CANARY', str(canary))}")


def test_rows_that_look_like_templates_are_text(home, tmp_path, canary):
    # The texts hold a path that is another one each time, and so does the split by their hash: rows enough for any.
    rows = [{"text": f"{planted(ESCAPES[0], canary)} {n}", "label": ("bad", "good")[n % 2]} for n in range(160)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["run", str(home / "recipe.yaml"), f"data.train={tmp_path}/rows.jsonl", "training.steps=1"]
    app([*words, "--out", str(tmp_path / "run"), "--quiet"], standalone_mode=False)
    first = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert "{{ cycler.__init__" in first["prompt"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "cycler.__init__" in page


def test_rows_that_look_like_html_are_text(home, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = [{"text": f"{evil} {n}", "label": ("bad", "good")[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["run", str(home / "recipe.yaml"), f"data.train={tmp_path}/rows.jsonl", "training.steps=1"]
    app([*words, "--out", str(tmp_path / "run"), "--quiet"], standalone_mode=False)
    for name in ("report.html", "README.md"):
        assert "<script>alert" not in (tmp_path / "run" / name).read_text()
        assert "<img src=x" not in (tmp_path / "run" / name).read_text()


# Network


def test_the_suite_has_no_network():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"].split()
    assert "--disable-socket" in asked
    with pytest.warns(UserWarning, match="tried to use socket"), pytest.raises(SocketBlockedError):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)


# Files


def whole(path: Path) -> None:
    """The file is what its name says, and data only."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert list(file.keys())
    elif path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".jsonl":
        assert all(isinstance(json.loads(line), dict) for line in data.splitlines())
    elif path.suffix == ".yaml":
        assert yaml.safe_load(data)
    else:
        assert path.suffix in (".html", ".md"), path
        assert data.decode("utf-8").startswith(("<!", "---", "#"))


def test_a_run_folder_holds_data_and_text_only(home):
    files = [path for path in (home / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".yaml", ".html", ".md"}
    for path in files:
        whole(path)
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o111 == 0
    assert (home / "run" / ".lock").read_text().strip().isdigit()


_watched: list[list[str]] = []


def _watch(event: str, given: tuple[object, ...]) -> None:
    if not _watched or event not in ("open", "os.mkdir", "os.rename", "os.link", "os.symlink"):
        return
    path, *rest = given
    writes = event != "open" or set("wax+") & set(str(rest[0] or "")) or (rest[0] is None and int(rest[1]) & 0o103)  # type: ignore[call-overload]
    if writes and "__pycache__" not in str(path) and str(path) != os.devnull:
        _watched[-1].append(f"{event} {path}")


@contextmanager
def writes() -> Iterator[list[str]]:
    """What is opened for writing, made or renamed within the block."""
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


sys.addaudithook(_watch)  # for the rest of the process; it looks only while a list waits

READING = {
    "validate": ["validate", "{home}/rows.jsonl", "--label", "good", "--label", "bad"],
    "validate recipe": ["validate", "{home}/recipe.yaml"],
    "plan": ["plan", "{home}/recipe.yaml"],
    "generate": ["generate", "--model", "{home}/model", "--adapter", "{home}/run/adapter", "dog", "--max-new", "2"],
    "chat": ["chat", "--model", "{home}/model", "--max-new", "2"],
    "score": ["score", "--model", "{home}/model", "dog"],
    "evaluate": [
        "evaluate",
        "--model",
        "{home}/model",
        "--adapter",
        "{home}/run/adapter",
        "--data",
        "{home}/rows.jsonl",
    ],
    "list models": ["list", "models"],
    "list data": ["list", "data"],
    "list methods": ["list", "methods"],
    "env": ["env"],
    "no such file": ["validate", "nowhere.jsonl"],
    "no such recipe": ["run", "nowhere.yaml"],
    "no such model": ["run", "{home}/recipe.yaml", "model=nowhere", "--out", "{here}/out"],
    "bad option": ["run", "{home}/recipe.yaml", "training.stepz=3"],
}


def test_the_watch_sees(tmp_path):
    with writes() as seen:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").write_text("x")
        os.close(os.open(tmp_path / "c", os.O_CREAT | os.O_WRONLY))
        (tmp_path / "c").rename(tmp_path / "d")
        (tmp_path / "d").read_text()
    assert [line.split()[0] for line in seen] == ["os.mkdir", "open", "open", "os.rename"]


@pytest.mark.parametrize("name", READING)
def test_verbs_that_only_read_write_nothing(home, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    words = [word.replace("{home}", str(home)).replace("{here}", str(tmp_path)) for word in READING[name]]
    with writes() as seen:
        if name.startswith(("no such", "bad")):
            refused(*words)
        else:
            app(words, standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
    assert seen == [] or name == "no such model"  # whose folder was made and taken away again


def test_a_run_writes_into_its_folder_only(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(home / "model", tmp_path / "model")
    with writes() as seen:
        app(["run", str(home / "recipe.yaml"), "model=model", "--quiet"], standalone_mode=False)
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runs"]
    places = {Path(line.split(" ", 1)[1]) for line in seen}
    outside = {path for path in places if not (tmp_path / path).is_relative_to(tmp_path / "runs")}
    outside -= {Path("/proc/self/clear_refs")}  # no file: it asks the kernel to count this process's peak from now on
    assert outside == set()
    assert folder.name.startswith("recipe-")


@pytest.mark.parametrize(
    "words",
    [["merge", "--out", "{here}/new"], ["export", "--format", "peft", "--out", "{here}/new"]],
)
def test_conversions_write_their_folder_only(home, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("{here}", str(tmp_path)) for word in words]
    app([*given, "--model", str(home / "model"), "--adapter", str(home / "run" / "adapter")], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert {path.suffix for path in (tmp_path / "new").rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".jinja",
    }
