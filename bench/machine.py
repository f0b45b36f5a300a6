"""What this machine can do at most, measured in the same run as the works: products of matrices, and copies."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import torch

from acclimate.models.precision import choose, device

SHAPE = (1024, 576, 1536)  # tokens, and SmolLM2's two widths


def gemm(dtype: torch.dtype, repeats: int = 30) -> float:
    """Multiplications and additions a second of one product of SHAPE, the median of `repeats`."""
    n, k, m = SHAPE
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(n, k, device=device).to(dtype), torch.randn(k, m, device=device).to(dtype)
    times = []
    for _ in range(repeats + 5):
        began = _now()
        _ = a @ b
        times.append(_now() - began)
    return 2 * n * k * m / median(times[5:])


def copying(size: int = 1 << 28, repeats: int = 5) -> float:
    """Bytes a second that are read and written again."""
    source = torch.ones(size // 4, device="cuda" if torch.cuda.is_available() else "cpu")
    target = torch.empty_like(source)
    times = []
    for _ in range(repeats + 1):
        began = _now()
        target.copy_(source)
        times.append(_now() - began)
    return 2 * size / median(times[1:])


def machine() -> dict[str, object]:
    """Name, cores, versions and limits."""
    found = {name: _version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **found,
        "gemm_float32": gemm(torch.float32),
        "gemm_bfloat16": gemm(torch.bfloat16),
        "copy_bytes_per_second": copying(),
        "precision": str(choose("auto", device())).removeprefix("torch."),
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


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
