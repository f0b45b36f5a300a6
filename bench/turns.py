"""One side of a work, in a process of its own: it sets itself up, and then works whenever it is told to.

A side is a generator. What it yields first is what the parity gate compares; every later yield ends one repetition and says
how many units it did. The harness writes "go" and reads a line of JSON with the seconds, which end when a GPU has done what it
was asked; whatever a library prints goes to stderr.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

Side = Iterator[Mapping[str, Any]]
STATUS = Path("/proc/self/status")


def serve(side: Side, commands: TextIO = sys.stdin) -> None:
    """Answer every line of `commands` but "stop" with one repetition."""
    answers = _own_stdout()
    began = _now()
    _say(answers, {"parity": dict(next(side)), "seconds": _now() - began})
    for line in commands:
        if line.strip() == "stop":
            break
        began = _now()
        done = next(side)
        _say(answers, {**done, "seconds": _now() - began})
    _say(answers, {"peak_memory_bytes": _peak()})


def _gpu() -> Any:
    """torch.cuda where this side has used it; sides without torch are not made to load it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _now() -> float:
    if (gpu := _gpu()) is not None:
        gpu.synchronize()
    return time.perf_counter()


def _peak() -> int:
    """The most memory that this program held: of the GPU where it used one. Not getrusage's, which knows of the process that
    started it as well."""
    if (gpu := _gpu()) is not None:
        return int(gpu.max_memory_allocated())
    if STATUS.exists():
        line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _own_stdout() -> TextIO:
    """The real standard output; what others print goes to standard error from now on."""
    mine = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return mine


def _say(answers: TextIO, found: Mapping[str, Any]) -> None:
    answers.write(json.dumps(found) + "\n")
    answers.flush()
