"""What this process holds, and giving memory back to the system."""

import ctypes
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from acclimate.models import buffers

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def return_free_pages() -> None:
    """Free pages between blocks in use go back to the system: those kept for large tensors, and glibc's (malloc_trim).

    Where none are kept for tensors, steps of different lengths tear the heap into holes, and without this a run on the CPU
    grows by a half in thirty steps.
    """
    buffers.give_back()
    if sys.platform.startswith("linux"):
        trim: Callable[..., Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def forget_peak() -> None:
    """Let `peak` count from now on, where the system can: on CUDA, and on Linux by clear_refs (proc(5))."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        with suppress(OSError):
            CLEAR.write_text("5")


def peak() -> int:
    """The most bytes held since `forget_peak`: of the GPU where there is one, of this process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
