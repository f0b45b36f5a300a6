"""Malformed files and recipes through the command line: status 2, a sentence that names the place, nothing written."""

from hashlib import sha256

import pytest

from acclimate.cli.main import app
from acclimate.errors import AcclimateError
from tests.malformed import cases

# places that the search for a file by name refuses before anything is read, in its own words
ELSEWHERE = {"folder", "absent", "near", "dangling", "suffix", "nowhere"}

TEMPLATE = """model: smollm2-135m-instruct
data: {data}
task: {task}
"""


@pytest.fixture(scope="module")
def malformed(tmp_path_factory):
    return cases(tmp_path_factory.mktemp("malformed"))


def digest(path):
    if not path.is_file() or path.stat().st_size > 10_000_000:
        return path.stat().st_size if path.exists() else None
    return sha256(path.read_bytes()).hexdigest()


def recipe_for(case, folder):
    """A recipe that reads the case; flow style in JSON is YAML as well."""
    import json

    data = {"train": str(case.path), "columns": dict(case.columns), "target": case.target}
    task = {"labels": list(case.labels)} if case.labels else {}
    path = folder / "recipe.yaml"
    path.write_text(TEMPLATE.format(data=json.dumps(data), task=json.dumps(task)), encoding="utf-8")
    return path


def test_there_are_more_than_two_hundred(malformed):
    assert len(malformed) >= 200
    assert len({case.name for case in malformed}) == len(malformed)


def test_every_one_is_refused_in_a_sentence(malformed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = []
    for case in malformed:
        before = digest(case.path)
        out = tmp_path / "out"
        try:
            app(["run", str(recipe_for(case, tmp_path)), "--out", str(out), "--quiet"], standalone_mode=False)
            wrong.append((case.name, "was accepted"))
        except AcclimateError as error:
            said = str(error)
            expected = case.path.name if case.name in ELSEWHERE else case.must_say
            if error.status != 2 or expected not in said or "Traceback" in said:
                wrong.append((case.name, error.status, case.must_say, said[:300]))
        if digest(case.path) != before or out.exists():
            wrong.append((case.name, "something was written"))
    assert not wrong, f"{len(wrong)} of {len(malformed)}: {wrong[:5]}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]
