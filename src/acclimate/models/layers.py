"""A decoding step through all layers of a decoder in one call, compiled on the machine that uses it (layers.cpp).

A step of few rows is short for each of its operations: most of its time goes by between them. Llama's layers are known,
and those built like them: root-mean-square norms, rotary positions, attention of grouped heads, a SiLU gate; a LoRA may
ride on any of their products. A model is tried before it is trusted; what is built otherwise, or carries anything else,
is read layer by layer as before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.activations import SiLUActivation

from acclimate.models import kernels, rows
from acclimate.models.kernels import FLOAT, INT, POINTER, for_dtype
from acclimate.models.memory import RoomyLayer, make_room, memory_name
from acclimate.models.modes import evaluating
from acclimate.models.outline import head_of, trunk_of

PARTS = {
    "": ("input_layernorm", "mlp", "post_attention_layernorm", "self_attn"),
    "self_attn": ("k_proj", "o_proj", "q_proj", "v_proj"),
    "mlp": ("act_fn", "down_proj", "gate_proj", "up_proj"),
}
PRODUCTS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
WIDTH = 32  # of which a head's size has to be a multiple
MOST = 64  # rows


@dataclass(frozen=True)
class Plan:
    """What a step needs of a model as it is now. held: tensors that `table` points to.

    table: (layers, numbers) addresses and sizes in the order of layers.cpp, without keys and values.
    """

    trunk: Any
    head: nn.Module
    table: Int[Tensor, "layers numbers"]
    held: tuple[Tensor, ...]
    sizes: tuple[int, ...]  # layers, hidden, inner, heads, groups, d
    eps: float
    scale: float
    dtype: torch.dtype
    wide: bool  # whether logits of bfloat16 weights are summed in float32 and stay that


@cache
def _function(dtype: torch.dtype) -> Any:
    """The kernel for this dtype; None without a compiler, and for other dtypes."""
    return for_dtype("layers", dtype, *[POINTER] * 6, FLOAT, FLOAT, INT)


_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def plan(model: nn.Module) -> Plan | None:
    """For steps of a model as it is now, with the adapter that answers; None where it has to be read layer by layer."""
    with evaluating(model):
        made = _made(model)
        if made is not None and model not in _known:
            _known[model] = _agrees(model, made)
    return made if made is not None and _known[model] else None


def describe() -> str:
    """What was decided for this machine, in a line."""
    if isinstance(kernels.library(), str):
        return "layer by layer"
    return f"all layers in one call where a model is built like Llama, up to {MOST} rows"


def serves(plan: Plan, cache: Any, rows: int) -> bool:
    """Whether a step of these rows, with that memory, can be taken."""
    layers = getattr(cache, "layers", ())
    roomy = len(layers) == plan.sizes[0] and all(isinstance(layer, RoomyLayer) for layer in layers)
    return roomy and rows <= MOST and not torch.is_autocast_enabled("cpu")


def step(
    plan: Plan, ids: Int[Tensor, "rows 1"], cache: Any, mask: Int[Tensor, "rows time"], positions: Int[Tensor, "rows 1"]
) -> Float[Tensor, "rows vocab"]:
    """Logits after one more id of each row, whose keys and values are put into the cache. Without a graph."""
    layers, hidden, inner, heads, groups, d = plan.sizes
    rows, time = mask.shape
    x = plan.trunk.get_input_embeddings()(ids)
    cos, sin = (part.float().expand(rows, 1, d).contiguous() for part in plan.trunk.rotary_emb(x, positions))
    own = [space for layer in cache.layers for space in layer.one_more()]
    places = [[space.data_ptr() for space in own[i : i + 2]] + _steps(own[i : i + 2]) for i in range(0, len(own), 2)]
    table = torch.cat([plan.table, torch.tensor(places)], dim=1)
    sizes = torch.tensor([layers, rows, hidden, inner, heads, groups, d, time])
    flowing, exists = x.float().contiguous(), None if bool(mask.all()) else mask.bool().contiguous()
    _function(plan.dtype)(
        *(each.data_ptr() for each in (table, sizes, flowing, cos, sin)), None if exists is None else exists.data_ptr(),
        plan.eps, plan.scale, torch.get_num_threads(),
    )  # fmt: skip
    said: Tensor = plan.trunk.norm(flowing.to(plan.dtype))[:, -1]
    if plan.wide:
        return kernels.widened(said, cast(Tensor, plan.head.weight))
    logits: Tensor = plan.head(said)
    return logits


def _steps(spaces: Sequence[Tensor]) -> list[int]:
    return [step for space in spaces for step in space.stride()[:3]]


def _made(model: Any) -> Plan | None:
    trunk, head = trunk_of(model), head_of(model)
    if head is None or not all(hasattr(trunk, name) for name in ("layers", "rotary_emb", "norm")):
        return None
    found = [_layer(layer) for layer in trunk.layers]
    known = [layer for layer in found if layer is not None]
    if not known or len(known) < len(found) or len({layer.kind for layer in known}) > 1:
        return None
    sizes, eps, scale, dtype = known[0].kind
    hidden, inner, heads, groups, d = sizes
    if d % WIDTH or hidden % WIDTH or inner % WIDTH or heads % groups or _function(dtype) is None:
        return None
    table, held = torch.tensor([layer.numbers for layer in known]), [tensor for layer in known for tensor in layer.held]
    plain = type(head) is nn.Linear and not _hooked(head) and head.bias is None and _readable(head.weight, dtype)
    wide = plain and dtype == torch.bfloat16
    return Plan(trunk, head, table, tuple(held), (len(known), *sizes), eps, scale, dtype, wide)


class _Layer(NamedTuple):
    """A row of the table, the tensors that it points to, and what all layers have to have alike: sizes, eps, scale, dtype."""

    numbers: list[int]
    held: list[Tensor]
    kind: tuple[tuple[int, ...], float, float, torch.dtype]


def _layer(layer: Any) -> _Layer | None:
    """What a step needs of a layer; None where anything in it is not known."""
    for path, names in PARTS.items():
        part = layer.get_submodule(path)
        if tuple(sorted(dict(part.named_children()))) != names or _hooked(part):
            return None
    norms, linears = [layer.input_layernorm, layer.post_attention_layernorm], [layer.get_submodule(p) for p in PRODUCTS]
    simple = not any(_hooked(part) or list(part.children()) for part in (*norms, layer.mlp.act_fn))
    if not simple or not isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation) or not all(map(rows.is_norm, norms)):
        return None
    matrices = [matrix for matrix in map(_matrix, linears) if matrix is not None]
    alike, d = norms[0].variance_epsilon == norms[1].variance_epsilon, getattr(layer.self_attn, "head_dim", 0)
    if len(matrices) < len(linears) or not alike or not d:
        return None
    weights, dtype = [norm.weight.detach() for norm in norms], linears[0].weight.dtype
    if not all(_readable(tensor, dtype) for tensor in (*weights, *(linear.weight for linear in linears))):
        return None
    q, k, gate = (
        layer.get_submodule(name).weight for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj")
    )
    return _Layer(
        [*(weight.data_ptr() for weight in weights), *(number for numbers, _ in matrices for number in numbers)],
        [*weights, *(tensor for _, held in matrices for tensor in held)],
        (
            (q.shape[1], gate.shape[0], q.shape[0] // d, k.shape[0] // d, d),
            float(norms[0].variance_epsilon),
            float(getattr(layer.self_attn, "scaling", d**-0.5)),
            dtype,
        ),
    )


def _matrix(linear: Any) -> tuple[list[int], list[Tensor]] | None:
    """w, b, down, up and rank of a product, and the tensors that they lie in."""
    low = _riding(linear) if type(linear) is nn.Linear else None
    if low is None:
        return None
    numbers, held = [linear.weight.data_ptr(), 0, 0, 0, 0], [linear.weight.detach()]
    if linear.bias is not None:
        held.append(linear.bias.detach().float())
        numbers[1] = held[-1].data_ptr()
    if low:
        down, up = low[0].to(linear.weight.dtype).contiguous(), low[1].float().t().contiguous()
        held += [down, up]
        numbers[2:] = [down.data_ptr(), up.data_ptr(), len(down)]
    return numbers, held


@torch.no_grad()
def _riding(linear: Any) -> tuple[Tensor, ...] | None:
    """The factors of the change that rides on a product, () without one; None for what is no product of two."""
    switch = dict(linear.named_children()).get("delta")
    if switch is None:
        return None if _hooked(linear) else ()
    alone = len(linear._forward_hooks) == 1 and not linear._forward_pre_hooks and "forward" not in vars(linear)
    found: tuple[Tensor, ...] | None = switch.low_rank() if alone and hasattr(switch, "low_rank") else None
    return found


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _readable(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_cpu and tensor.dtype == dtype and tensor.is_contiguous() and kernels.content(tensor)


@torch.no_grad()
def _agrees(model: Any, made: Plan) -> bool:
    """Whether two rows, one padded, get the logits of the model itself at their fourth and fifth id."""
    vocab = model.config.vocab_size
    ids = (torch.arange(10).reshape(2, 5) * 7 + 3) % vocab
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 0] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given: Mapping[str, Any] = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    try:
        plain = model(input_ids=ids, **given).logits[:, 3:].float()
        cache = DynamicCache(config=model.config)
        name = memory_name(model)
        begun = {"attention_mask": mask[:, :3], "position_ids": positions[:, :3], "use_cache": True, name: cache}
        make_room(model(input_ids=ids[:, :3], **begun)[name])
        if not serves(made, cache, 2):
            return False
        both = [step(made, ids[:, t : t + 1], cache, mask[:, : t + 1], positions[:, t : t + 1]).float() for t in (3, 4)]
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError):
        return False
    tolerance = 1e-4 if made.dtype == torch.float32 else 5e-2
    return bool((torch.stack(both, dim=1) - plain).abs().max() <= tolerance * plain.abs().max().clamp(min=1))
