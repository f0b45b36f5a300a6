"""acclimate's side of what is learned from comparisons and rewards."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from torch import nn

from acclimate.generation.draft import Generated
from acclimate.interchange.adapter import load_adapter
from acclimate.methods.delta import trainable
from acclimate.recipe import parse
from acclimate.rewards import rollout
from acclimate.run import iterations, reference
from acclimate.run.carry import installed
from acclimate.run.prepare import Prepared, prepare
from acclimate.run.train import autocast, collated, parts
from acclimate.tokens.schedule import passes
from acclimate.training import optim
from acclimate.training.fit import Step, fit
from acclimate.training.folder import RunFolder
from acclimate.training.reference import referenced
from bench.material import ALIGNED
from bench.shared import NEW, WEIGHT, WISHED, around, given
from bench.turns import Side

EARNED = f"rewards: [{{name: length, weight: {WEIGHT}, words: {WISHED}}}]"
GRPO = f"objective: grpo\nrollouts: {{prompts: 4, each: 4, epochs: 1, max_new_tokens: {NEW}, beta: 0.0}}\n{EARNED}"
PPO = f"objective: ppo\nrollouts: {{prompts: 16, epochs: 2, max_new_tokens: {NEW}, beta: 0.05}}\n{EARNED}"


def dpo(folder: Path, batch: int = 4, dtype: str = "float32", known: bool = False) -> Side:
    """One update on `batch` pairs. known: the reference is asked of all rows before the first, as a run does, and not in
    each. Units are pairs; parity as in sft."""
    prepared = _prepared(folder, "objective: dpo", dtype)
    model, rows = _adapted(prepared, folder).train(), prepared.train.rows
    if known:
        with TemporaryDirectory() as place:
            rows = referenced(rows, model, prepared.codec.pad, Path(place) / "reference.json", "base")
    sizes = [row.size for row in rows]
    cut = (parts(prepared, model, step, sizes) for step in around(len(rows), batch))
    yield from _told(_steps(prepared, model, (reference.batches(prepared, model, rows, each) for each in cut)), batch)


def reward(folder: Path, batch: int = 4, dtype: str = "float32") -> Side:
    """One update of a reward model on `batch` pairs, LoRA and the head together. Units are pairs; parity as in sft."""
    prepared, model = installed(_prepared(folder, "objective: reward", dtype))
    reference.hold_bias(prepared, model)
    rows, most = prepared.train.rows, prepared.recipe.training.tokens_per_pass
    sizes = [row.size for row in rows]
    cut = (passes(step, sizes, most) for step in around(len(rows), batch))
    groups = ([collated(prepared, model, [rows[i] for i in part], part) for part in parts] for parts in cut)
    yield from _told(_steps(prepared, model.train(), groups), batch)


def grpo(folder: Path, dtype: str = "float32") -> Side:
    """Sixteen completions of four prompts, sampled and learned from. Units are completions."""
    return _on_policy(folder, GRPO, dtype)


def ppo(folder: Path, dtype: str = "float32") -> Side:
    """Sixteen completions of as many prompts, sampled and learned from twice. Units are completions."""
    return _on_policy(folder, PPO, dtype)


def _on_policy(folder: Path, objective: str, dtype: str) -> Side:
    """The first iteration learns from completions that are given, and is what is compared; the others sample."""
    prepared = _prepared(folder, objective, dtype)
    model = _adapted(prepared, folder).eval()
    unending = replace(prepared.codec, terminators=frozenset())  # so that all completions are of one length
    prepared = iterations.opened(_in_order(replace(prepared, codec=unending)), model)
    written, told = given(folder), dict[str, float]()
    with TemporaryDirectory() as place:
        groups = iterations.groups(prepared, model, RunFolder(Path(place), -1), 0, lambda: None, told, None)
        steps = _steps(prepared, model, groups)
        with patch.object(rollout, "sampled", lambda *_: [Generated(tuple(ids), (), "length") for ids in written]):
            first = next(steps)
        kl = {**first.metrics, **told}["rollout_kl"]
        yield {"norm": first.norm, "reward": told["reward"], "kl": kl, "ids": sum(map(len, written))}
        updates = prepared.recipe.rollouts.updates
        for _ in range(updates - 1):
            next(steps)
        while True:
            for _ in range(updates):
                next(steps)
            yield {"units": len(written)}


def _prepared(folder: Path, objective: str, dtype: str) -> Prepared:
    return prepare(parse(ALIGNED.format(folder=folder.absolute(), precision=dtype, objective=objective)))


def _adapted(prepared: Prepared, folder: Path) -> nn.Module:
    """The model with the adapter that has moved already, so that it differs from its reference."""
    load_adapter(prepared.model, folder / "moved", "default")
    for name, parameter in prepared.model.named_parameters():
        parameter.requires_grad_(".delta." in name)
    return prepared.model


def _in_order(prepared: Prepared) -> Prepared:
    """The prompts such that the first pass over them, which is shuffled, asks them in the order of the file."""
    assert prepared.rolled is not None
    rows = prepared.rolled.train
    order = iterations.drawn(len(rows), len(rows), prepared.recipe.training.seed, 0)
    placed = {place: rows[i] for i, place in enumerate(order)}
    return replace(prepared, rolled=replace(prepared.rolled, train=tuple(placed[i] for i in range(len(rows)))))


def _steps(prepared: Prepared, model: nn.Module, groups: Iterable[Sequence[Any]]) -> Any:
    how = prepared.recipe.training
    optimizer = optim.adamw(trainable(model), how.rate)
    mixed = autocast(model, how)
    return fit(model, groups, prepared.objective, optimizer, rate=lambda _: how.rate, autocast=mixed)


def _told(steps: Iterable[Step], units: int) -> Side:
    for number, step in enumerate(steps):
        yield {"units": units} if number else {"loss": step.loss, "norm": step.norm}


WORKS: Mapping[str, Any] = {"dpo": dpo, "reward": reward, "grpo": grpo, "ppo": ppo}
