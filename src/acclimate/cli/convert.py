"""merge, export and combine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.data.archive import atomically
from acclimate.errors import UsageError, unknown
from acclimate.interchange import delta_weights, peft, virtual
from acclimate.interchange.adapter import TaskHeads, load_adapter, save_adapter
from acclimate.methods import Head, Prefix, PromptTuning
from acclimate.methods.combine import (
    WAYS,
    Change,
    Factors,
    Linear,
    Ties,
    Way,
    add,
    changes_of,
    combine,
    concatenate,
    factors_of,
    is_low_rank,
)
from acclimate.methods.delta import adapt, base, detach, merge, names
from acclimate.models.fingerprint import fingerprint, tokenizer_hash
from acclimate.models.heads import trunk_with_heads
from acclimate.models.load import load
from acclimate.run.open import Opened, brought_by, open_model, pooled
from acclimate.tokens.reading import Shape

FORMATS = ("delta", "merged", "peft")
HEAD = "head"  # the folder of a merged model that holds its task heads


def export_adapter(model: str, adapter: Path, out: Path, format: str) -> None:
    """The verbs `merge` and `export`: a new folder, whole or absent. Merging is done in float32."""
    if format not in FORMATS:
        raise UsageError(unknown("format", format, FORMATS))
    if heads := brought_by(adapter):
        if format != "merged":
            raise UsageError(
                f"{adapter} brings a task head ({', '.join(heads)}), for which the format {format} has no word; "
                "acclimate merge writes the changed trunk and the head."
            )
        _merge_headed(model, adapter, heads, out)
        return
    if format == "delta":
        _export_delta(model, adapter, out)
        return
    with _new(out) as folder:
        opened = open_model(model, None, "float32")
        method, _ = load_adapter(opened.model, adapter, packed=False)
        if format == "merged":
            _merge(opened.model)
            _save(opened, folder)
        elif isinstance(method, peft.Known) and peft.expresses(opened.model, method):
            peft.write(opened.model, method, folder, model)
        elif isinstance(method, PromptTuning | Prefix):
            virtual.write(opened.model, method, folder, model)
        else:
            raise UsageError(f"PEFT's format cannot express {type(method).__name__}; export it as merged or delta.")
    print(f"{format}: {out}")


def _merge_headed(model: str, adapter: Path, heads: Mapping[str, Shape], out: Path) -> None:
    """The trunk as a plain model and, in its folder `head`, an adapter for it that is the heads alone."""
    with _new(out) as folder:
        loaded = load(model, task="encoder")
        headed = trunk_with_heads(loaded, pooled(heads))
        _, facts = load_adapter(headed, adapter, packed=False)
        _merge(headed)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        adapt(headed, TaskHeads(tuple(heads)))
        save_adapter(headed, Head(), folder / HEAD, {**facts, "model": str(out), "base": fingerprint(headed)})
    print(f"merged: {out}, without its task head, which is the adapter {out / HEAD}")


def _export_delta(model: str, tuned: Path, out: Path) -> None:
    """tuned: an adapter's folder, or that of a whole model."""
    with _new(out) as folder:
        opened = open_model(model, None, "float32")
        facts = {"model": model, "base": fingerprint(opened.model)}
        before = _copies(opened.model)
        if (tuned / "config.json").is_file():
            loaded = load(str(tuned), dtype=torch.float32)
            delta_weights.write(folder, before, loaded.model, facts)
            if tokenizer_hash(loaded.tokenizer) != tokenizer_hash(opened.codec.tokenizer):
                loaded.tokenizer.save_pretrained(folder / "tokenizer")
        else:
            load_adapter(opened.model, tuned, packed=False)
            _merge(opened.model)
            delta_weights.write(folder, before, opened.model, facts)
    print(f"delta: {out}")


def merge_into(model: str, adapter: Path | None, delta: Path | None, out: Path) -> None:
    """The verb `merge`: an adapter or a difference, one of them."""
    if (adapter is None) == (delta is None):
        raise UsageError("Give either --adapter or --delta: what is to be written into the base.")
    if adapter is not None:
        export_adapter(model, adapter, out, "merged")
    elif delta is not None:
        apply_delta(model, delta, out)


def apply_delta(model: str, delta: Path, out: Path) -> None:
    """The tuned model, in float32, with its own tokenizer where it has one."""
    with _new(out) as folder:
        opened = open_model(model, None, "float32")
        delta_weights.apply(opened.model, delta)
        _save(opened, folder)
        if (delta / "tokenizer").is_dir():
            copytree(delta / "tokenizer", folder, dirs_exist_ok=True)
    print(f"merged: {out}")


def way_of(how: str, keep: float | None, drop: float | None, seed: int | None) -> Way:
    """The way of combining that the command line names. Raises UsageError for a constant that it has not."""
    if how not in WAYS:
        raise UsageError(unknown("way to combine", how, WAYS))
    given = {"keep": keep, "drop": drop, "seed": seed}
    constants = {key: value for key, value in given.items() if value is not None}
    if odd := sorted(constants.keys() - {field.name for field in fields(WAYS[how])}):
        raise UsageError(f"--{odd[0]} says nothing to {how}: --keep is for ties, --drop and --seed are for dare.")
    made: Way = WAYS[how](**constants)
    return made


def combine_adapters(model: str, adapters: Sequence[Path], weights: Sequence[float], way: Way, out: Path) -> None:
    """The verb `combine`: a LoRA where all are LoRAs and their sum is asked for, otherwise a difference."""
    if len(adapters) < 2:
        raise UsageError("Give at least two adapters to combine, each behind its own --adapter.")
    weights = weights or [1.0 if isinstance(way, Ties) else 1 / len(adapters)] * len(adapters)
    if len(weights) != len(adapters):
        raise UsageError(
            f"There are {len(adapters)} adapters and {len(weights)} weights; give each its weight, or none."
        )
    opened = open_model(model, None, "float32")
    printed, before = fingerprint(opened.model), _copies(opened.model)
    of = [{"adapter": str(folder), "weight": weight} for folder, weight in zip(adapters, weights, strict=True)]
    facts = {"model": model, "base": printed, "combined": {"way": _described(way), "of": of}}
    with _new(out) as folder:
        factors, said = _factors(opened.model, adapters if isinstance(way, Linear) else (), before)
        if factors:
            method = concatenate(opened.model, factors, weights)
            save_adapter(opened.model, method, folder, _shared(said) | facts)
        else:
            parts, said = _changes(opened.model, adapters, before)
            add(opened.model, combine(parts, weights, way))
            delta_weights.write(folder, before, opened.model, _shared(said) | facts)
    print(f"{'adapter' if factors else 'delta'}: {out}")


def _factors(
    model: Any, adapters: Sequence[Path], before: Mapping[str, Tensor]
) -> tuple[list[Factors], list[dict[str, object]]]:
    """What the LoRAs in the folders are made of; nothing unless all are LoRAs."""
    found, said = [], []
    for folder in adapters:
        with _carrying(model, folder, before) as facts:
            if not names(model) or not is_low_rank(model, "default"):
                return [], []
            found.append(factors_of(model))
            said.append(facts)
    return found, said


def _changes(
    model: Any, adapters: Sequence[Path], before: Mapping[str, Tensor]
) -> tuple[list[Change], list[dict[str, object]]]:
    found: list[Change] = []
    said = []
    for folder in adapters:
        with _carrying(model, folder, before) as facts:
            own = base(model)
            found.append(changes_of(model) if names(model) else {key: own[key].detach() - before[key] for key in own})
            said.append(facts)
    return found, said


@contextmanager
def _carrying(model: Any, adapter: Path, before: Mapping[str, Tensor]) -> Iterator[dict[str, object]]:
    """The model with the adapter alone; afterwards the base again, also where the adapter took the place of its weights."""
    _, facts = load_adapter(model, adapter, packed=False)
    try:
        yield facts
    finally:
        if names(model):
            detach(model)
        with torch.no_grad():
            for key, parameter in base(model).items():
                parameter.copy_(before[key])


def _described(way: Way) -> dict[str, object]:
    return {"name": next(key for key, known in WAYS.items() if type(way) is known), **asdict(way)}  # type: ignore[call-overload]


def _shared(facts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What all adapters say alike: of the tokenizer, the chat format, the task."""
    return {
        key: value
        for key, value in facts[0].items()
        if key != "method" and all(other.get(key) == value for other in facts)
    }


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in base(model).items()}


def _merge(model: nn.Module) -> None:
    if names(model):
        merge(model)


def _save(opened: Opened, folder: Path) -> None:
    opened.model.generation_config.eos_token_id = sorted(opened.codec.terminators)
    opened.model.save_pretrained(folder)
    opened.codec.tokenizer.save_pretrained(folder)


@contextmanager
def _new(out: Path) -> Iterator[Path]:
    if out.exists():
        raise UsageError(f"{out} exists already; give a new folder.")
    with atomically(out) as folder:
        folder.mkdir()
        yield folder
