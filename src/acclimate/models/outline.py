"""What a Hugging Face model can do, found out by trying it: a trunk and a head apart, and documents in one stream."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from acclimate.models.attention import NAME, register
from acclimate.models.modes import evaluating
from acclimate.tokens.tree import Piece


@dataclass(frozen=True)
class Outline:
    """apart: `head(trunk(ids))` equals `model(ids)`, so the head can be asked at some places only.
    packs: documents in one stream get the logits (without a head, the hidden states) they get alone.
    shares: also when what some begin with stands there once."""

    apart: bool
    packs: bool
    shares: bool


_known: WeakKeyDictionary[nn.Module, Outline] = WeakKeyDictionary()


def outline(model: nn.Module) -> Outline:
    """Tried once for each model, on a few ids."""
    if model not in _known:
        apart, packs = _apart(model), _packs(model)
        _known[model] = Outline(apart, packs, shares=packs and _shares(model))
    return _known[model]


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether an encoder reads the prompt and a decoder writes the answer."""
    return bool(model.config.is_encoder_decoder)  # type: ignore[union-attr]


def trunk_of(model: Any) -> Any:
    """The model without its output layer."""
    return getattr(model, model.base_model_prefix, None)


def head_of(model: Any) -> Any:
    """The output layer of a language model."""
    return model.get_output_embeddings()


@torch.no_grad()
def _apart(model: nn.Module) -> bool:
    trunk = trunk_of(model)
    if is_encoder_decoder(model) or trunk is None or trunk is model or head_of(model) is None:
        return False
    ids = _some_ids(model, 4)
    with evaluating(model):
        whole = model(input_ids=ids).logits
        hidden = trunk(input_ids=ids).last_hidden_state
        try:
            return _close(whole, head_of(model)(hidden))
        except RuntimeError:  # ELECTRA's head reads embeddings of another width, which a layer between them makes
            return False


@torch.no_grad()
def _packs(model: nn.Module) -> bool:
    if is_encoder_decoder(model) or _local(model):
        return False
    before = model.config._attn_implementation  # type: ignore[union-attr]
    ids = _some_ids(model, 9)
    try:
        register()
        model.set_attn_implementation(NAME)  # type: ignore[operator]
        with evaluating(model):
            alone = [_said(model(input_ids=part)) for part in torch.split(ids, [3, 4, 2], dim=1)]
            positions = torch.cat([torch.arange(n) for n in (3, 4, 2)])[None].to(ids.device)
            pieces = (Piece(0, 3, -1), Piece(3, 4, -1), Piece(7, 2, -1))
            together = _said(model(input_ids=ids, position_ids=positions, document_pieces=pieces))
        works = _close(torch.cat(alone, dim=1), together)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        works = False
    if not works:
        model.set_attn_implementation(before)  # type: ignore[operator]
    return works


@torch.no_grad()
def _shares(model: nn.Module) -> bool:
    """Tried on two documents that begin with the same three ids; a model that looks ahead answers otherwise there."""
    ids = _some_ids(model, 7)
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4]], device=ids.device)
    try:
        with evaluating(model):
            each = (torch.cat([ids[:, :3], part], dim=1) for part in (ids[:, 3:5], ids[:, 5:]))
            alone = [_said(model(input_ids=one)) for one in each]
            pieces = (Piece(0, 3, -1), Piece(3, 2, 0), Piece(5, 2, 0))
            together = _said(model(input_ids=ids, position_ids=positions, document_pieces=pieces))
    except (TypeError, ValueError, RuntimeError):
        return False
    return _close(torch.cat([alone[0], alone[1][:, 3:]], dim=1), together)


def _said(output: Any) -> Tensor:
    """Logits; of a trunk without a head its hidden states."""
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def _local(model: Any) -> bool:
    """Attention in chunks, or in a window to both sides: no trial on a few ids shows it, and packing knows neither."""
    window = getattr(model.config, "sliding_window", None) or getattr(model.config, "local_attention", None)
    return bool(getattr(model.config, "attention_chunk_size", None) or (window and not model.can_generate()))


def _some_ids(model: nn.Module, count: int) -> Tensor:
    device = next(model.parameters()).device
    return (torch.arange(count, device=device)[None] * 7 + 3) % model.config.vocab_size  # type: ignore[union-attr, operator]


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(a.dtype, 3e-2)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max().clamp(min=1))
