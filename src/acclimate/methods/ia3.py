"""(IA)³: rescale keys, values and the inside of the feed-forward layers."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods.delta import Delta, attach
from acclimate.methods.targets import FUSED, find, width
from acclimate.methods.weight import set_weight, weight_of


@dataclass(frozen=True)
class IA3:
    """l_k ⊙ K, l_v ⊙ V and W_down (l_ff ⊙ h), all l starting at ones. Liu et al. 2022, arXiv:2205.05638, section 3.3.

    A part of the attention means that part alone, also where one matrix holds queries, keys and values; a pattern means
    a layer with all its outputs. d_k + d_v + d_ff numbers a layer. l_ff costs a second multiplication by W_down until
    it is merged.
    """

    targets: tuple[str, ...] = ("key", "value")  # whose outputs are scaled
    inputs: tuple[str, ...] = ("down",)  # whose inputs are scaled

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach a `Scale` to every target. Raises RecipeError or ModelError where that cannot be."""
        inner, outer = find(model, self.inputs), _places(model, self.targets)
        if both := sorted(inner.keys() & outer.keys()):
            raise RecipeError(f"ia3 would scale both the input and the output of {both[0]}; choose one of them.")
        for path, places in outer.items():
            attach(model.get_submodule(path), OutputScale(width(model.get_submodule(path)).d_out, places), name)
        for linear in inner.values():
            attach(linear, InputScale(width(linear).d_in), name)


class OutputScale(Delta):
    """l ⊙ y at the given places, y at the others."""

    places: Tensor | None

    def __init__(self, d_out: int, places: Int[Tensor, " n"] | None = None) -> None:
        super().__init__()
        self.d_out = d_out
        self.l = nn.Parameter(torch.ones(d_out if places is None else len(places), dtype=torch.float32))
        self.register_buffer("places", places, persistent=False)

    @property
    def scale(self) -> Float[Tensor, " d_out"]:
        """One number per output."""
        return self.l if self.places is None else self.l.new_ones(self.d_out).index_copy(0, self.places, self.l)

    def forward(self, x: Tensor, y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        return (y * self.scale).to(y.dtype)

    @torch.no_grad()
    def fold(self, module: nn.Module) -> None:
        set_weight(module, weight_of(module) * self.scale[:, None])
        own = module._parameters.get("bias")
        if own is not None:
            own.data = (own * self.scale).to(own.dtype)


class InputScale(Delta):
    """W (l ⊙ x) + bias, in place of y."""

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.l = nn.Parameter(torch.ones(d_in, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        scaled: Tensor = self.carrier.forward((x * self.l).to(x.dtype))
        return scaled

    @torch.no_grad()
    def fold(self, module: nn.Module) -> None:
        set_weight(module, weight_of(module) * self.l)


def _places(model: nn.Module, targets: tuple[str, ...]) -> dict[str, Int[Tensor, " n"] | None]:
    """The outputs that the targets mean, by the path of their layer; None for all of them."""
    wanted: dict[str, set[str]] = {}
    for target in targets:
        for path in find(model, (target,)):
            wanted.setdefault(path, set()).add(target)
    attention = {"query", "key", "value"}
    return {
        path: _of_fused(model, path, chosen) if path.endswith(FUSED) and chosen <= attention else None
        for path, chosen in wanted.items()
    }


def _of_fused(model: Any, path: str, chosen: set[str]) -> Int[Tensor, " n"]:
    """Where the chosen parts lie among the outputs of a matrix for query, key and value.

    GPT-NeoX, Bloom and Falcon write the heads one after the other, each with its query, key and value; every other
    build writes all queries, all keys, all values.
    """
    above = path.rpartition(".")[0]
    siblings = [m for n, m in find(model, ("output",)).items() if n.startswith(f"{above}.")]
    d_out = width(model.get_submodule(path)).d_out
    queries = width(siblings[0]).d_in if len(siblings) == 1 else 0
    head = queries // model.config.num_attention_heads
    keys = (d_out - queries) // 2
    if not 0 < keys <= queries or "crossattention" in path or keys % head:
        raise ModelError(f"{path} holds query, key and value in an order that is not known; give IA3 other targets.")
    group = keys // head if path.endswith("query_key_value") else 1
    sizes = {"query": queries // group, "key": keys // group, "value": keys // group}
    rows = torch.split(torch.arange(d_out).view(group, -1), list(sizes.values()), 1)
    return torch.cat([row.flatten() for part, row in zip(sizes, rows, strict=True) if part in chosen])
