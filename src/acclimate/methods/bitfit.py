"""BitFit: only biases train."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.methods.delta import Delta, attach
from acclimate.methods.head import below_heads
from acclimate.methods.targets import find, linears, width


@dataclass(frozen=True)
class BitFit:
    """Train the biases: y + b, b starting at zero. Ben Zaken et al. 2021, arXiv:2106.10199, section 3.

    `all` is every linear layer of the trunk and every normalisation layer of it that has a bias. A linear layer without
    a bias gets one, so on Llama, whose RMSNorms have none either, it is the linear layers alone. The paper's smaller
    variant, b_q and b_m2, is `[query, up]`. A matrix that queries share with keys and values counts as a whole.
    Key biases are trained as in the paper, though softmax cancels them wherever positions are not rotated.
    """

    targets: tuple[str, ...] = ("all",)  # `all`, or parts and patterns as in LoRA

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Bias` to every target. Raises ModelError for a target that the model has not."""
        parts = tuple(target for target in self.targets if target != "all")
        chosen = {*find(model, parts).values(), *(_all(model) if "all" in self.targets else ())}
        for module in model.modules():
            if module in chosen:
                own = module._parameters.get("bias")
                attach(module, Bias(width(module).d_out if own is None else len(own)), name)


class Bias(Delta):
    """y + b."""

    def __init__(self, d_out: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(d_out, dtype=torch.float32))

    def forward(self, x: Tensor, y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        return (y + self.b).to(y.dtype)

    @torch.no_grad()
    def fold(self, module: nn.Module) -> None:
        own = module._parameters.get("bias")
        if own is None:
            raise ModelError(
                f"A learned bias cannot be merged into a {type(module).__name__} without one: "
                "transformers would not load it. Keep it attached."
            )
        own.data = (own + self.b).to(own.dtype)


def _all(model: nn.Module) -> list[nn.Module]:
    """The linear layers of the trunk, and its normalisation layers with a bias."""
    trunk = below_heads(model)
    norms = (module for module in trunk.modules() if type(module).__name__.endswith("Norm"))
    return [*linears(trunk).values(), *(norm for norm in norms if norm._parameters.get("bias") is not None)]
