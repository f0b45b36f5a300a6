"""Output layers only: the trunk stays frozen."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.methods.delta import Delta, attach
from acclimate.methods.targets import linears


@dataclass(frozen=True)
class Head:
    """A trained copy of every linear layer outside the trunk answers in its place.

    The copy rather than the layer trains, because an output layer often shares its weight with the input embedding,
    which must not move. It is saved whole, so a head that was drawn at random needs no seed to come back.
    """

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Copy` to every output layer. Raises ModelError for a model that ends with its trunk."""
        trunk = {id(module) for module in below_heads(model).modules()}
        heads = [m for m in linears(model).values() if isinstance(m, nn.Linear) and id(m) not in trunk]
        if not heads:
            raise ModelError(f"{type(model).__name__} has no output layer outside its trunk; train another part of it.")
        for head in heads:
            attach(head, Copy(head), name)


class Copy(Delta):
    """W' x + b', whatever the layer itself answered; W' and b' start as the layer's own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias: nn.Parameter | None = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        return nn.functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @torch.no_grad()
    def fold(self, module: nn.Module) -> None:
        layer = cast(nn.Linear, module)
        layer.weight.data = self.weight.to(layer.weight.dtype)
        if self.bias is not None:
            layer.bias.data = self.bias.to(layer.bias.dtype)


def below_heads(model: Any) -> nn.Module:
    """The trunk: everything but the output layers."""
    trunk = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if isinstance(trunk, nn.Module):
        return trunk
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return nn.ModuleList(child for child in model.children() if child is not head)
