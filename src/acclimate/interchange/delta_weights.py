"""A tuned model as its difference from a base, which it does not hold: how Alpaca and Vicuna were published.

    delta.safetensors   <tensor>: tuned − base, in float32 (float64 for a float64 tensor); absent where nothing changed
                        <tensor>#places, <tensor>#values: numbers that base + difference would round otherwise, as they are
    acclimate.json      the fingerprints of the base and of the tuned model
    tokenizer/          the tuned model's, where it is another one

Whoever has the base gets the tuned model back bit for bit, or an error: both fingerprints are checked.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from acclimate.errors import ModelError, SourceError
from acclimate.methods.artifact import FACTS, read_facts, read_tensors, write_facts, write_tensors
from acclimate.methods.delta import base, names
from acclimate.methods.targets import embedding
from acclimate.models.fingerprint import check, fingerprint

WEIGHTS, FORMAT = "delta.safetensors", "delta"
_PLACES, _VALUES = "#places", "#values"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Difference(NamedTuple):
    """change: tuned − base, at least float32. values (n,) are the tuned numbers at the flat places (n,), as they are."""

    change: Tensor
    places: Int[Tensor, " n"]
    values: Tensor


def difference(before: Tensor, tuned: Tensor) -> Difference:
    """What `restore` needs to make `tuned` of `before`, which may have fewer rows: a new row differs from zeros.

    base + fl(tuned − base) rounds to tuned nearly everywhere (always where one is within a factor of two of the other,
    Sterbenz 1974), but not where a weight all but vanished; those few are kept themselves. Raises ModelError for tensors
    of different dtypes, or of shapes that added rows do not explain.
    """
    if before.dtype != tuned.dtype:
        raise ModelError(f"the base is {before.dtype}, the tuned model {tuned.dtype}; load both in one precision.")
    wide = torch.promote_types(tuned.dtype, torch.float32)
    grown = _grown(before, tuned.shape).to(wide)
    change = tuned.to(wide) - grown
    lost = _bits((grown + change).to(tuned.dtype)) != _bits(tuned)
    places = lost.flatten().nonzero().squeeze(1)
    return Difference(change, places, tuned.flatten()[places])


def restore(before: Tensor, found: Difference) -> Tensor:
    """The tuned tensor, in the dtype of `before`. Raises ModelError for a difference that is made for another tensor."""
    change, places, values = found
    grown = _grown(before, change.shape).to(torch.promote_types(before.dtype, torch.float32))
    if len(places) != len(values) or (len(places) and not 0 <= int(places.min()) <= int(places.max()) < grown.numel()):
        raise ModelError(f"{len(values)} numbers for {len(places)} places do not fit into {tuple(grown.shape)}.")
    tuned = (grown + change.to(grown.device)).to(before.dtype).contiguous()
    tuned.view(-1)[places.to(grown.device)] = values.to(tuned)
    return tuned


def _grown(before: Tensor, shape: torch.Size) -> Tensor:
    if before.shape == shape:
        return before
    if not before.ndim or before.shape[1:] != shape[1:] or before.shape[0] > shape[0]:
        raise ModelError(f"the base has {tuple(before.shape)}, the tuned model {tuple(shape)}; only rows can be added.")
    return torch.cat([before, before.new_zeros(shape[0] - before.shape[0], *shape[1:])])


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])


@torch.no_grad()
def write(folder: Path, before: Mapping[str, Tensor], tuned: nn.Module, facts: Mapping[str, object]) -> None:
    """Write the difference of `tuned` from `before` (copies of `delta.base` of the base) into the existing `folder`.

    facts: JSON; `base` is the base's fingerprint; the tuned model's is added. Raises ModelError where the two differ in
    more than weights and rows, and where adapters still ride on `tuned`.
    """
    if riding := names(tuned):
        raise ModelError(f"The tuned model still carries the adapter {riding[0]!r}; merge it first.")
    own = base(tuned)
    if odd := sorted(own.keys() ^ before.keys()):
        raise ModelError(f"{odd[0]} is in one model only, so one is no tuned version of the other.")
    found: dict[str, Tensor] = {}
    for key, parameter in own.items():
        found |= dict(_entries(key, before[key], parameter.detach()))
    write_tensors(found, folder / WEIGHTS)
    write_facts(folder, {**facts, "format": FORMAT, "tuned": fingerprint(tuned)})


def _entries(key: str, before: Tensor, tuned: Tensor) -> Iterator[tuple[str, Tensor]]:
    if before.shape == tuned.shape and before.dtype == tuned.dtype and torch.equal(_bits(before), _bits(tuned)):
        return
    try:
        change, places, values = difference(before, tuned)
    except ModelError as problem:
        raise ModelError(f"{key}: {problem}") from problem
    yield key, change
    if len(places):
        yield from ((key + _PLACES, places), (key + _VALUES, values))


@torch.no_grad()
def apply(model: nn.Module, folder: Path) -> dict[str, object]:
    """Turn `model`, the base, into the tuned model of `folder`, and return the facts. The old tensors stay as they are.

    Raises SourceError for a damaged folder; ModelError for another base, and, when `model` is changed already, where the
    result is not the tuned model: the base in another precision, or a file that was changed.
    """
    facts = _facts(folder)
    check(fingerprint(model), cast(Mapping[str, str], facts["base"]), "base model")
    found = _differences(folder)
    before = {key: parameter.data for key, parameter in base(model).items()}
    if foreign := sorted(found.keys() - before.keys()):
        raise ModelError(f"{folder / WEIGHTS} changes {foreign[0]}, which this model has not.")
    restored = {}
    for key, one in found.items():
        try:
            restored[key] = restore(before[key], one)
        except ModelError as problem:
            raise ModelError(f"{folder / WEIGHTS}, {key}: {problem}") from problem
    if any(restored[key].shape != before[key].shape for key in restored):
        _resize(model, restored)
    for key, parameter in base(model).items():
        parameter.data = restored.get(key, before[key])
    check(fingerprint(model), cast(Mapping[str, str], facts["tuned"]), "tuned model")
    return facts


def _resize(model: Any, restored: Mapping[str, Tensor]) -> None:
    weight = embedding(model).weight
    key = next(key for key, parameter in base(model).items() if parameter is weight)
    if key in restored and len(restored[key]) != len(cast(Tensor, weight)):
        model.resize_token_embeddings(len(restored[key]), mean_resizing=False)


def _facts(folder: Path) -> dict[str, object]:
    if not (folder / WEIGHTS).is_file():
        raise SourceError(f"{folder} holds no {WEIGHTS}; give the folder that `export --format delta` wrote.")
    facts = read_facts(folder / FACTS)
    for key in ("base", "tuned"):
        said = facts.get(key)
        if not isinstance(said, dict) or not {"weights", "dtype", "weights_bfloat16"} <= said.keys():
            raise SourceError(f"{folder / FACTS} does not say what its {key} model is.")
    return facts


def _differences(folder: Path) -> dict[str, Difference]:
    loaded = read_tensors(folder / WEIGHTS)
    none = torch.zeros(0, dtype=torch.long)
    return {
        key: Difference(change, loaded.get(key + _PLACES, none), loaded.get(key + _VALUES, change.new_zeros(0)))
        for key, change in loaded.items()
        if not key.endswith((_PLACES, _VALUES))
    }
