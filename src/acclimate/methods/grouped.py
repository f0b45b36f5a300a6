"""Rows of one batch that are each for another LoRA, multiplied together on CUDA: two grouped products for all of them.

Rows are put in the order of their adapters, so that each product has one matrix for each run of them.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from acclimate.models.kernels import content

WIDTH = 8  # of which inputs, outputs and ranks have to be multiples: 16 bytes of bfloat16
SINCE = (9, 0)  # the first GPUs that have a kernel for it; for others PyTorch asks the host about every adapter

Factors = tuple[Float[Tensor, "_ d_in"], Float[Tensor, "d_out _"]]  # A and B of an adapter, whose rank is its own


def serves(x: Tensor, y: Tensor) -> bool:
    """Whether the kernel can: bfloat16 on a GPU that has it, of widths that it wants."""
    if not (x.is_cuda and y.is_cuda and content(y) and x.shape[:-1] == y.shape[:-1]):
        return False
    fits = x.shape[-1] % WIDTH == 0 and y.shape[-1] % WIDTH == 0
    rounded = y.dtype == torch.bfloat16 and (x.dtype == y.dtype or torch.is_autocast_enabled("cuda"))
    return fits and rounded and offered(y.device)


def describe() -> str:
    """What was decided for this machine's GPU, in a line."""
    return "by grouped products in bfloat16" if offered(torch.device("cuda")) else "one after the other"


@cache
def offered(device: torch.device) -> bool:
    """Whether the GPU is one that the kernel is for."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= SINCE


def changed(
    x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"], index: Int[Tensor, "*front"], each: Sequence[Factors]
) -> Float[Tensor, "*at d_out"]:
    """y + B A x of the adapter that each row is for, y where it is for none.

    index: which of `each`, −1 for none; what its shape lacks of that of `x` is the same all along.
    """
    order, ends = _order(index, y.shape[:-1], len(each), y.device)
    if not len(order):
        return y
    a, b = stacked(each)
    rows = x.reshape(-1, x.shape[-1]).index_select(0, order).to(y.dtype)
    low = nn.functional.grouped_mm(rows, a.to(y.dtype).transpose(1, 2), offs=ends)
    change = nn.functional.grouped_mm(low, b.to(y.dtype).transpose(1, 2), offs=ends)
    return y.reshape(-1, y.shape[-1]).index_add(0, order, change).view(y.shape)


def stacked(each: Sequence[Factors]) -> tuple[Float[Tensor, "n rank d_in"], Float[Tensor, "n d_out rank"]]:
    """All A and all B, of the largest rank among them, rounded up; the rows and columns beyond an adapter's own are 0."""
    rank = max(len(a) for a, _ in each)
    rank += -rank % WIDTH
    first = [nn.functional.pad(a, (0, 0, 0, rank - len(a))) for a, _ in each]
    second = [nn.functional.pad(b, (0, rank - b.shape[1])) for _, b in each]
    return torch.stack(first), torch.stack(second)


@lru_cache(maxsize=4)
def _order(
    index: Tensor, shape: torch.Size, count: int, device: torch.device
) -> tuple[Int[Tensor, " rows"], Int32[Tensor, " count"]]:
    """The rows that are for an adapter, by adapter, and where each one's end. Made once for all layers of a step."""
    flat = index.cpu().reshape(*index.shape, *[1] * (len(shape) - index.ndim)).expand(shape).flatten()
    order, counts = flat.argsort(stable=True), flat[flat >= 0].bincount(minlength=count)
    ends = counts.cumsum(0).to(torch.int32)
    return order[len(flat) - int(counts.sum()) :].to(device), ends.to(device)
