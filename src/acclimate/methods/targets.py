"""Which modules of a model a method changes: by the part they play, by a pattern on their names, or by their place.

The parts are read off the names that Hugging Face gives to layers, so a new model of a known build needs no entry here.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import NamedTuple

from torch import nn

from acclimate.errors import ModelError, unknown
from acclimate.methods.nf4 import NF4Linear

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
            "crossattention.output.dense",
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

FINAL = (
    "norm",
    "ln_f",
    "norm_f",
    "final_norm",
    "final_layernorm",
    "final_layer_norm",
    "layer_norm",
)  # after all layers


class Width(NamedTuple):
    """Features in, features out, and whether the weight is stored (d_in, d_out) as GPT-2's Conv1D does."""

    d_in: int
    d_out: int
    transposed: bool


def is_linear(module: nn.Module) -> bool:
    """A module that multiplies by one weight matrix: nn.Linear and what derives from it, Conv1D of GPT-2, NF4Linear."""
    return isinstance(module, nn.Linear | NF4Linear) or type(module).__name__ == "Conv1D"


def width(module: nn.Module) -> Width:
    """The shape of a linear module, whichever way it stores its weight. Raises ModelError for any other module."""
    if isinstance(module, nn.Linear):
        return Width(module.in_features, module.out_features, False)
    if isinstance(module, NF4Linear):
        return Width(module.in_features, module.out_features, module.transposed)
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
    inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    found: set[str] = set()
    for target in targets:
        hits = {n for n in linear if (n.startswith(inside) and _plays(n, target)) or fnmatchcase(n, target)}
        if not hits:
            raise ModelError(_nothing(target, linear))
        found |= hits
    return {n: m for n, m in linear.items() if n in found}


def layers(model: nn.Module) -> list[nn.Module]:
    """The transformer layers in order, an encoder's before its decoder's; a layer that is used repeatedly stands once.

    Raises ModelError for a model without layers that are known by their attention.
    """
    return list(chain.from_iterable(stack.values() for stack in _stacks(model).values()))


def _stacks(model: nn.Module) -> dict[str, dict[str, nn.Module]]:
    """The outermost lists of layers with attention, by name; each holds its layers by full name."""
    queries = [n for n in linears(model) if _plays(n, "query")]
    found: dict[str, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        outer = not name.startswith(tuple(f"{stack}." for stack in found))
        if isinstance(module, nn.ModuleList) and outer and any(q.startswith(f"{name}.") for q in queries):
            found[name] = {f"{name}.{n}": layer for n, layer in module.named_children()}
    if not found:
        raise ModelError(f"{type(model).__name__} has no layers with attention that is known by name.")
    return found


def embedding(model: nn.Module) -> nn.Module:
    """The module that looks up the input tokens; of an encoder-decoder, the encoder's.

    Its weight may belong to other modules as well (a decoder's embedding, the output layer). What transformers calls
    the input embedding of T5 and BART is a module that is never run, so a hook on it would see nothing.
    Raises ModelError for a model without one.
    """
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    reader = model.get_encoder() if two else model  # type: ignore[operator]
    try:
        return reader.get_input_embeddings()  # type: ignore[no-any-return, operator]
    except (AttributeError, NotImplementedError) as problem:
        raise ModelError(f"{type(model).__name__} does not say where its tokens are looked up.") from problem


def feed_forwards(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """(up, down) of every feed-forward sublayer, in the order of `layers`; the gate of a gated one stands beside them.

    Raises ModelError where they are not known by name or do not pair up (mixtures of experts).
    """
    return _sublayers(model, "up", "down")


def attentions(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """(query, output) of every attention sublayer, cross-attention too; a fused matrix stands for the query.

    Raises ModelError where they are not known by name or do not pair up.
    """
    return _sublayers(model, "query", "output")


def _sublayers(model: nn.Module, first: str, last: str) -> list[tuple[nn.Module, nn.Module]]:
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for name, layer in chain.from_iterable(stack.items() for stack in _stacks(model).values()):
        inside = [(f"{name}.{n}", module) for n, module in linears(layer).items()]
        firsts, lasts = ([module for path, module in inside if _plays(path, part)] for part in (first, last))
        if not firsts or len(firsts) != len(lasts):
            raise ModelError(f"{name} has {len(firsts)} {first} and {len(lasts)} {last} layers, which do not pair up.")
        pairs += zip(firsts, lasts, strict=True)
    return pairs


def norms(model: nn.Module) -> list[nn.Module]:
    """The LayerNorm and RMSNorm modules inside the layers, and the one after the last layer where there is one.

    Those of embeddings and heads are none of them. In the model's order. Raises ModelError where there is none.
    """
    stacks = _stacks(model)
    inside = tuple(f"{name}." for name in stacks)
    final = {f"{name.rpartition('.')[0]}.{ending}".lstrip(".") for name in stacks for ending in FINAL}
    own = ((n, m) for n, m in model.named_modules() if _is_norm(m) and "delta" not in n.split("."))
    found = [m for n, m in own if n.startswith(inside) or n in final]
    if not found:
        raise ModelError(f"{type(model).__name__} has no normalisation layer with a weight.")
    return found


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm") and isinstance(getattr(module, "weight", None), nn.Parameter)


def _plays(name: str, part: str) -> bool:
    if part == "down" and _plays(name, "output"):  # BERT calls both `output.dense`
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
