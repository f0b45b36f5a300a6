"""Matrix products of few rows on a CPU, compiled on the machine that uses them.

A decoding step multiplies a few rows by every weight of the model: it is bound by reading weights, and by what a
library of large products does before it begins. kernels.cpp reads float32 or bfloat16 weights as they lie and sums in
float32. Without a compiler, or where PyTorch is faster, PyTorch multiplies.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from acclimate.models.building import build, named

SOURCES = named(
    "kernels.cpp", "flash_float32.cpp", "flash_bfloat16.cpp", "step.cpp", "rows.cpp", "layers.cpp", "logits.cpp",
    "matrices.cpp",
)  # fmt: skip
HEADERS = named("vectors.h", "tiles.h", "flash.h", "products.h", "rows.h", "step.h")
PROBED = (4, 8, 16, 32)  # rows; fewer gain as much as 4
WORTH = 1.1  # times as fast that the kernels must be to be chosen
DTYPES = (torch.float32, torch.bfloat16)

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float

Product = Callable[[Tensor], Tensor]


@cache
def library() -> ctypes.CDLL | str:
    """The compiled kernels; or why there are none, in a few words."""
    return build(SOURCES, HEADERS)


def bound(name: str, *takes: Any, gives: Any = None) -> Any:
    """The kernel of that name, told the C types of what it takes; None without a compiler or where this processor has none."""
    loaded = library()
    found = None if isinstance(loaded, str) else getattr(loaded, name, None)
    if found is not None:
        found.argtypes, found.restype = takes, gives
    return found


def for_dtype(name: str, dtype: torch.dtype, *takes: Any) -> Any:
    """As `bound`, of the kernels that there are for each dtype of DTYPES the one for this; None for other dtypes."""
    return bound(f"{name}_{str(dtype).removeprefix('torch.')}", *takes) if dtype in DTYPES else None


@cache
def _function(dtype: torch.dtype) -> Any:
    return for_dtype("product", dtype, *[POINTER] * 4, *[LONG] * 3, INT)


@cache
def _widened() -> Any:
    return bound("product_widened", *[POINTER] * 3, *[LONG] * 3, INT)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias, (…, k) → (…, n): what F.linear computes, without a graph; summed in float32 and rounded once.

    weight: (n, k). All on the CPU, contiguous, of one dtype of DTYPES. Asked only where `library` has kernels.
    """
    n, k = weight.shape
    y = x.new_empty(*x.shape[:-1], n)
    offset = None if bias is None or not content(bias) else bias.data_ptr()
    m, threads = x.numel() // k, torch.get_num_threads()
    if content(x):
        _function(weight.dtype)(x.data_ptr(), weight.data_ptr(), offset, y.data_ptr(), m, k, n, threads)
    return y


def widened(x: Tensor, weight: Tensor) -> Tensor:
    """x weightᵀ, (rows, k) → (rows, n) in float32, of bfloat16 rows and weights: nothing is rounded behind the sums."""
    (n, k), rows = weight.shape, len(x)
    y = x.new_empty(rows, n, dtype=torch.float32)
    _widened()(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, k, n, torch.get_num_threads())
    return y


@cache
def limit(dtype: torch.dtype) -> int:
    """The most rows for which this machine multiplies weights of `dtype` faster here than in PyTorch; 0 for none."""
    return kept(str(dtype).removeprefix("torch."), lambda: _tried(dtype)) if dtype in DTYPES else 0


def kept(name: str, tried: Callable[[], int]) -> int:
    """What a trial found on this machine; 0 where there are no kernels.

    Tried once a machine and kept beside the library: other kernels round otherwise, and a run that goes on in another
    process is to compute the same bits. Who writes it down first decides; where it cannot be kept, it is 0.
    """
    loaded = library()
    if isinstance(loaded, str):
        return 0
    path = Path(loaded._name).with_suffix(f".{name}")
    try:
        if not path.is_file():
            with TemporaryDirectory(dir=path.parent) as folder, suppress(FileExistsError):
                made = Path(folder) / path.name
                with _plainly():
                    made.write_text(str(tried()), encoding="utf-8")
                os.link(made, path)
        return int(path.read_text(encoding="utf-8"))
    except OSError:
        return 0


@contextmanager
def _plainly() -> Iterator[None]:
    """Whatever asks: tensors have content and a graph, and are of the dtype that they are made of."""
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def _tried(dtype: torch.dtype) -> int:
    """On a matrix that caches do not hold, as a model is, in less than a second. One thread, as in `precision.rate`.

    sys.maxsize where it is twice as fast at the last: there PyTorch has to emulate the dtype.
    """
    weight = torch.linspace(-1, 1, 16384 * 576).sin().reshape(16384, 576).to(dtype)
    most, threads = 0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in PROBED:
            x = torch.linspace(-1, 1, rows * 576).cos().reshape(rows, 576).to(dtype)
            plain, fast = fastest(lambda: nn.functional.linear(x, weight), lambda: product(x, weight))  # noqa: B023
            if WORTH * fast > plain:
                return most
            most = rows
        return sys.maxsize if 2 * fast < plain else most
    finally:
        torch.set_num_threads(threads)


def fastest(
    *works: Callable[[], object], clock: Callable[[], float] = time.thread_time, seconds: float = 0.01
) -> list[float]:
    """The best seconds for each, taken in turns, three at least; by a thread's clock others who work beside do not count."""
    best, until, turn = [float("inf")] * len(works), clock() + seconds, 0
    while turn < 3 or clock() < until:
        for place, work in enumerate(works):
            begun = clock()
            work()
            best[place] = min(best[place], clock() - begun)
        turn += 1
    return best


def describe() -> str:
    """What was decided for this machine, in a line."""
    found = library()
    if isinstance(found, str):
        return f"PyTorch's ({found})"
    said = {0: "PyTorch's", sys.maxsize: "compiled"}
    kinds = ((str(dtype).removeprefix("torch."), limit(dtype)) for dtype in DTYPES)
    return ", ".join(f"{name} {said.get(most, f'compiled up to {most} rows')}" for name, most in kinds)


def products(modules: Iterable[nn.Module], otherwise: Mapping[nn.Module, Product]) -> dict[nn.Module, Product]:
    """A forward for each plain linear layer on the CPU that the kernels may serve; empty where they serve none.

    otherwise: forwards for more rows than they do; the layer's own where there is none.
    """
    plain = [m for m in modules if type(m) is nn.Linear and "forward" not in vars(m) and m.weight.is_cpu]
    own = {module: otherwise.get(module, partial(nn.Linear.forward, module)) for module in plain}
    return {module: _forward(module, own[module]) for module in plain if limit(module.weight.dtype)}


def _forward(module: nn.Linear, otherwise: Product) -> Product:
    most = limit(module.weight.dtype)

    def forward(input: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        few = input.numel() <= most * weight.shape[1]
        if few and all(part is None or _plain(part, weight.dtype) for part in (input, weight, bias)):
            return product(input, weight, bias)
        return otherwise(input)

    return forward


def content(tensor: Tensor) -> bool:
    """Whether there are numbers to read; there are none while memory is forecast, and a kernel then has nothing to do."""
    return not isinstance(tensor, FakeTensor)


def _plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype and tensor.is_contiguous() and tensor.is_cpu


@contextmanager
def using(chosen: Mapping[Any, Callable[..., Tensor]]) -> Iterator[None]:
    """These modules compute by these functions inside the `with`; whatever hooks ride on them go on to answer."""
    for module, forward in chosen.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in chosen:
            del vars(module)["forward"]
