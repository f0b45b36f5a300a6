"""Texts as vectors: pooled hidden states of any layer, the same alone as in any batch, and kept on disk by content."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from acclimate.data.archive import atomically
from acclimate.data.sources import cache
from acclimate.errors import DataError, ModelError
from acclimate.models.fingerprint import fingerprint
from acclimate.models.modes import evaluating
from acclimate.models.outline import is_encoder_decoder, trunk_of
from acclimate.tokens.batch import rectangle
from acclimate.tokens.codec import Codec, Encoded

Pool = Literal["mean", "last", "first"]  # over a text's tokens, or its last or first one
Tick = Callable[[int], None]

CODE = 1  # raise it when the same ids are to give other numbers
BUDGET = 8192  # padded tokens that go through the model at once


def encoded(codec: Codec, texts: Sequence[str], most: int | None = None) -> list[Encoded]:
    """Each text as its tokenizer spells it alone, with its special tokens.

    most: ids that fit; of a longer text the oldest part is left out and counted in `truncated`. Raises DataError for a
    text without any id.
    """
    return [_fitted(codec, text, place, most) for place, text in enumerate(texts)]


def _fitted(codec: Codec, text: str, place: int, most: int | None) -> Encoded:
    own, room = codec.plain(text), None if most is None else most - len(codec.prefix) - len(codec.suffix)
    kept = own if room is None or len(own) <= room else own[len(own) - room :]
    ids = (*codec.prefix, *kept, *codec.suffix)
    if not ids:
        raise DataError(
            f"Text {place + 1} of {codec.tokenizer.name_or_path or 'this tokenizer'} has no token: {text!r}."
        )
    return Encoded(ids, (False,) * len(ids), truncated=len(own) - len(kept))


def features(
    model: nn.Module,
    rows: Sequence[Encoded],
    fill: int,
    layer: int = -1,
    pool: Pool = "mean",
    *,
    budget: int = BUDGET,
    tick: Tick | None = None,
) -> Float[np.ndarray, "n d"]:
    """(n, d) in float32 (float64 on a float64 model): one vector for each row, in their order.

    layer: 0 what enters the first layer, i what leaves the i-th, −1 what the trunk (of an encoder-decoder: the encoder)
    answers in the end, its last norm included. Layers above it do not run. fill: an id for padding; what it is has no
    effect. budget: padded tokens at once. tick(n) hears that n more rows are done. ModelError without such a layer.
    """
    wanted = _layer(model, layer)
    done: dict[tuple[int, ...], np.ndarray] = {}
    with evaluating(model), torch.no_grad():
        for part in _budgeted({row.ids for row in rows}, budget):
            ids, mask = (t.to(next(model.parameters()).device) for t in rectangle(part, fill))
            done |= zip(part, pooled(_states(model, wanted, ids, mask), mask, pool).cpu().numpy(), strict=True)
            if tick is not None:
                tick(sum(row.ids in part for row in rows))
    return np.stack([done[row.ids] for row in rows])


def pooled(states: Float[Tensor, "rows time d"], mask: Int[Tensor, "rows time"], pool: Pool) -> Float[Tensor, "rows d"]:
    """The vectors of each row's real tokens (mask 1, on the left) as one, in at least float32."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    if pool == "first":
        return wide[:, 0]
    lengths = mask.sum(-1)
    if pool == "last":
        return wide[torch.arange(len(wide), device=wide.device), lengths - 1]
    return wide.masked_fill(mask[..., None] == 0, 0).sum(1) / lengths[:, None]  # what pads may be NaN


def _budgeted(rows: set[tuple[int, ...]], budget: int) -> list[list[tuple[int, ...]]]:
    """Rows of falling length, in batches whose padded size stays within the budget."""
    parts: list[list[tuple[int, ...]]] = []
    for ids in sorted(rows, key=lambda ids: (-len(ids), ids)):
        if not parts or len(parts[-1][0]) * (len(parts[-1]) + 1) > budget:
            parts.append([])
        parts[-1].append(ids)
    return parts


def _reader(model: Any) -> Any:
    """What reads: the encoder of an encoder-decoder, otherwise the model without its heads."""
    trunk = model.get_encoder() if is_encoder_decoder(model) else trunk_of(model)
    return model if trunk is None else trunk


def _blocks(model: Any) -> nn.ModuleList:
    """The layers of the reader: its first list of modules that is as long as its config says."""
    reader = _reader(model)
    count = reader.config.get_text_config().num_hidden_layers
    lists = [module for module in reader.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of {count} layers; only its last, −1, can be read.")
    return lists[0]


def _layer(model: nn.Module, layer: int) -> int | None:
    """Which layer's input is wanted; None for what the reader answers in the end."""
    if layer == -1:
        return None
    count = len(_blocks(model))
    if not -count - 1 <= layer <= count:
        raise ModelError(
            f"There is no layer {layer}: {type(model).__name__} has 0 (its embeddings) to {count}, and −1."
        )
    return None if layer == count else layer % (count + 1)


def _states(
    model: nn.Module, wanted: int | None, ids: Int[Tensor, "rows time"], mask: Int[Tensor, "rows time"]
) -> Float[Tensor, "rows time d"]:
    reader = _reader(model)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "use_cache" in inspect.signature(reader.forward).parameters:
        given["use_cache"] = False
    if wanted is None:
        states: Tensor = reader(**given).last_hidden_state
        return states
    with _stopping(_blocks(model)[wanted]) as heard:
        reader(**given)
    return heard[0]


class _Reached(Exception):
    """The layer that was asked for is reached; those above it need not run."""


@contextmanager
def _stopping(block: nn.Module) -> Iterator[list[Tensor]]:
    """A forward pass in the block ends where `block` begins; what would have entered it is in the list."""
    heard: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        heard.append(args[0] if args else named["hidden_states"])
        raise _Reached

    hook = block.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        yield heard
    except _Reached:
        pass
    finally:
        hook.remove()


def cached_features(
    model: nn.Module,
    rows: Sequence[Encoded],
    fill: int,
    layer: int = -1,
    pool: Pool = "mean",
    *,
    budget: int = BUDGET,
    tick: Tick | None = None,
) -> Float[np.ndarray, "n d"]:
    """As `features`; kept in the user's cache under the hash of all that they depend on, and read from there again.

    That is the reader's weights and dtype, the ids, which say all of tokenizer, template and texts, layer, pool, and the
    versions of the code. A file that is not whole is written again; a reader that carries adapters is always asked.
    """
    if any("delta" in name.split(".") for name, _ in _reader(model).named_modules()):
        return features(model, rows, fill, layer, pool, budget=budget, tick=tick)
    place = cache() / "features" / f"{_key(model, rows, layer, pool)}.safetensors"
    kept = _read(place, len(rows))
    if kept is None:
        kept = features(model, rows, fill, layer, pool, budget=budget, tick=tick)
        with atomically(place) as partial:
            save_file({"features": kept}, partial, metadata={"sha256": sha256(kept.tobytes()).hexdigest()})
    elif tick is not None:
        tick(len(rows))
    return kept


def _key(model: nn.Module, rows: Sequence[Encoded], layer: int, pool: Pool) -> str:
    code, reader = [CODE, torch.__version__, transformers.__version__], _reader(model)
    kind = str(reader.config.model_type)
    said = [fingerprint(reader)["weights"], kind, _layer(model, layer), pool, code, [row.ids for row in rows]]
    return sha256(json.dumps(said).encode()).hexdigest()


def _read(place: Path, count: int) -> np.ndarray | None:
    """The kept features, or None where there are none, or not those that were written."""
    if not place.is_file():
        return None
    try:
        with safe_open(place, framework="numpy") as file:
            kept: np.ndarray = file.get_tensor("features")
            said = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError):
        return None
    return kept if len(kept) == count and sha256(kept.tobytes()).hexdigest() == said else None
