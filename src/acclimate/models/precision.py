"""float32 or bfloat16: what this machine multiplies well."""

import time
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype asked for; `auto` is bfloat16 where the machine multiplies it at least 1.5 times as fast as float32."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if rate(torch.bfloat16) > 1.5 * rate(torch.float32) else torch.float32


def rate(dtype: torch.dtype, repeats: int = 50, seconds: float = 1.0) -> float:
    """FLOP/s of a matrix product of the size of a small model's layer on the CPU, the best of many.

    At least twice, and then as long as there is time: a machine that has to emulate a dtype needs a second for each.
    One thread: several would wait for each other whenever another program works beside, and the choice would waver.
    """
    a, b = torch.ones(256, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best, until = float("inf"), time.perf_counter() + seconds
    for number in range(repeats):
        begun = time.perf_counter()
        if number > 1 and begun > until:
            break
        a @ b
        best = min(best, time.perf_counter() - begun)
    torch.set_num_threads(threads)
    return 2 * 256 * 576 * 1536 / best


def device() -> torch.device:
    """CUDA when there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
