"""Full fine-tuning: every weight trains."""

from dataclasses import dataclass

import torch
from torch import nn

from acclimate.errors import ModelError
from acclimate.methods.delta import names


@dataclass(frozen=True)
class Full:
    """Every floating-point parameter trains, kept in float32 (the reference of every comparison)."""

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Open every parameter. Raises ModelError on a model that carries adapters: they would no longer fit it."""
        if names(model):
            raise ModelError(
                f"This model carries adapters ({', '.join(names(model))}); merge or detach them, then train it."
            )
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
                parameter.requires_grad_(True)
