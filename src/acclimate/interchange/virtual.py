"""Prompts and prefixes in the format of Hugging Face PEFT, both ways.

    adapter_config.json         PROMPT_TUNING or PREFIX_TUNING, how many soft tokens
    adapter_model.safetensors   prompt_embeddings: vectors (n, d), or of every layer its keys and its values, side by side

PEFT hands keys to attention as they are, this package to whatever the model does to keys before; a rotation by the
position is undone here, and a model that does anything else to its keys (YaRN scales them too) is refused.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.errors import ModelError, SourceError
from acclimate.interchange.peft import CONFIG, WEIGHTS
from acclimate.methods.artifact import read_facts, read_tensors, write_tensors
from acclimate.methods.delta import Switch, carriers
from acclimate.methods.prefix import Prefix
from acclimate.methods.prompt import PromptTuning
from acclimate.methods.soft import Rows, vectors_of
from acclimate.methods.switch import links

KINDS: dict[str, type[PromptTuning] | type[Prefix]] = {"PROMPT_TUNING": PromptTuning, "PREFIX_TUNING": Prefix}


def write(model: Any, method: PromptTuning | Prefix, folder: Path, base_name: str, name: str = "default") -> None:
    """Write the settled adapter `name` of a decoder into the existing `folder`, as PEFT does."""
    found = embeddings(model, method, name)
    layers, heads, size = _shape(model)
    prefix = {"token_dim": heads * size, "encoder_hidden_size": heads * size, "prefix_projection": False}
    config = {
        "peft_type": next(kind for kind, known in KINDS.items() if known is type(method)),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "num_virtual_tokens": len(found),
        "num_transformer_submodules": 1,
        "num_layers": layers,
        "num_attention_heads": heads,
        "inference_mode": True,
        **(prefix if isinstance(method, Prefix) else {"token_dim": found.shape[1], "prompt_tuning_init": "RANDOM"}),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors({"prompt_embeddings": found}, folder / WEIGHTS)


def read(folder: Path) -> tuple[PromptTuning | Prefix, Float[Tensor, "n c"]]:
    """The method, to be installed, and what `fill` then puts into it. Raises SourceError for any other adapter."""
    config = read_facts(folder / CONFIG)
    kind, found = config.get("peft_type"), read_tensors(folder / WEIGHTS).get("prompt_embeddings")
    if kind not in KINDS or found is None or found.ndim != 2:
        raise SourceError(
            f"{folder} holds a PEFT adapter of type {kind}; prompts and prefixes with embeddings are read."
        )
    if config.get("num_transformer_submodules") == 2:
        raise SourceError(
            f"{folder} holds soft tokens of an encoder-decoder, which PEFT puts into its decoder as well."
        )
    if kind == "PREFIX_TUNING":
        return Prefix(len(found), middle=0, start="random"), found
    return PromptTuning(len(found), start="random"), found


@torch.no_grad()
def fill(model: nn.Module, found: Float[Tensor, "n c"], name: str = "default") -> None:
    """Put PEFT's `prompt_embeddings` into the installed adapter `name`. Raises ModelError where they do not fit."""
    rows = _rows(model, name)
    wanted = [vectors_of(model, name)] if not rows else [cast(Tensor, link.rows) for link in rows]
    count, wide = len(wanted[0]), sum(w.shape[1] for w in wanted)
    if found.shape != (count, wide):
        raise ModelError(f"prompt_embeddings is {tuple(found.shape)}, the model needs {(count, wide)}.")
    plain = _turned(model, found.to(wanted[0]), -1) if rows else found
    for into, part in zip(wanted, torch.split(plain, [w.shape[1] for w in wanted], 1), strict=True):
        into.copy_(part)


@torch.no_grad()
def embeddings(model: nn.Module, method: PromptTuning | Prefix, name: str = "default") -> Float[Tensor, "n c"]:
    """What PEFT calls prompt_embeddings. Raises ModelError for a model whose keys it could not express."""
    if isinstance(method, PromptTuning):
        return vectors_of(model, name).detach()
    return _turned(model, torch.cat([link.values().detach() for link in _rows(model, name)], 1), 1)


def _rows(model: nn.Module, name: str) -> list[Rows]:
    """Layer by layer the keys, then the values."""
    deltas = [cast(Switch, module.delta)[name] for module in carriers(model, name).values()]
    return [link for delta in deltas for link in links(delta) if isinstance(link, Rows)]


def _shape(model: Any) -> tuple[int, int, int]:
    """Layers, heads with keys of their own, and numbers to a head."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


def _turned(model: Any, found: Float[Tensor, "n c"], way: int) -> Float[Tensor, "n c"]:
    """Keys turned by their position (1) or back again (−1); values as they are."""
    ends = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    rotary = next((m for path, m in model.named_modules() if path.endswith("rotary_emb")), None)
    known = {"wpe", "c_attn"} if rotary is None else {"k_proj", "v_proj"}
    if model.config.is_encoder_decoder or not known <= ends or any("k_norm" in e or "k_layernorm" in e for e in ends):
        raise ModelError(f"{type(model).__name__} makes its keys in a way that PEFT's prefixes cannot be turned into.")
    layers, heads, size = _shape(model)
    both = found.clone().view(-1, layers, 2, heads, size)
    if rotary is not None:
        cos, sin = rotary(found, torch.arange(len(found), device=found.device)[None])
        both[:, :, 0] = _rotated(both[:, :, 0], cos[0], way * sin[0])
    return both.flatten(1)


def _rotated(
    keys: Float[Tensor, "n layers heads d"], cos: Float[Tensor, "n d"], sin: Float[Tensor, "n d"]
) -> Float[Tensor, "n layers heads d"]:
    """Each number and the one half a head further, turned together: Llama's way. Raises ModelError for others."""
    half = keys.shape[-1] // 2
    if cos.shape[-1] != 2 * half or not torch.equal(cos[:, :half], cos[:, half:]) or bool((cos[0] != 1).any()):
        raise ModelError(
            "This model rotates its keys in another way than Llama; PEFT's prefixes cannot be turned into it."
        )
    crossed = torch.cat([-keys[..., half:], keys[..., :half]], -1)
    return keys * cos[:, None, None] + crossed * sin[:, None, None]
