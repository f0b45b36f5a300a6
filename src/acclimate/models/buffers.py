"""Large tensors of the CPU lie in memory that is kept from step to step (buffers.cpp).

A training step asks for gigabytes and frees them. The C library gives such blocks back to the system and takes them anew,
page by page, and a block that it kept does not take the next aligned one of its size: a step spent a twentieth to a third of
its time in the system, in twice the memory that its tensors took. Without a compiler PyTorch's allocator stays.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

import torch

from acclimate.models.building import build, named


def addresses() -> int:
    """Bytes to reserve: twice the machine's memory, so that holes do not end them. They cost nothing until they are used."""
    return 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def kept() -> ctypes.CDLL | str:
    """From the first call on, for all of this process; or in a few words why not. Where a GPU computes, it is left alone."""
    if torch.cuda.is_available():
        return "the model is on the GPU"
    if not sys.platform.startswith("linux"):
        return "for Linux"
    folder = Path(torch.__file__).parent
    of_torch = (
        "-std=c++20",
        f"-I{folder / 'include'}",
        f"-L{folder / 'lib'}",
        "-lc10",
        f"-DRELEASE={torch.__version__}",
    )
    loaded = build(named("buffers.cpp"), options=of_torch)
    if isinstance(loaded, str):
        return loaded
    for counted in (loaded.buffers_used, loaded.buffers_reached):
        counted.restype = ctypes.c_size_t
    return loaded if loaded.buffers_begin(ctypes.c_size_t(addresses())) else "no addresses can be reserved"


def held() -> tuple[int, int]:
    """Bytes of large tensors now, and how far they have reached since the last `give_back`: the rest of it is holes."""
    found = kept()
    return (0, 0) if isinstance(found, str) else (found.buffers_used(), found.buffers_reached())


def give_back() -> None:
    """The pages of holes go back to the system."""
    found = kept()
    if not isinstance(found, str):
        found.buffers_return()


def describe() -> str:
    """What was decided for this machine, in a line."""
    found = kept()
    return f"PyTorch's ({found})" if isinstance(found, str) else "kept from step to step, from 256 KB on"
