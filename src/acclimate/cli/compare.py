"""compare."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from acclimate.cli.adapt import different, leave_no_trace
from acclimate.cli.voice import voice
from acclimate.errors import InputError, ModelError, UsageError
from acclimate.report.comparison import comparison_page, lines
from acclimate.run.compare import Bench, bench, carry_base, carry_rungs, settled
from acclimate.run.rows import comparison
from acclimate.run.rungs import Comparison, Rung, load, stands_apart, table
from acclimate.training.checkpoint import atomic_write
from acclimate.training.folder import RunFolder, claim, new_folder
from acclimate.training.signals import stopping

FINISHED = "compare.json"  # the last file written: a folder that has it is finished


@dataclass(frozen=True)
class Wish:
    """How a comparison is carried out. only: the one rung of a child process, whose parent holds the folder."""

    resume: bool = False
    quick: bool = False
    jobs: int = 1
    quiet: bool = False
    only: str = ""


def compare_recipe(path: Path, overrides: list[str], out: Path | None, wish: Wish) -> None:
    """The verb `compare`."""
    found = load(path, overrides, wish.quick)
    steps = voice(wish.quiet or not sys.stderr.isatty())  # a log with the steps of all trainings would hide the rest
    speech = replace(steps, say=voice(wish.quiet).say)
    with stopping() as stop:
        if wish.only and out is not None:
            carry_rungs(bench(found, out, stop, speech), (wish.only,))
            return
        with _folder(found, path, out, wish.resume) as run:
            try:
                made = bench(found, run.path, stop, speech)
            except InputError:
                leave_no_trace(run)
                raise
            carry_base(made)
            if wish.jobs > 1:
                if first := tuple(
                    rung.name for rung in made.comparison.rungs if stands_apart(rung, made.comparison.shared)
                ):
                    carry_rungs(made, first)  # others learn from them
                _apart(made, wish.jobs)
            carry_rungs(made)
            _finish(made, run)


def _finish(made: Bench, run: RunFolder) -> None:
    """The page, then the numbers, then the table on standard output."""
    found = comparison(made)
    atomic_write(run.path / "compare.html", comparison_page(found))
    atomic_write(run.path / FINISHED, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for line in lines(found):
        print(line)
    print(f"comparison: {run.path / 'compare.html'}")
    if not found["best"]:
        raise ModelError(f"No rung could be carried out. {found['rows'][0]['failed']}")


def _folder(found: Comparison, path: Path, out: Path | None, resume: bool) -> RunFolder:
    if resume and out is None:
        raise UsageError("--resume needs --out with the folder of the unfinished comparison.")
    if out is None:
        return claim(new_folder(Path("runs"), path.stem, datetime.now()), resume=False)
    if (out / FINISHED).exists():
        raise UsageError(f"{out} holds a finished comparison, which is never written over; give another --out.")
    begun = out / "recipe.yaml"
    if resume and begun.exists() and path.resolve() != begun.resolve():
        _same(table(settled(found)), table(load(begun)), out)
    return claim(out, resume)


def _same(wanted: Mapping[str, Any], begun: Mapping[str, Any], out: Path) -> None:
    """A comparison goes on as it began."""
    if changed := different(wanted, begun, ""):
        raise UsageError(
            f"{out} began with another recipe ({', '.join(changed[:4])} differ); give acclimate compare "
            f"{out}/recipe.yaml --resume, or another --out."
        )


def _apart(made: Bench, jobs: int) -> None:
    """Every rung that is not done in a child process of its own, `jobs` at once; they end when this one is told to."""
    waiting = [r for r in made.comparison.rungs if not (made.folder(r) / "result.json").exists()]
    running: dict[int, tuple[subprocess.Popen[bytes], Rung]] = {}
    try:
        while waiting or running:
            for slot in [slot for slot in range(jobs) if slot not in running][: len(waiting)]:
                rung = waiting.pop(0)
                running[slot] = _start(made, rung, slot, jobs), rung
            time.sleep(0.1)
            made.stop.check("rungs in processes of their own")
            for slot in [slot for slot, (child, _) in running.items() if child.poll() is not None]:
                _ended(made, *running.pop(slot))
    finally:
        for child, _ in running.values():
            child.terminate()
        for child, _ in running.values():
            child.wait()


def _start(made: Bench, rung: Rung, slot: int, jobs: int) -> subprocess.Popen[bytes]:
    folder = made.folder(rung)
    folder.mkdir(parents=True, exist_ok=True)
    given = [str(made.out / "recipe.yaml"), "--out", str(made.out), "--only", rung.name, "--quiet"]
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "acclimate", "compare", *given], env=_share(slot, jobs), stdout=said, stderr=said
        )


def _share(slot: int, jobs: int) -> dict[str, str]:
    """A child's environment: its share of the cores, and one of the GPUs that this process sees."""
    given = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if count := torch.cuda.device_count():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        given["CUDA_VISIBLE_DEVICES"] = seen[slot % count]
    return given


def _ended(made: Bench, child: subprocess.Popen[bytes], rung: Rung) -> None:
    folder = made.folder(rung)
    if not (folder / "result.json").exists():
        said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise ModelError(f"The process of rung {rung.name} ended with {child.returncode}; it last said: {said[-1]}")
    made.voice.say(f"{rung.name} is done")
