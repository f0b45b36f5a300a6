"""Runs that are killed at random moments and gone on with: python -m tests.crash.killer RECIPE FOLDER KILLS.

A process of its own, which imports everything once and computes nothing itself: a child forked from a process in which
torch has already used its threads cannot use them.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from acclimate.recipe import Recipe, load
from acclimate.run.carry import Voice, carry
from acclimate.training.checkpoint import newest
from acclimate.training.folder import claim
from acclimate.training.signals import Stop
from tests.runs import SLOWER

SILENT = Voice(
    lambda line: None, lambda what, count: lambda done: None, lambda step, steps: None, lambda prepared: None
)


def start(recipe: Recipe, out: Path) -> int:
    """A child that begins the run or goes on with it."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with claim(out, resume=(out / "recipe.yaml").exists()) as run:
            carry(recipe, run, Stop(), SILENT)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def finished_before(pid: int, seconds: float) -> bool:
    """Whether the child ends by itself in so many seconds; otherwise it is killed. A child that fails is an error."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, "a run that was killed before could not go on"
            return True
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def main(path: str, folder: str, wanted: int) -> int:
    """Kill at least so many times, always ending with a finished run; returns how many kills it took."""
    recipe = load(Path(path), list(SLOWER))
    draw, kills, runs = random.Random(0), 0, 0
    while kills < wanted or not runs:
        out, last = Path(folder) / f"run{runs}", 0
        while not finished_before(start(recipe, out), draw.uniform(0.0, 1.5)):
            kills += 1
            found = newest(out / "checkpoints") if (out / "checkpoints").exists() else None
            assert not (found and found.skipped)
            assert (found.step if found else 0) >= last
            last = found.step if found else 0
            assert kills < 10 * wanted, "the run does not get ahead"
            if (out / "report.json").exists():  # killed on its way out
                break
        runs += 1
    return kills


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
