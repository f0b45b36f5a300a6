"""What is refused before transformers reads a model folder: pickles, and settings that bring in foreign code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acclimate.errors import SourceError

# Settings of config.json by which a checkpoint names code or files of its own. Attention and expert kernels are fetched
# from the hub and run whatever trust_remote_code says (CVE-2026-4372); fusions and kernels patch transformers' classes.
_KERNELS = ("attn_implementation", "experts_implementation")
_REDIRECTS = ("transformers_weights", "fusion_config", "kernel_config")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Raise SourceError unless `folder` is a whole model of safetensors and JSON that names no code or outside file."""
    if (folder / "adapter_config.json").is_file():
        raise SourceError(f"{folder} is an adapter; load its base model by name and give this folder as the adapter.")
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no config.json; a model folder holds config.json, {WEIGHTS} and a tokenizer.")
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            _check_settings(folder / file)
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / INDEX).is_file():
        raise SourceError(_no_weights(folder))
    _check_index(folder / INDEX)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise SourceError(f"{file} is not readable JSON: {problem}.") from problem
    if not isinstance(found, dict):
        raise SourceError(f"{file} holds a {type(found).__name__}; it must hold an object.")
    return found


def _check_settings(file: Path) -> None:
    for key, value in _settings(_read(file)):
        names_kernel = any(kind in key for kind in _KERNELS) and "/" in json.dumps(value)
        if names_kernel or (key in _REDIRECTS and value is not None):
            raise SourceError(f"{file}: {key} is {json.dumps(value)}, which brings in code or files from elsewhere.")


def _settings(found: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(found, dict):
        yield from found.items()
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _settings(value)


def _check_index(file: Path) -> None:
    shards = _read(file).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise SourceError(f"{file} has no weight_map that says which file holds which weight.")
    for shard in sorted({str(shard) for shard in shards.values()}):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise SourceError(f"{file} names {shard!r}; a shard is a .safetensors file in the same folder.")
        if not (file.parent / shard).is_file():
            raise SourceError(f"{file} names {shard}, which is not there; the model was copied or fetched in part.")


def _no_weights(folder: Path) -> str:
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES):
        return (
            f"{folder} has its weights only in {', '.join(pickles)}; to read such a file can run code: refused. "
            f"Convert it once where you trust it: from transformers import {_class(folder)} as Model; "
            f"Model.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    ggufs = sorted(folder.glob("*.gguf"))
    hint = f" Give the file itself: {ggufs[0]}" if ggufs else ""
    return f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}.{hint}"


def _class(folder: Path) -> str:
    named = _read(folder / "config.json").get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    return first if first.isidentifier() else "AutoModelForCausalLM"
