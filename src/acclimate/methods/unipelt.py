"""UniPELT: adapter, prefix and LoRA together, each behind a gate that learns when it is of use."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.methods.adapters import Adapter
from acclimate.methods.delta import attach
from acclimate.methods.lora import LoRA, LowRank
from acclimate.methods.prefix import keys_and_values
from acclimate.methods.soft import Rows, add_soft, sampled, table_of
from acclimate.methods.targets import feed_forwards, find, layers, width


@dataclass(frozen=True)
class UniPELT:
    """h + Σ G · submodule(h), with G = σ(w h + b) ∈ (0, 1) for each submodule of each layer. Mao et al. 2022, arXiv:2110.07577.

    G scales an adapter's output (A), a prefix's keys and values (P), and stands in the place of α/r in LoRA (L); section
    3.2. The paper's G is one number for a text; here it is one for each token, so that a decoder's gates never see
    what is yet to be written, and a prefix looks through the projection it rides on (one gate there for keys, one for values).
    """

    parts: Literal["APL", "AP", "AL", "PL"] = "APL"  # the paper's names of its variants
    bottleneck: int = 48
    length: int = 10
    rank: int = 8

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach the submodules and their gates. Raises RecipeError or ModelError where one cannot be."""
        if "P" in self.parts:
            self._prefix(model, name)
        if "L" in self.parts:
            self._lora(model, name)
        if "A" in self.parts:
            for _, last in feed_forwards(model):
                attach(last, GatedAdapter(width(last).d_out, self.bottleneck), name)

    def learned(
        self, model: nn.Module, read: Callable[[], None], spell: Callable[[int], str], name: str = "default"
    ) -> dict[str, dict[str, dict[str, float]]]:
        """The mean value of the gates of each layer, by submodule, while `read` reads; section 4.4 of the paper."""
        with watched_gates(model, name) as seen:
            read()
        rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for path, values in seen.items():
            owner = type(model.get_submodule(path.rpartition(".")[0]))
            rows[_layer(path)][OWNERS[owner]] += values
        return {TITLE: {row: {part: fmean(v) for part, v in parts.items() if v} for row, parts in rows.items()}}

    def _prefix(self, model: nn.Module, name: str) -> None:
        table = table_of(model, "unipelt", self.length)
        places = keys_and_values(model, sampled(table, self.length))
        first = add_soft(table, self.length, name)
        for module, columns, rows in places:
            attach(module, GatedRows(first, rows, columns, width(module).d_out), name, source=table)

    def _lora(self, model: nn.Module, name: str) -> None:
        spec = LoRA(self.rank, alpha=float(self.rank))  # so that the gate alone scales
        for layer in layers(model):
            gates: dict[int, Gate] = {}
            for linear in find(nn.ModuleDict({"layers": nn.ModuleList([layer])}), spec.targets).values():
                size = width(linear)
                gate = gates.setdefault(size.d_in, Gate(size.d_in))
                attach(linear, GatedLowRank(size.d_in, size.d_out, spec, gate), name)


class Gate(nn.Module):
    """σ(w h + b), one number a token. w and b start as torch draws them, so about one half."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, 1, dtype=torch.float32)

    def forward(self, h: Float[Tensor, "*at d"]) -> Float[Tensor, "*at 1"]:
        linear = self.linear
        return torch.sigmoid(nn.functional.linear(h, linear.weight.to(h.dtype), linear.bias.to(h.dtype)))


class GatedLowRank(LowRank):
    """y + G(x) B A x."""

    def __init__(self, d_in: int, d_out: int, spec: LoRA, gate: Gate) -> None:
        super().__init__(d_in, d_out, spec)
        self.gate = gate

    def forward(self, x: Float[Tensor, "*at d_in"], y: Float[Tensor, "*at d_out"]) -> Float[Tensor, "*at d_out"]:
        change = super().forward(x, torch.zeros_like(y))
        return y + cast(Tensor, self.gate(x)) * change

    def fold(self, module: nn.Module) -> None:
        super(LowRank, self).fold(module)  # the gate depends on the input: no weight computes it


class GatedAdapter(Adapter):
    """y + G(y) U f(D y)."""

    def __init__(self, d: int, size: int) -> None:
        super().__init__(d, size, nn.functional.relu)
        self.gate = Gate(d)

    def forward(self, x: Tensor, y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        return y + cast(Tensor, self.gate(y)) * cast(Tensor, self.inner(y))


class GatedRows(Rows):
    """G(y) · row i at the i-th soft token, where y is what the layer alone would answer there."""

    def __init__(self, first: int, start: Tensor, columns: Tensor | None, d: int) -> None:
        super().__init__(first, start, columns)
        self.gate = Gate(d)

    def forward(self, x: Int[Tensor, "*at"], y: Float[Tensor, "*at d"]) -> Float[Tensor, "*at d"]:
        ours = (x >= self.first) & (x < self.first + len(self.values()))
        rows = super().forward(x, y)
        return rows.index_put((ours,), cast(Tensor, self.gate(y[ours])) * rows[ours])


TITLE = "Mean value of the gates of each layer"
OWNERS = {GatedLowRank: "LoRA", GatedAdapter: "adapter", GatedRows: "prefix"}


def _layer(path: str) -> str:
    """Up to the first number.

    >>> _layer("model.layers.3.self_attn.q_proj.delta.default.gate")
    'model.layers.3'
    """
    words = path.split(".delta.")[0].split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[: numbers[0] + 1] if numbers else words)


@contextmanager
def watched_gates(model: nn.Module, name: str = "default") -> Iterator[Mapping[str, list[float]]]:
    """While the block lasts, the mean value of every gate in each forward pass, by the gate's path; padding counts."""
    seen: dict[str, list[float]] = defaultdict(list)
    gates = {path: gate for path, gate in model.named_modules() if isinstance(gate, Gate) and f".delta.{name}" in path}
    hooks = [gate.register_forward_hook(_keeper(seen[path])) for path, gate in gates.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(values: list[float]) -> Any:
    def keep(gate: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.numel():
            values.append(float(output.detach().float().mean()))

    return keep
