"""One folder, one run, one process.

A run folder is known by its resolved recipe.yaml, which must be the first file a run writes; report.json, which must be
the last, marks it finished. That no two processes share one rests on flock(2) of `.lock`: the kernel gives the lock
back when the process ends, however it ends, so a killed run never blocks its own resumption.
"""

import fcntl
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from acclimate.errors import UsageError


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, held for this process until `release` or the end of the `with`."""

    path: Path
    lock: int  # file descriptor of .lock

    @property
    def recipe(self) -> Path:
        """The resolved recipe: the first file written."""
        return self.path / "recipe.yaml"

    @property
    def report(self) -> Path:
        """The scores: the last file written; a folder that has it is finished."""
        return self.path / "report.json"

    @property
    def log(self) -> Path:
        """One row of JSON a step."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoint.save and checkpoint.newest."""
        return self.path / "checkpoints"

    def release(self) -> None:
        """Let others have the folder; once. Unlocking, unlike closing, counts though a forked child has the file."""
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        os.close(self.lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim(out: Path, resume: bool) -> RunFolder:
    """Take `out` for a new run (made if absent) or, with `resume`, for going on with the unfinished one it holds.

    Raises UsageError, and leaves the folder as it was, for a finished run; for an unfinished one without `resume`;
    for `resume` where no run is; for a folder of other things; for one in use by another process.
    """
    try:
        if not (out / ".lock").exists():
            _refuse(out, resume)
        out.mkdir(parents=True, exist_ok=True)
        run = RunFolder(out, _lock(out))
    except OSError as error:
        raise UsageError(f"The run folder {out} cannot be used: {error}. Give another one with --out.") from error
    try:
        _refuse(out, resume)
    except UsageError:
        run.release()
        raise
    return run


def new_folder(runs: Path, recipe_name: str, now: datetime) -> Path:
    """Make and return `runs/<recipe>-<YYYYmmdd-HHMMSS>`, with -2, -3, … behind it when that is taken.

    It is made here, empty, because mkdir(2) gives a name to one of several runs begun in the same second only.
    """
    stem = re.sub(r"[^\w.-]+", "-", recipe_name)[:50]
    name = f"{stem}-{now:%Y%m%d-%H%M%S}"
    folder, number = runs / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = runs / f"{name}-{number}"
        except OSError as error:
            raise UsageError(f"{folder} cannot be made: {error}. Give another folder with --out.") from error


def _refuse(out: Path, resume: bool) -> None:
    names = sorted(path.name for path in out.iterdir() if not _is_ours(path.name)) if out.exists() else []
    if "report.json" in names:
        raise UsageError(f"{out} holds a finished run, which is never written over; give another folder with --out.")
    if "recipe.yaml" in names and not resume:
        raise UsageError(f"{out} holds an unfinished run; continue it with --resume or give another folder with --out.")
    if "recipe.yaml" in names:
        return
    if resume:
        raise UsageError(f"{out} holds no run that could be resumed; without --resume a new one begins.")
    if names:
        raise UsageError(f"{out} is no run folder and not empty (it holds {names[0]!r}); give another one with --out.")


def _is_ours(name: str) -> bool:
    """What a run that was killed before its first file leaves behind."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".part"))


def _lock(out: Path) -> int:
    number = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(number, 20).decode(errors="replace").strip() or "unknown"
        os.close(number)
        raise UsageError(
            f"{out} is in use by another process (pid {owner}); wait for it or give another --out."
        ) from error
    except OSError:
        os.close(number)
        raise
    os.ftruncate(number, 0)
    os.write(number, f"{os.getpid()}\n".encode())
    return number
