"""Prompts are read: in one stream without padding, each once, and what several begin with once, where a model can."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from acclimate.models import rotary
from acclimate.models.cache import Past, checked, padded, read, reader
from acclimate.models.collate import WORTH
from acclimate.models.kernels import using
from acclimate.models.logprobs import inputs
from acclimate.models.memory import make_room
from acclimate.models.modes import evaluating
from acclimate.models.outline import head_of, is_encoder_decoder, outline, trunk_of
from acclimate.tokens.batch import Batch, asked, pack
from acclimate.tokens.codec import Encoded


def prefill(model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Past]:
    """Read the prompts: logits (rows, vocab) of the first token to write, float32 or wider, and the memory of them."""
    empty = _empty(model) if len(prompts) > 1 else None
    return read(model, prompts, pad) if empty is None else _streamed(model, prompts, pad, empty)


def _empty(model: nn.Module) -> DynamicCache | None:
    """A memory that keeps every key and value of a stream; None where the model has another, or rows differ in adapters."""
    if is_encoder_decoder(model) or not (outline(model).apart and outline(model).packs):
        return None
    if any(not isinstance(getattr(module, "active", None), str | None) for module in model.modules()):
        return None
    made = DynamicCache(config=cast(Any, model).config)
    return made if all(type(layer) is DynamicLayer for layer in made.layers) else None


@torch.no_grad()
def _streamed(model: nn.Module, prompts: Sequence[Sequence[int]], pad: int, empty: DynamicCache) -> tuple[Tensor, Past]:
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    rows = [Encoded(ids, (False,) * len(ids)) for ids in numbers]
    batch = pack(rows, least=WORTH if outline(model).shares else 0)
    batch = asked(batch, [(row, len(ids), 0, row) for ids, row in numbers.items()]).to(_device(model))
    known, trunk = reader(model), trunk_of(model)
    with evaluating(model), using(known.quick), rotary.quick(known.modules):
        output = trunk(**{**inputs(model, batch), "use_cache": True, known.memory: empty})
        logits = head_of(model)(output.last_hidden_state.flatten(0, 1)[batch.predict])
    _, mask = padded(prompts, pad, left=True)
    memory = _by_row(output[known.memory], _places(batch, which, mask.shape[1]))
    return checked(model, logits[torch.tensor(which)]), Past(make_room(memory), mask.to(_device(model)), known)


def _places(batch: Batch, which: Sequence[int], width: int) -> Int[Tensor, "rows width"]:
    """Where the ids of each row lie in the stream, on the left some place that the mask hides."""
    own = [[batch.place(row, t) for t in range(length)] for row, length in enumerate(batch.lengths)]
    return torch.tensor([[0] * (width - len(own[row])) + own[row] for row in which], device=batch.ids.device)


def _by_row(cache: Any, places: Int[Tensor, "rows width"]) -> Any:
    """The memory of a stream, (1, heads, tokens, d) a layer, as that of rows: (rows, heads, width, d)."""
    rows, width = places.shape
    for layer in cache.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name)[0].index_select(1, places.flatten())
            setattr(layer, name, held.view(len(held), rows, width, -1).transpose(0, 1))
    return cache


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
