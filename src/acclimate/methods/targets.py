"""Which modules of a model a method changes: by the part they play, or by a pattern on their names.

The parts are read off the names that Hugging Face gives to layers, so a new model of a known build needs no entry here.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from acclimate.errors import ModelError, unknown

# One matrix for query, key and value; one for the two inputs of a gated feed-forward layer.
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
GATED = ("gate_up_proj", "mlp.Wi")
PARTS = {
    "query": ("q_proj", "query", "q_lin", "q", "query_proj", "q_attn", *FUSED),
    "key": ("k_proj", "key", "k_lin", "k", "key_proj", *FUSED),
    "value": ("v_proj", "value", "v_lin", "v", "value_proj", *FUSED),
    "output": (
        *(
            "o_proj",
            "out_proj",
            "out_lin",
            "o",
            "attn.c_proj",
            "crossattention.c_proj",
            "attn.Wo",
            "attention.output.dense",
        ),
        *("attention.dense", "self_attention.dense", "self_attn.dense"),
    ),
    "up": (
        "up_proj",
        "fc1",
        "fc_in",
        "wi",
        "wi_1",
        "c_fc",
        "lin1",
        "ffn",
        "dense_h_to_4h",
        "intermediate.dense",
        *GATED,
    ),
    "gate": ("gate_proj", "wi_0", *GATED),
    "down": (
        "down_proj",
        "fc2",
        "fc_out",
        "wo",
        "mlp.c_proj",
        "lin2",
        "ffn_output",
        "dense_4h_to_h",
        "mlp.Wo",
        "output.dense",
    ),
}


class Width(NamedTuple):
    """Features in, features out, and whether the weight is stored (d_in, d_out) as GPT-2's Conv1D does."""

    d_in: int
    d_out: int
    transposed: bool


def is_linear(module: nn.Module) -> bool:
    """A module that multiplies by one weight matrix: nn.Linear and what derives from it, and Conv1D of GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def width(module: nn.Module) -> Width:
    """The shape of a linear module, whichever way it stores its weight. Raises ModelError for any other module."""
    if isinstance(module, nn.Linear):
        return Width(module.in_features, module.out_features, False)
    if is_linear(module):
        rows, columns = module.weight.shape  # type: ignore[misc]
        return Width(int(rows), int(columns), True)
    raise ModelError(f"A {type(module).__name__} has no single weight matrix; linear layers do.")


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of the model itself, by name: not those of changes that ride on it."""
    return {n: m for n, m in model.named_modules() if is_linear(m) and "delta" not in n.split(".")}


def find(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The linear modules that play one of the parts (`query`, `value`, …, `linear` for all) or match a shell pattern.

    Parts are looked for inside the layers only, never in the embeddings or the output layer.
    Raises ModelError, saying what there is, for a target that fits no module.
    """
    linear = linears(model)
    layers = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    found: set[str] = set()
    for target in targets:
        hits = {n for n in linear if (n.startswith(layers) and _plays(n, target)) or fnmatchcase(n, target)}
        if not hits:
            raise ModelError(_nothing(target, linear))
        found |= hits
    return {n: m for n, m in linear.items() if n in found}


def _plays(name: str, part: str) -> bool:
    if part == "down" and name.endswith(".attention.output.dense"):
        return False
    return part == "linear" or name.endswith(tuple(f".{ending}" for ending in PARTS.get(part, ())))


def _nothing(target: str, linear: dict[str, nn.Module]) -> str:
    endings = sorted({n.rpartition(".")[2] for n in linear})
    if target in PARTS or target == "linear":
        return (
            f"This model has no {target} layer that is known by name. Its linear layers end in: {', '.join(endings)}."
        )
    if any(sign in target for sign in "*?[."):
        return f"No linear layer of this model matches {target!r}. They end in: {', '.join(endings)}."
    return unknown("part or layer of this model", target, [*PARTS, "linear", *(f"*.{e}" for e in endings)])
