"""The weight of a linear module as a matrix (d_out, d_in), whichever way the module stores it."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.methods.targets import width


def weight_of(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """In at least float32, without a gradient: a view of it where it is that wide already, dequantised where it is packed."""
    stored = cast(Tensor, module.weight).detach()
    wide = stored.to(torch.promote_types(stored.dtype, torch.float32))
    return wide.T if width(module).transposed else wide


@torch.no_grad()
def set_weight(module: nn.Module, weight: Float[Tensor, "d_out d_in"]) -> None:
    """Let `module` multiply by `weight`, rounded once to its dtype; the tensor that it held is left as it was."""
    stored = cast(nn.Parameter, module.weight)
    stored.data = (weight.T if width(module).transposed else weight).to(stored.dtype)
