"""Runs that are killed at named places: python -m tests.crash.places, one JSON request a line on stdin.

A request names `recipe`, `overrides` and `out`, and a place to die at: the `nth` call of `call` (module:name), at `line`:
before it (0), before the so-manieth line that runs within it, or when it has returned (-1). Without `call` the run is left
alone. The answer, a line: whether the child was killed. Forks: a process that imported everything once, and computed nothing.
"""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import acclimate.run.carry  # noqa: F401
from acclimate.recipe import parse
from tests.crash.killer import start


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(line: int) -> None:
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        left -= event == "line"
        if left == 0:
            die()
        return trace

    sys.settrace(trace)


def deadly(real: Callable[..., Any], nth: int, line: int) -> Callable[..., Any]:
    """`real`, whose nth call is the last thing that happens."""
    calls = count(1)

    @functools.wraps(real)
    def called(*given: Any, **named: Any) -> Any:
        if next(calls) != nth:
            return real(*given, **named)
        if line == 0:
            die()
        if line > 0:
            die_at(line)
        result = real(*given, **named)
        if line < 0:
            die()
        sys.settrace(None)
        return result

    return called


@contextmanager
def planted(call: str, nth: int, line: int) -> Iterator[None]:
    """The place is deadly for a child that is forked meanwhile."""
    module, _, path = call.partition(":")
    holder: Any = import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        holder = getattr(holder, each)
    real = getattr(holder, name)
    setattr(holder, name, deadly(real, nth, line))
    try:
        yield
    finally:
        setattr(holder, name, real)


def answer(request: dict[str, Any]) -> dict[str, bool]:
    path = Path(request["recipe"])
    recipe, out = parse(path.read_text(), str(path), request["overrides"]), Path(request["out"])
    if "call" in request:
        with planted(request["call"], request["nth"], request["line"]):
            pid = start(recipe, out)
    else:
        pid = start(recipe, out)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, "a run that was killed before could not go on"
    return {"killed": os.WIFSIGNALED(status)}


if __name__ == "__main__":
    for asked in sys.stdin:
        print(json.dumps(answer(json.loads(asked))), flush=True)
