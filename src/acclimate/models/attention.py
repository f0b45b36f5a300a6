"""Attention of each document of a packed stream to itself, through transformers' own attention interface."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from acclimate.models import flash, step, varlen
from acclimate.tokens.tree import Piece

NAME = "acclimate"


def register() -> None:
    """Make the attention known to transformers under `NAME`, beside its own."""
    AttentionInterface.register(NAME, by_document)
    AttentionMaskInterface.register(NAME, mask_for)


def by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """query (1, heads, tokens, d), key and value (1, kv heads, tokens, d) → (1, tokens, heads, d).

    With `document_pieces` among what the model passes on, each piece of the stream sees itself and those that it follows,
    its parent and that one's, in bfloat16 by compiled kernels where they can (`flash`; `varlen` on CUDA). Without, this is
    plain SDPA, or a decoding step's own (`step`).
    """
    pieces: tuple[Piece, ...] | None = given.pop("document_pieces", None)
    if pieces is None and not _more(given) and step.serves(query, key, value, attention_mask):
        return step.attend(query, key, value, attention_mask, _scale(given, query)), None
    if pieces is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    if _more(given):
        raise ValueError("soft-capped and biased attention have no packed form here")
    causal = given.get("is_causal")
    causal = bool(getattr(module, "is_causal", True)) if causal is None else bool(causal)
    if not causal and any(piece.parent >= 0 for piece in pieces):
        raise ValueError("what documents begin with can be read once only where nothing sees what follows")
    query, key, value = _mixed(query), _mixed(key), _mixed(value)
    for fast in (flash, varlen) if _plain(given, query.shape[2]) else ():
        if fast.serves(query, key, value):
            return fast.attend(query, key, value, pieces, causal, _scale(given, query)), None
    outputs: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []  # keys and values of each piece, behind those that it follows
    cut = (torch.split(x, [piece.length for piece in pieces], dim=2) for x in (query, key, value))
    for piece, q, k, v in zip(pieces, *cut, strict=True):
        if piece.parent >= 0:
            k, v = (torch.cat([before, own], dim=2) for before, own in zip(seen[piece.parent], (k, v), strict=True))
        seen.append((k, v))
        outputs.append(_one(q, k, v, causal, given))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _mixed(x: Tensor) -> Tensor:
    """As mixed precision has it, which rounds what attention is given."""
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind := x.device.type) else x


def _more(given: dict[str, Any]) -> bool:
    """Whether scores are changed on their way."""
    return given.get("softcap") is not None or given.get("position_bias") is not None


def _scale(given: dict[str, Any], query: Tensor) -> float:
    scale: float | None = given.get("scaling")
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _plain(given: dict[str, Any], time: int) -> bool:
    """Whether every token sees all of its document, and none is dropped."""
    window = given.get("sliding_window")
    return not given.get("dropout") and (window is None or time <= window)


def _one(
    q: Float[Tensor, "1 heads time d"],
    k: Float[Tensor, "1 kv seen d"],
    v: Float[Tensor, "1 kv seen d"],
    causal: bool,
    given: dict[str, Any],
) -> Float[Tensor, "1 heads time d"]:
    window, (time, seen) = given.get("sliding_window"), (q.shape[2], k.shape[2])
    mask = _band(time, seen, window, q.device) if time < seen or (window is not None and time > window) else None
    return nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=given.get("dropout", 0.0),
        scale=given.get("scaling"),
        is_causal=causal and mask is None,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _band(time: int, seen: int, window: int | None, device: torch.device) -> Bool[Tensor, "{time} {seen}"]:
    """Which of the `seen` tokens each of the last `time` of them sees: itself and those before it, within the window."""
    back = torch.arange(seen - time, seen, device=device)[:, None] - torch.arange(seen, device=device)[None]
    return (back >= 0) & (back < (seen if window is None else window))


def mask_for(*args: Any, **given: Any) -> Tensor | None:
    """No mask for a stream without padding (the documents keep themselves apart); SDPA's own mask otherwise."""
    window = getattr(given.get("config"), "sliding_window", None)
    same = given.get("attention_mask") is None and given.get("q_length") == given.get("kv_length")
    if same and (window is None or given["kv_length"] <= window):
        return None
    return sdpa_mask(*args, **given)
