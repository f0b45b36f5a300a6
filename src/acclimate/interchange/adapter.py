"""Adapters as folders: PEFT's format where PEFT can express the method, our own otherwise, and facts beside either.

An adapter of a model with task heads brings the heads that were trained with it, and says what they answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from acclimate.data.archive import atomically
from acclimate.errors import AcclimateError, ModelError, SourceError, UsageError, unknown
from acclimate.interchange import peft, virtual
from acclimate.methods import METHODS, Full, Head, QLoRA, artifact
from acclimate.methods.delta import Method, attach, base, detach, install, names, switch_of
from acclimate.methods.head import Copy
from acclimate.methods.soft import settle
from acclimate.models.fingerprint import check, fingerprint, same_base
from acclimate.models.heads import TaskHead, TaskModel
from acclimate.tokens.reading import Shape

_OURS = {peft.CONFIG, peft.WEIGHTS, artifact.WEIGHTS, artifact.FACTS, "README.md"}


@dataclass(frozen=True)
class TaskHeads:
    """The heads of some tasks, each whole: what trains beside a method that changes the trunk."""

    tasks: tuple[str, ...]

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Attach one `Copy` to each head. Raises ModelError where the model has no such head."""
        for task in self.tasks:
            cast(TaskModel, model).shape(task)
            out = cast(TaskHead, cast(TaskModel, model).heads[task]).out
            attach(out, Copy(out), name)


def heads_beside(model: nn.Module, method: Method) -> TaskHeads | None:
    """What must train beside `method` for the new heads of `model` to train: all of them, unless it sees to them itself."""
    if not isinstance(model, TaskModel) or isinstance(method, Full | Head):
        return None
    return TaskHeads(tuple(model.heads))


def save_adapter(
    model: nn.Module, method: Method, folder: Path, facts: Mapping[str, object], name: str = "default"
) -> None:
    """Make `folder` the adapter `name` of `model`, trained by `method`: whole, or as it was before.

    facts: JSON; `model` is the base's name, `base` its `fingerprint` from before training; `method` and `heads` are added.
    Raises UsageError for a folder that holds anything but an adapter, SourceError where the disk refuses.
    """
    if folder.is_file():
        raise UsageError(f"{folder} is a file; give a folder.")
    foreign = sorted({path.name for path in folder.iterdir()} - _OURS) if folder.exists() else []
    if foreign:
        raise UsageError(f"{folder} holds {foreign[0]}, which is no part of an adapter; give a new or empty folder.")
    kind = next(key for key, known in METHODS.items() if type(method) is known)
    said = {**facts, "method": {"name": kind, **asdict(method)}, **_heads(model, method, name)}  # type: ignore[call-overload]
    if isinstance(method, QLoRA):
        said["quantised"] = fingerprint(model)
    with atomically(folder) as partial:
        partial.mkdir()
        if isinstance(method, peft.Known) and peft.expresses(model, method, name):
            peft.write(model, method, partial, str(facts.get("model", "")), name)
            artifact.write_facts(partial, said)
        else:
            artifact.save(model, partial, said, name)
        if folder.exists():
            folder.rename(partial.parent / "replaced")


def load_adapter(
    model: nn.Module, folder: Path, name: str = "default", *, packed: bool = True
) -> tuple[Method, dict[str, object]]:
    """Put the adapter in `folder` on `model` as `name`, and return its method and its facts ({} if PEFT wrote it).

    It is frozen, as the base is from now on; other adapters train and answer as before. It answers at once where it is
    the first, otherwise when activated. Heads that it brings are put on a `TaskModel` that has none of their name.
    QLoRA brings its four-bit base; without `packed` it is loaded as the LoRA that it is on the base as it stands.
    Raises SourceError for a damaged folder, ModelError for another base model, or one that takes no heads.
    """
    method, tensors, facts = _read(folder)
    _check_base(model, facts)
    if isinstance(method, QLoRA) and not packed:
        method = method.plain
    heads = shapes(facts, folder)
    _put_on(model, heads, folder)
    beside = TaskHeads(tuple(heads)) if heads and not isinstance(method, Full | Head) else None
    own = base(model).values()
    _freeze(own)
    places = [(parent, key, child) for parent in model.modules() for key, child in parent.named_children()]
    install(model, TaskHeads(tuple(heads)) if heads and isinstance(method, Head) else method, name, beside=beside)
    settle(model, name)
    try:
        if isinstance(tensors, Tensor):
            virtual.fill(model, tensors, name)
        else:
            artifact.fill(model, tensors, name, str(folder))
    except AcclimateError:
        if name in names(model):
            detach(model, name)
        for parent, key, child in places:  # QLoRA put others there
            setattr(parent, key, child)
        raise
    finally:
        _freeze(own)
        _freeze(p for path, p in model.named_parameters() if f".delta.{name}." in path)
    return method, facts


def shapes(facts: Mapping[str, object], where: Path) -> dict[str, Shape]:
    """The heads that an adapter's facts speak of, by task. Raises SourceError where they cannot be read."""
    said: Any = facts.get("heads") or {}
    try:
        listed: dict[str, dict[str, Any]] = {task: dict(shape) for task, shape in said.items()}
        return {task: Shape(**{**shape, "labels": tuple(shape["labels"])}) for task, shape in listed.items()}
    except (TypeError, ValueError, KeyError, AttributeError) as problem:
        raise SourceError(f"{where / artifact.FACTS}: heads cannot be read: {problem}.") from problem


def _heads(model: nn.Module, method: Method, name: str) -> dict[str, object]:
    if not isinstance(model, TaskModel):
        return {}
    riding = {task: switch_of(cast(TaskHead, head).out) for task, head in model.heads.items()}
    mine = [task for task, switch in riding.items() if isinstance(method, Full) or (switch and name in switch)]
    return {"heads": {task: asdict(model.shape(task)) for task in mine}}


def _put_on(model: nn.Module, heads: Mapping[str, Shape], folder: Path) -> None:
    """The heads on the model, drawn anew: the adapter's own numbers answer in their place."""
    if heads and not isinstance(model, TaskModel):
        raise ModelError(
            f"{folder} brings a task head ({', '.join(heads)}), and a {type(model).__name__} takes none: load the model "
            "as an encoder and wrap it with trunk_with_heads, as `acclimate evaluate` does."
        )
    for task, shape in heads.items():
        known = cast(TaskModel, model).heads
        if task not in known:
            cast(TaskModel, model).add(shape, task)
        elif cast(TaskHead, known[task]).shape != shape:
            raise ModelError(
                f"{folder} brings another head called {task!r} than the model has; load it on a fresh trunk."
            )


def _check_base(model: nn.Module, facts: Mapping[str, object]) -> None:
    whole, quantised = facts.get("base"), facts.get("quantised")
    if isinstance(whole, dict):
        found = fingerprint(model)
        if not (isinstance(quantised, dict) and same_base(found, quantised)):
            check(found, whole, "base model")


def _freeze(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)


def _read(folder: Path) -> tuple[Method, dict[str, Tensor] | Tensor, dict[str, object]]:
    """The method, its tensors by name (of PEFT's soft tokens: all in one), and the facts."""
    if (folder / artifact.WEIGHTS).is_file():
        tensors, facts = artifact.read(folder)
        return _method(facts.get("method"), folder), tensors, facts
    if not (folder / peft.CONFIG).is_file():
        raise SourceError(
            f"{folder} is no adapter: it holds neither {peft.CONFIG} nor {artifact.WEIGHTS}. "
            "Give the adapter/ folder of a run."
        )
    if artifact.read_facts(folder / peft.CONFIG).get("peft_type") in virtual.KINDS:
        return *virtual.read(folder), {}
    method, tensors = peft.read(folder)
    facts = artifact.read_facts(folder / artifact.FACTS) if (folder / artifact.FACTS).exists() else {}
    said = facts.get("method")
    if isinstance(said, dict) and said.get("name") == "qlora":
        return _method(said, folder), tensors, facts
    return method, tensors, facts


def _frozen(value: object) -> object:
    """JSON's lists as the tuples that a method holds."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _method(said: object, folder: Path) -> Method:
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise SourceError(f"{folder / artifact.FACTS} does not say by which method it was trained.")
    values = {key: _frozen(value) for key, value in said.items() if key != "name"}
    if said["name"] not in METHODS:
        raise SourceError(f"{folder / artifact.FACTS}: {unknown('method', said['name'], METHODS)}")
    try:
        return cast(Method, METHODS[said["name"]](**values))
    except TypeError as problem:
        raise SourceError(f"{folder / artifact.FACTS}: {problem}.") from problem
