"""The bug museum: for every guarantee with a star a historical bug is planted, and the named test turns red.

A guarantee whose bug survives is not tested. The same tests are green on the package as it is.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.museum.bugs import BUGS, STARRED

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "acclimate"
pytestmark = pytest.mark.timeout(2400)  # the fixture runs them all, and its time is that of the first test that asks
BROKEN_PLANTS = ("SyntaxError", "NameError", "ImportError", "IndentationError", "UnboundLocalError")


def test_every_starred_guarantee_has_a_bug():
    assert {bug.guarantee for bug in BUGS.values()} == set(STARRED)


@pytest.mark.parametrize("name", BUGS)
def test_every_bug_has_its_place_and_its_test(name):
    bug = BUGS[name]
    assert (SOURCE / bug.file).read_text(encoding="utf-8").count(bug.old) == 1, "the code moved on: plant it anew"
    assert bug.new != bug.old
    file, *inner = bug.test.split("::")
    assert f"def {inner[-1].split('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def copied(folder: Path) -> Path:
    """A copy of the package with its compiled files, which hold as long as a file is not touched."""
    shutil.copytree(SOURCE, folder / "src" / "acclimate")
    return folder / "src"


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What the named tests said, by bug, and without any bug under the empty name."""
    home = tmp_path_factory.mktemp("museum")
    wanted = {"": sorted({bug.test for bug in BUGS.values()}), **{name: [bug.test] for name, bug in BUGS.items()}}
    folders = {name: home / str(number) for number, name in enumerate(wanted)}
    lines = ""
    for name, tests in wanted.items():
        source, scratch = copied(folders[name]), folders[name] / "scratch"
        scratch.mkdir()
        if bug := BUGS.get(name):
            file = source / "acclimate" / bug.file
            file.write_text(file.read_text(encoding="utf-8").replace(bug.old, bug.new), encoding="utf-8")
        request = {
            "source": source,
            "scratch": scratch,
            "tests": [f"tests/{test}" for test in tests],
            "most": int(bool(name)),
        }
        lines += json.dumps(request, default=str) + "\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    runner = [sys.executable, str(ROOT / "tests" / "museum" / "runner.py")]
    done = subprocess.run(runner, input=lines, capture_output=True, text=True, env=environment, cwd=home, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: json.loads((folder / "scratch" / "answer.json").read_text()) for name, folder in folders.items()}
    for name, folder in folders.items():
        found[name]["said"] = (folder / "scratch" / "output.txt").read_text(encoding="utf-8")[-1000:]
    for name, answer in found.items():
        assert answer["package"].startswith(str(folders[name])), "the tests ran on another copy of the package"
    return found


def test_without_a_bug_all_of_them_are_green(answers):
    clean = answers[""]
    assert clean["failed"] == {}
    for bug in BUGS.values():
        assert any(test.startswith(f"tests/{bug.test}") for test in clean["passed"]), bug.test


@pytest.mark.parametrize("name", BUGS)
def test_the_bug_is_seen(answers, name):
    failed, answer = answers[name]["failed"], answers[name]
    assert answer["code"] in (0, 1), f"pytest broke off with {answer['code']}: {answer['said']}"
    assert failed, f"{BUGS[name].guarantee} is not tested: this bug survives {BUGS[name].test}: {answer['said']}"
    assert all(said.startswith("call: ") for said in failed.values()), failed
    assert not any(kind in said for said in failed.values() for kind in BROKEN_PLANTS), failed
