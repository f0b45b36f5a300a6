"""Whether this is the model, tokenizer and template an adapter was made with: hashes, and the refusal of others."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from acclimate.errors import ModelError


def fingerprint(model: nn.Module) -> dict[str, str]:
    """weights: sha256 over name, dtype, shape and bytes of every base tensor by name; dtype: theirs, joined by "+".

    weights_bfloat16: the same after rounding to bfloat16, to recognise one model held in two precisions. Parameters and
    persistent buffers count; adapters (children named `delta`) do not; of tied tensors only the first name counts.
    Equal on every device. Raises ModelError if a tensor has no data (meta device).
    """
    tensors = dict(_base(model))
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ModelError(f"{empty[0]} has no data yet, so the model has no fingerprint; load its weights first.")
    kinds = sorted({_dtype(tensor) for tensor in tensors.values() if tensor.is_floating_point()})
    exact = _hash(tensors, rounded=False)
    rounded = exact if kinds == ["bfloat16"] else _hash(tensors, rounded=True)
    return {"weights": exact, "dtype": "+".join(kinds), "weights_bfloat16": rounded}


def same_base(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two fingerprints are of one model: exactly in equal precision, after rounding to bfloat16 otherwise."""
    key = "weights" if one["dtype"] == other["dtype"] else "weights_bfloat16"
    return one[key] == other[key]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what turns text into ids: vocabulary, merges, normaliser, added and special tokens.

    The padding token and the state of padding and truncation are left out: they never change the id of a real token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: Any = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    state = {key: value for key, value in parts.items() if key not in ("padding", "truncation")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"}
    return _digest(json.dumps([state, special], sort_keys=True).encode())


def template_hash(text: str) -> str:
    """sha256 of a template's text."""
    return _digest(text.encode())


def check(found: str | Mapping[str, str], expected: str | Mapping[str, str], what: str) -> None:
    """Raise ModelError, naming both, if `what` (such as "base model") is not the one an artifact was made with.

    Fingerprints are compared by `same_base`, hashes by equality.
    """
    if isinstance(found, str) or isinstance(expected, str):
        same, here, there = found == expected, found, expected
    else:
        same, here, there = same_base(found, expected), found["weights"], expected["weights"]
    if not same:
        raise ModelError(f"The {what} is {here}, but this was made with {there}; use the {what} it was made with.")


def _base(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen = set()
    trunk = getattr(model, "trunk", model)  # of a TaskModel: its heads are new, and not every head needs the pooler
    aside = {"delta"} if trunk is model else {"delta", "pooler"}
    for name, tensor in sorted(trunk.state_dict().items()):
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if not aside & set(name.split(".")) and (not tensor.numel() or place not in seen):
            seen.add(place)
            yield name, tensor


def _hash(tensors: Mapping[str, Tensor], rounded: bool) -> str:
    def line(name: str) -> str:
        tensor = tensors[name]
        if rounded and tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16)
        return f"{name} {_dtype(tensor)} {list(tensor.shape)} {_bytes_hash(tensor)}\n"

    with ThreadPoolExecutor() as threads:  # hashlib releases the interpreter lock
        return _digest("".join(threads.map(line, tensors)).encode())


def _bytes_hash(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"
