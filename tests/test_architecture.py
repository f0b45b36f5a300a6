"""The project's own rules, read off the syntax trees and off a fresh process (docs/design.md; G35, G37).

Exceptions are named here, one by one, with their reason: whoever adds one has to say why.
"""

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "acclimate"
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in FILES.items()}

# Bottom first; those of one line know nothing of each other. `run` carries a recipe out, so it lies above it.
LAYERS = (
    {"errors"},
    {"data"},
    {"tokens"},
    {"models"},
    {"methods", "metrics", "generation"},
    {"training"},
    {"objectives"},
    {"rewards", "prompting", "curation", "interchange"},
    {"evaluation"},
    {"report"},
    {"recipe"},
    {"run"},
    {"cli", "serving", "labelling"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
ENTRANCES = {"__init__", "__main__"}  # of the package itself

LINES, FUNCTION, MEDIAN = 400, 40, 10
FORWARDS = {  # **named handed on, and why
    "models/attention.py": "transformers' attention interface: what else a model passes belongs to the plain function"
}
BROAD = {  # except Exception, and why
    "report/trackers.py": "whatever a foreign tracker raises must not cost the run (G31)"
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BANNED = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.dump", "os.system", "os.popen"),
    *("numpy.load", "np.load", "runpy.run_path", "runpy.run_module"),
}
OFF = ("trust_remote_code", "allow_pickle")  # settings that may only ever be False
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "kwargs", "data2"}


def part_of(name: str) -> str:
    """The part of the package that a file belongs to.

    >>> part_of("data/read.py"), part_of("errors.py")
    ('data', 'errors')
    """
    return Path(name).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def dotted(node: ast.expr) -> str:
    """`torch.load` of the expression torch.load; empty for anything but names and attributes."""
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def broken_imports(name: str, tree: ast.AST) -> list[str]:
    """Imports that do not point down."""
    own = part_of(name)
    theirs = [(line, full, full.split(".")[1]) for line, full in imports(tree) if full.startswith("acclimate.")]
    return [
        f"{name}:{line} imports {full}"
        for line, full, part in theirs
        if own not in ENTRANCES and part in LEVEL and part != own and LEVEL[part] >= LEVEL[own]
    ]


def test_every_part_has_its_layer():
    assert {part_of(name) for name in FILES} - ENTRANCES <= LEVEL.keys()
    assert len(LEVEL) == sum(map(len, LAYERS))


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    assert broken_imports(name, TREES[name]) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("data/read.py", "from acclimate.tokens.codec import Codec"),
        ("metrics/labels.py", "from acclimate.generation import decode"),
        ("methods/lora.py", "import acclimate.objectives.lm"),
        ("run/carry.py", "def f():\n    from acclimate.cli import main"),
        ("errors.py", "from acclimate.data.lines import x"),
    ],
)
def test_an_import_that_points_up_or_sideways_would_be_seen(name, line):
    assert broken_imports(name, ast.parse(line))


def test_methods_and_objectives_never_meet():
    meeting = [
        (name, full)
        for name, tree in TREES.items()
        for _, full in imports(tree)
        if {part_of(name), *full.split(".")[1:2]} == {"methods", "objectives"} and full.startswith("acclimate.")
    ]
    assert meeting == []


def test_heavy_libraries_stay_where_they_belong():
    allowed = {"transformers": {"models", "tokens"}, "tokenizers": {"models", "tokens"}, "huggingface_hub": {"models"}}
    without_torch = {"errors", "data", "metrics", "report", "recipe"}
    for name, tree in TREES.items():
        for line, full in imports(tree):
            library = full.split(".")[0]
            assert part_of(name) in allowed.get(library, {part_of(name)}), f"{name}:{line} imports {full}"
            assert not (library == "torch" and part_of(name) in without_torch), f"{name}:{line} imports torch"


def test_sizes():
    long = [f"{name} has {len(path.read_text().splitlines())} lines" for name, path in FILES.items()]
    assert [said for said in long if int(said.split()[2]) > LINES] == []
    spans = [
        (node.end_lineno - node.lineno + 1, f"{name}:{node.lineno} {node.name}")
        for name, tree in TREES.items()
        for node in functions(tree)
    ]
    assert [said for size, said in spans if size > FUNCTION] == []
    assert median(size for size, _ in spans) <= MEDIAN


def test_nothing_is_handed_on_unseen():
    found = {}
    for name, tree in TREES.items():
        for node in functions(tree):
            caught = node.args.kwarg.arg if node.args.kwarg else None
            spread = [
                dotted(k.value) for c in ast.walk(node) if isinstance(c, ast.Call) for k in c.keywords if not k.arg
            ]
            if caught and caught in spread:
                found[name] = node.name
    assert found.keys() == FORWARDS.keys(), found


def undocumented(name: str, tree: ast.Module, promised: set[str]) -> Iterator[str]:
    """Public classes, functions and methods without a docstring; a method may have it from the class it stands in for."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{name}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from (
                    f"{name}:{method.lineno} {node.name}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                    if not ast.get_docstring(method) and method.name not in promised
                )


def test_what_is_public_says_what_it_is():
    classes = [node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)]
    above = {base.split(".")[-1] for node in classes for base in map(dotted, node.bases)}
    abstract = [node for node in classes if node.name in above or "Protocol" in map(dotted, node.bases)]
    promised = {
        method.name
        for node in abstract
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }
    modules = [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    missing = [said for name, tree in TREES.items() for said in undocumented(name, tree, promised)]
    assert modules + missing == []


def broad(tree: ast.AST) -> list[int]:
    """Lines that catch or silence everything."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            named = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            lines += [node.lineno for one in named if one is None or dotted(one) in ("Exception", "BaseException")]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
            lines += [node.lineno for one in node.args if dotted(one) in ("Exception", "BaseException")]
    return lines


def test_no_error_is_caught_that_was_not_meant():
    assert {name for name, tree in TREES.items() if broad(tree)} == BROAD.keys()
    for text in ("try: x\nexcept: y", "try: x\nexcept (KeyError, Exception): y", "with suppress(BaseException): y"):
        assert broad(ast.parse(text))


def test_names_say_what_things_are():
    names = {
        **{f"{name} (file)": Path(part).stem for name in FILES for part in Path(name).parts},
        **{
            f"{name}:{node.lineno}": label
            for name, tree in TREES.items()
            for node in ast.walk(tree)
            if (label := getattr(node, "name", None) or getattr(node, "arg", None)) and isinstance(label, str)
        },
    }
    vague = {where: label for where, label in names.items() if label.lower().strip("_") in VAGUE}
    assert vague == {}
    classes = [node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [n for n in classes if n.lstrip("_").startswith("Base") or n.endswith(("Manager", "Handler"))] == []


def dangers(tree: ast.AST) -> list[str]:
    """What could run code that is not ours: pickles, eval, loaders of them, foreign model code."""
    found = [f"{line} imports {full}" for line, full in imports(tree) if full.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in BANNED:
                found.append(f"{node.lineno} calls {dotted(node.func)}")
            settings = [(k.arg, k.value) for k in node.keywords]
            if dotted(node.func).startswith("subprocess.") and any(k.arg == "shell" for k in node.keywords):
                found.append(f"{node.lineno} asks a shell")
        elif isinstance(node, ast.Dict):
            settings = [(getattr(k, "value", None), v) for k, v in zip(node.keys, node.values, strict=True)]
        else:
            continue
        on = [(k, v) for k, v in settings if k in OFF and not (isinstance(v, ast.Constant) and v.value is False)]
        found += [f"{v.lineno} sets {k}" for k, v in on]
    return found


def test_nothing_runs_foreign_code():
    assert {name: found for name, tree in TREES.items() if (found := dangers(tree))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "torch.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval('1')",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)",
        "options = {'trust_remote_code': True}",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_a_danger_would_be_seen(text):
    assert dangers(ast.parse(text))
    assert dangers(ast.parse("model.eval(); yaml.safe_load(x); {'trust_remote_code': False}")) == []


IMPORTING = """
import importlib, json, sys, threading, types
from collections.abc import Sized

theirs, ours = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for module, name in theirs:  # what the package imports, so that only its own doing is seen
    getattr(importlib.import_module(module), name) if name else importlib.import_module(module)

def picture():
    found = {}
    for path, module in list(sys.modules.items()):
        if path.split(".")[0] in ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "jinja2", "yaml"):
            for name, value in list(vars(module).items()):
                found[path, name] = value
                if isinstance(value, type):
                    found.update({(path, name, inner): thing for inner, thing in list(vars(value).items())})
    return found, {key: len(value) for key, value in found.items() if isinstance(value, dict | list | set)}

before, sizes = picture()
threads, done, changed_by_us = threading.active_count(), [], object()
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate", "os.putenv")

def watch(event, given):
    if event == "open" and (set("wax+") & set(given[1] or "") or given[1] is None and given[2] & (1 | 2 | 64)):
        done.append(f"open {given[0]} {given[1]}")  # 1, 2, 64: write, read and write, create
    elif event in WRITES or event.startswith(("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "signal.")):
        done.append(f"{event} {given}")

sys.addaudithook(watch)
for module in ours:
    importlib.import_module(module)
after, grown = picture()
changed = [key for key in after if after[key] is not before.get(key, changed_by_us)]
changed += [key for key in before if key not in after] + [key for key in sizes if grown.get(key) != sizes[key]]
print(json.dumps({"done": done, "changed": changed[:20], "threads": threading.active_count() - threads}, default=str))
"""


def child(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(SOURCE.parent),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


def test_importing_changes_nothing(tmp_path):
    theirs = {
        (node.module, alias.name) if isinstance(node, ast.ImportFrom) else (alias.name, "")
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if not (getattr(node, "module", None) or alias.name).startswith("acclimate")
    }
    ours = [
        ".".join(["acclimate", *Path(name).with_suffix("").parts]).removesuffix(".__init__")
        for name in FILES
        if name != "__main__.py"
    ]
    done = child("-c", IMPORTING, json.dumps(sorted(theirs)), json.dumps(ours), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"done": [], "changed": [], "threads": 0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("yaml.SafeLoader.construct_object = None", "changed"),
        ("yaml.new = 1", "changed"),
        ("yaml.SafeLoader.yaml_constructors['!x'] = None", "changed"),
        ("open('left.txt', 'w').close()", "done"),
        ("__import__('socket').socket()", "done"),
        ("__import__('os').mkdir('left')", "done"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "threads"),
    ],
)
def test_an_import_that_does_something_would_be_seen(line, where, tmp_path):
    (tmp_path / "naughty.py").write_text(f"import threading, yaml\n{line}\n")
    done = child("-c", IMPORTING, '[["yaml", ""]]', '["naughty"]', folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[where]


@pytest.mark.parametrize(
    "words",
    [["import acclimate.cli.main"], ["import runpy; runpy.run_module('acclimate', run_name='__main__')", "--help"]],
)
def test_the_command_line_starts_without_torch(words, tmp_path):
    last = "import sys, atexit; atexit.register(lambda: print({m.split('.')[0] for m in sys.modules}, file=sys.stderr))"
    code = f"{last}\n{words[0]}"
    done = child("-c", code, *words[1:], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(ast.literal_eval(done.stderr))
    assert "acclimate" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "numpy", "jinja2", "yaml", "pydantic"})
    assert list(tmp_path.iterdir()) == []


def test_help_takes_less_than_three_tenths_of_a_second(tmp_path):
    """Of the processor, not of the clock: other work on the machine does not count."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = child("-m", "acclimate", "--help", folder=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "compare" in done.stdout or "evaluate" in done.stdout
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 0.3
