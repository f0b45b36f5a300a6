"""What was trained, on disk: exactly the trainable tensors, by name, with the method that made them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate.errors import ModelError, SourceError
from acclimate.methods.delta import base

WEIGHTS, FACTS = "adapter.safetensors", "acclimate.json"


def tensors(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The model's own tensors that train, and those of the change `name`, as `….delta.<tensor>` without its name.

    They are the model's memory, not copies.
    """
    own, mine = base(model), f".delta.{name}."
    return {
        path.replace(mine, ".delta."): parameter.detach()
        for path, parameter in model.named_parameters()
        if (parameter.requires_grad if path in own else mine in path)
    }


def save(model: nn.Module, folder: Path, facts: Mapping[str, object], name: str = "default") -> None:
    """Write `adapter.safetensors` and `acclimate.json` into the existing `folder`."""
    write_facts(folder, facts)
    write_tensors(tensors(model, name), folder / WEIGHTS)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors and the facts of an artifact. Raises SourceError where they are absent or damaged."""
    if not (folder / WEIGHTS).is_file():
        raise SourceError(f"{folder} holds no {WEIGHTS}; give the adapter/ folder of a run.")
    return read_tensors(folder / WEIGHTS), read_facts(folder / FACTS)


def write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Write `acclimate.json`: the same facts give the same bytes."""
    text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / FACTS).write_text(f"{text}\n", encoding="utf-8")


def write_tensors(found: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors of any device and layout, readable to whoever may read the folder."""
    save_file({key: tensor.cpu().contiguous() for key, tensor in found.items()}, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors would keep others out, whatever the umask


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises SourceError for a damaged one."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise SourceError(f"{path} is no whole safetensors file: {problem}.") from problem


def read_facts(path: Path) -> dict[str, object]:
    """The JSON object in `path`. Raises SourceError for anything else."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise SourceError(f"{path} cannot be read as JSON: {problem}.") from problem
    if not isinstance(facts, dict):
        raise SourceError(f"{path} holds a {type(facts).__name__}; it must be a JSON object.")
    return facts


@torch.no_grad()
def fill(model: nn.Module, loaded: Mapping[str, Tensor], name: str = "default", where: str = "the artifact") -> None:
    """Put the loaded tensors into `model`, whose method is installed. Keys and shapes must be exactly those that train.

    Raises ModelError, and changes nothing, where they are not.
    """
    wanted = tensors(model, name)
    missing, extra = sorted(wanted.keys() - loaded.keys()), sorted(loaded.keys() - wanted.keys())
    if missing or extra:
        raise ModelError(
            f"{where} does not fit: {len(missing)} tensors are missing (first {missing[:1]}), "
            f"{len(extra)} have no place (first {extra[:1]})."
        )
    for key, tensor in loaded.items():
        if tensor.shape != wanted[key].shape:
            raise ModelError(f"{where}: {key} is {tuple(tensor.shape)}, the model needs {tuple(wanted[key].shape)}.")
    for key, tensor in loaded.items():
        wanted[key].copy_(tensor)
