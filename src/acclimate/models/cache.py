"""One step of a model that remembers what it has read: the only place that knows how a cache, a mask and positions fit.

A decoder reads its prompts padded on the left, with positions counted from the first real token; an encoder-decoder
reads them padded on the right and starts to write from its own start token. Real tokens are told by length, never by
id, so a pad that equals a terminator, or a terminator inside a prompt, changes nothing.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.models import graphs, layers
from acclimate.models.gated import by_token
from acclimate.models.kernels import products, using
from acclimate.models.logits import highest
from acclimate.models.memory import make_room, memory_name
from acclimate.models.modes import evaluating, still


@dataclass(frozen=True)
class Reader:
    """What every step of a batch asks of the model, found once.

    accepted: what its forward can be given. memory: the name that it has for a Cache, given and returned.
    quick: forwards of the layers that compiled kernels serve. whole: a step through all layers at once, where that can be.
    """

    accepted: frozenset[str]
    memory: str
    modules: tuple[nn.Module, ...]
    quick: Mapping[nn.Module, Callable[[Tensor], Tensor]]
    whole: layers.Plan | None


@dataclass(frozen=True)
class Past:
    """What the model remembers of the rows it is writing.

    cache: transformers' Cache; `extend` and `select` change it in place, so only the newest Past of a batch is valid.
    mask: (rows, read) 1 = real, over the prompt and what was written, or over the encoder's input.
    encoded: (rows, read, hidden) the encoder's last hidden states; None without an encoder.
    """

    cache: Any
    mask: Tensor
    reader: Reader
    encoded: Tensor | None = None


def context(model: nn.Module) -> int | None:
    """The most positions the model was built for, or None where nothing bounds them (relative positions, as in T5)."""
    config: Any = model.config
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length


def starts(model: nn.Module, prompt: Sequence[int]) -> Sequence[int]:
    """The ids the decoder has been fed before the first one it writes. ModelError without a start token."""
    config: Any = model.config
    if not config.is_encoder_decoder:
        return prompt
    generation: Any = getattr(model, "generation_config", None)
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(generation, "decoder_start_token_id", None) if start is None else start
    if start is None:
        raise ModelError(
            f"{type(model).__name__} writes from a start token, but its config names no decoder_start_token_id."
        )
    return (start,)


def read(model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Past]:
    """Read the prompts, padded: logits (rows, vocab) of the first token to write, float32 or wider, and the memory of them."""
    config: Any = model.config
    device = next(model.parameters()).device
    known = reader(model)
    if not config.is_encoder_decoder:
        ids, mask = (part.to(device) for part in padded(prompts, pad, left=True))
        return _forward(model, ids, Past(None, mask, known))
    ids, mask = (part.to(device) for part in padded(prompts, pad, left=False))
    start = torch.tensor([starts(model, prompt) for prompt in prompts], device=device)
    encoder: Any = model.get_encoder
    with evaluating(model), torch.no_grad():
        encoded = encoder()(input_ids=ids, attention_mask=mask)[0]
    return _forward(model, start, Past(None, mask, known, encoded))


def extend(model: nn.Module, ids: Tensor, past: Past) -> tuple[Tensor, Past]:
    """Read one more id of each row, ids (rows,): logits (rows, vocab) of the token after it, and the memory with it."""
    grown = past.mask
    if past.encoded is None:
        grown = torch.cat([past.mask, past.mask.new_ones(len(ids), 1)], dim=1)
    past = replace(past, mask=grown)
    plain = partial(_forward, model, ids[:, None], past)
    if not graphs.serves(ids, past):
        return plain()
    logits, past = graphs.extend(model, ids, past, partial(_answer, model, past.reader), plain)
    return checked(model, logits), past


def select(past: Past, rows: Sequence[int]) -> Past:
    """The memory of these rows, in this order; a row may be dropped or named several times."""
    index = torch.tensor(rows, device=past.mask.device)
    past.cache.reorder_cache(index)
    encoded = None if past.encoded is None else past.encoded[index]
    return replace(past, mask=past.mask[index], encoded=encoded)


def padded(prompts: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """ids and mask, (rows, longest) int64, from the lengths alone.

    >>> padded([[5, 6], [7]], pad=0, left=True)[1].tolist()
    [[1, 1], [0, 1]]
    """
    width = max(len(prompt) for prompt in prompts)
    ids, mask = [], []
    for prompt in prompts:
        real, gap = list(prompt), width - len(prompt)
        ids.append([pad] * gap + real if left else real + [pad] * gap)
        mask.append([0] * gap + [1] * len(real) if left else [1] * len(real) + [0] * gap)
    return torch.tensor(ids), torch.tensor(mask)


def reader(model: nn.Module) -> Reader:
    """What a step asks of this model."""
    modules, accepted = tuple(model.modules()), frozenset(inspect.signature(model.forward).parameters)
    quick = by_token(modules)
    return Reader(accepted, memory_name(model), modules, {**quick, **products(modules, quick)}, layers.plan(model))


def _forward(model: nn.Module, ids: Tensor, past: Past) -> tuple[Tensor, Past]:
    inputs: dict[str, Any] = {"attention_mask": past.mask, past.reader.memory: past.cache, "use_cache": True}
    accepted = past.reader.accepted
    if past.encoded is not None:
        inputs |= {"decoder_input_ids": ids, "encoder_outputs": (past.encoded,)}
    else:
        inputs |= {"input_ids": ids}
        if "position_ids" in accepted:
            inputs["position_ids"] = (past.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    whole = past.reader.whole
    if whole is not None and ids.shape[1] == 1 and layers.serves(whole, past.cache, len(ids)):
        with _reading(past.reader):
            return checked(model, layers.step(whole, ids, past.cache, past.mask, inputs["position_ids"])), past
    output = _answer(model, past.reader, inputs)
    wide, cache = checked(model, output.logits[:, -1]), output[past.reader.memory]
    return wide, replace(past, cache=make_room(cache) if past.cache is None else cache)


def _answer(model: nn.Module, known: Reader, inputs: Mapping[str, Any]) -> Any:
    with _reading(known):
        return model(**inputs)


@contextmanager
def _reading(known: Reader) -> Iterator[None]:
    """Without dropout and a way back, by quick forwards."""
    # no_grad, not inference_mode: a buffer that a forward fills (rotary frequencies) must stay usable in training.
    with still(known.modules), using(known.quick), torch.no_grad():
        yield


def checked(model: nn.Module, logits: Tensor) -> Tensor:
    """The logits in float32 or wider. ModelError where they are NaN or infinite."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not bool(highest(wide).isfinite().all()):
        raise ModelError(f"{type(model).__name__} computes NaN or infinite logits; its weights or its inputs are sick.")
    return wide
