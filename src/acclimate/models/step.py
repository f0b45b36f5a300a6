"""Attention of a decoding step, one query a row, compiled on the machine that uses it (step.cpp).

PyTorch's is made for many queries; of one its time goes into what it does before it begins.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acclimate.models import kernels
from acclimate.models.kernels import FLOAT, INT, LONG, POINTER, for_dtype

WIDTH = 16  # of which a head's size has to be a multiple


@cache
def _function(dtype: torch.dtype) -> Any:
    """The kernel for this dtype; None without a compiler, and for other dtypes."""
    return for_dtype("step", dtype, *[POINTER] * 5, *[LONG] * 5, FLOAT, INT, POINTER)


def serves(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether this is one query a row, without a way back, that the kernel can answer."""
    each = (query, key, value)
    if query.shape[2] != 1 or any(not x.is_cpu or x.dtype != query.dtype or x.stride(-1) != 1 for x in each):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in each):
        return False
    known = mask is None or (mask.dtype == torch.bool and mask.shape == (len(query), 1, 1, key.shape[2]))
    fits = query.shape[3] % WIDTH == 0 and key.shape[3] == value.shape[3] == query.shape[3]
    return known and fits and _function(query.dtype) is not None


def attend(
    query: Float[Tensor, "rows heads 1 d"],
    key: Float[Tensor, "rows groups time d"],
    value: Float[Tensor, "rows groups time d"],
    mask: Bool[Tensor, "rows 1 1 time"] | None,
    scale: float,
) -> Float[Tensor, "rows 1 heads d"]:
    """softmax(scale · query keysᵀ) values over what the mask (True: exists) leaves; a row has to have something left."""
    rows, heads, _, d = query.shape
    asked, output = query.contiguous(), query.new_empty(rows, 1, heads, d)
    if not kernels.content(query):
        return output
    steps = torch.tensor([step for x in (key, value) for step in x.stride()[:3]])
    exists = None if mask is None else mask.contiguous()
    _function(query.dtype)(
        *(x.data_ptr() for x in (asked, key, value, steps)), None if exists is None else exists.data_ptr(),
        rows, heads, key.shape[1], key.shape[2], d, scale, torch.get_num_threads(), output.data_ptr(),
    )  # fmt: skip
    return output
