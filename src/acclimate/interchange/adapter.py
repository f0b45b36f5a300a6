"""Adapters as folders: PEFT's format where PEFT can express the method, our own otherwise, and facts beside either."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from acclimate.data.archive import atomically
from acclimate.errors import AcclimateError, SourceError, UsageError, unknown
from acclimate.interchange import peft
from acclimate.methods import METHODS, LoRA, artifact
from acclimate.methods.delta import Method, base, detach, install, names
from acclimate.models.fingerprint import check, fingerprint

_OURS = {peft.CONFIG, peft.WEIGHTS, artifact.WEIGHTS, artifact.FACTS, "README.md"}


def save_adapter(
    model: nn.Module, method: Method, folder: Path, facts: Mapping[str, object], name: str = "default"
) -> None:
    """Make `folder` the adapter `name` of `model`, trained by `method`: whole, or as it was before.

    facts: JSON; `model` is the base's name, `base` its `fingerprint` from before training; `method` is added.
    Raises UsageError for a folder that holds anything but an adapter, SourceError where the disk refuses.
    """
    if folder.is_file():
        raise UsageError(f"{folder} is a file; give a folder.")
    foreign = sorted({path.name for path in folder.iterdir()} - _OURS) if folder.exists() else []
    if foreign:
        raise UsageError(f"{folder} holds {foreign[0]}, which is no part of an adapter; give a new or empty folder.")
    kind = next(key for key, known in METHODS.items() if type(method) is known)
    said = {**facts, "method": {"name": kind, **asdict(method)}}  # type: ignore[call-overload]
    with atomically(folder) as partial:
        partial.mkdir()
        if isinstance(method, LoRA):
            peft.write(model, method, partial, str(facts.get("model", "")), name)
            artifact.write_facts(partial, said)
        else:
            artifact.save(model, partial, said, name)
        if folder.exists():
            folder.rename(partial.parent / "replaced")


def load_adapter(model: nn.Module, folder: Path, name: str = "default") -> tuple[Method, dict[str, object]]:
    """Put the adapter in `folder` on `model` as `name`, and return its method and its facts ({} if PEFT wrote it).

    It is frozen, as the base is from now on; other adapters train and answer as before. It answers at once where it is
    the first, otherwise when activated. Raises SourceError for a damaged folder, ModelError for another base model.
    """
    method, tensors, facts = _read(folder)
    if isinstance(said := facts.get("base"), dict):
        check(fingerprint(model), said, "base model")
    own = base(model).values()
    _freeze(own)
    install(model, method, name)
    try:
        artifact.fill(model, tensors, name, str(folder))
    except AcclimateError:
        if name in names(model):
            detach(model, name)
        raise
    finally:
        _freeze(own)
        _freeze(p for path, p in model.named_parameters() if f".delta.{name}." in path)
    return method, facts


def _freeze(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)


def _read(folder: Path) -> tuple[Method, dict[str, Tensor], dict[str, object]]:
    if (folder / artifact.WEIGHTS).is_file():
        tensors, facts = artifact.read(folder)
        return _method(facts.get("method"), folder), tensors, facts
    if not (folder / peft.CONFIG).is_file():
        raise SourceError(
            f"{folder} is no adapter: it holds neither {peft.CONFIG} nor {artifact.WEIGHTS}. "
            "Give the adapter/ folder of a run."
        )
    method, tensors = peft.read(folder)
    return method, tensors, artifact.read_facts(folder / artifact.FACTS) if (folder / artifact.FACTS).exists() else {}


def _method(said: object, folder: Path) -> Method:
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise SourceError(f"{folder / artifact.FACTS} does not say by which method it was trained.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items() if key != "name"}
    if said["name"] not in METHODS:
        raise SourceError(f"{folder / artifact.FACTS}: {unknown('method', said['name'], METHODS)}")
    try:
        return cast(Method, METHODS[said["name"]](**values))
    except TypeError as problem:
        raise SourceError(f"{folder / artifact.FACTS}: {problem}.") from problem
