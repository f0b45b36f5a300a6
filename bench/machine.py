"""What this machine can do at most, measured in the same run as the works: products of matrices, and copies."""

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from statistics import median

import torch

from acclimate.models.precision import choose, device
from acclimate.training.decided import decided

SHAPE = (1024, 576, 1536)  # tokens, and SmolLM2's two widths
LARGE = (8192, 8192, 8192)  # on a GPU, which is busy with SHAPE for less time than it takes to ask it


def gemm(dtype: torch.dtype, repeats: int = 30) -> float:
    """Multiplications and additions a second of one product, the median of `repeats`."""
    n, k, m = LARGE if torch.cuda.is_available() else SHAPE
    a, b = torch.randn(n, k, device=device()).to(dtype), torch.randn(k, m, device=device()).to(dtype)
    return 2 * n * k * m / median(seconds(lambda: a @ b, repeats + 5)[5:])


def copying(size: int = 1 << 28, repeats: int = 5) -> float:
    """Bytes a second that are read and written again."""
    source = torch.ones(size // 4, device=device())
    target = torch.empty_like(source)
    return 2 * size / median(seconds(lambda: target.copy_(source), repeats + 1)[1:])


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Of each repetition: by the device's own clock where there is one."""
    if not torch.cuda.is_available():
        times = [time.perf_counter()]
        for _ in range(repeats):
            work()
            times.append(time.perf_counter())
        return [end - began for began, end in pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [began.elapsed_time(end) / 1000 for began, end in pairwise(events)]


def machine() -> dict[str, object]:
    """Name, cores, versions and limits."""
    found = {name: _version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {
        "processor": _processor(),
        "device": device().type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **found,
        "gemm_float32": gemm(torch.float32),
        "gemm_bfloat16": gemm(torch.bfloat16),
        "copy_bytes_per_second": copying(),
        "precision": str(choose("auto", device())).removeprefix("torch."),
        "decided": decided(),
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
