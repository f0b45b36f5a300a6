"""Forks processes that save checkpoints and die: torch is imported once, so that a hundred deaths are cheap.

One JSON request a line on stdin, one JSON answer a line on stdout. A request names `folder` and one way to die:
`seconds`  save step after step, and be killed from outside that long after it began;
`line`     save `step` once, and kill itself before the n-th line of checkpoint.py that runs;
`limit`    save `step` once with no file allowed to grow beyond so many bytes (write(2) then fails as on a full disk).
The answer: `acknowledged`, the last step whose save returned; `error`, what it raised; `killed`.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch

from acclimate.errors import TrainingError
from acclimate.training import checkpoint


def save(folder: Path, step: int) -> None:
    """A checkpoint that shows in every part which step it is of."""
    tensors = {
        "weight": torch.full((40, 100), step, dtype=torch.float32),
        "moment": torch.full((2000,), step, dtype=torch.bfloat16).t(),
        "random": torch.full((5000,), step % 251, dtype=torch.uint8),
        "nothing": torch.empty(3, 0),
    }
    checkpoint.save(folder, step, tensors, {"step": step, "rate": 0.1 * step, "order": [step] * 50})


def save_on(folder: Path, report: int) -> None:
    checkpoint.clean(folder)
    found = checkpoint.newest(folder)
    step = found.step if found else 0
    os.write(report, b"0\n")
    while True:
        step += 1
        save(folder, step)
        os.write(report, f"{step}\n".encode())


def save_once(folder: Path, step: int, report: int) -> None:
    try:
        save(folder, step)
        os.write(report, f"{step}\n".encode())
    except TrainingError as error:
        os.write(report, f"{error}\n".encode())


def die_at(line: int) -> None:
    left = line

    def trace(frame: FrameType, event: str, _: object):
        nonlocal left
        if frame.f_code.co_filename != checkpoint.__file__:
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def act(request: dict, report: int) -> None:
    folder = Path(request["folder"])
    if "seconds" in request:
        save_on(folder, report)
    if "limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    if "line" in request:
        die_at(request["line"])
    save_once(folder, request["step"], report)


def answer(request: dict) -> dict:
    reports, report = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act(request, report)
        finally:
            os._exit(0)
    os.close(report)
    with os.fdopen(reports) as lines:
        if "seconds" in request:
            lines.readline()  # it has begun
            time.sleep(request["seconds"])
            os.kill(child, signal.SIGKILL)
        said = lines.read().splitlines()
    _, status = os.waitpid(child, 0)
    steps = [int(line) for line in said if line.isdigit()]
    errors = [line for line in said if not line.isdigit()]
    return {"acknowledged": max(steps, default=0), "error": " ".join(errors), "killed": os.WIFSIGNALED(status)}


if __name__ == "__main__":
    torch.zeros(1).add_(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
