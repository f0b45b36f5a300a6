"""A hundred kills at random moments of whole runs: one valid newest checkpoint each time, and the same run in the end."""

import os
import subprocess
import sys

import pytest

from tests.runs import ROOT, same_run

KILLS = 100


@pytest.mark.timeout(1200)
def test_a_hundred_kills_end_in_the_same_run(home, straight, tmp_path):
    line = [sys.executable, "-m", "tests.crash.killer", str(home / "recipe.yaml"), str(tmp_path), str(KILLS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= KILLS
    runs = sorted(tmp_path.iterdir())
    assert runs
    for out in runs:
        same_run(straight, out)
