"""Rollouts on their way through a run: iterations sampled, kept on disk, cut into updates; and what was seen of them.

The completions of an iteration are a pure function of the recipe, the seed and the weights before it. They are kept in
`rollouts/step-<updates before>` until no checkpoint needs them, so that a run that is killed between two updates of an
iteration goes on with the same ones.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from acclimate.errors import TrainingError
from acclimate.evaluation.rollouts import KL, Length, Written
from acclimate.methods.delta import snapshot
from acclimate.metrics.intervals import score
from acclimate.models.collate import collate
from acclimate.models.policy import add_value_head
from acclimate.objectives.ppo import Experience, Pretraining
from acclimate.rewards.rollout import COLUMNS, Buffer, Prompt, adapted, collect, experiences, once
from acclimate.rewards.watch import alarms
from acclimate.run.beside import bound
from acclimate.run.measure import Answers
from acclimate.run.prepare import Prepared
from acclimate.run.rollouts import Rolled, rolls
from acclimate.tokens.schedule import epochs, passes, plan
from acclimate.training.checkpoint import clean, load, newest, save
from acclimate.training.folder import RunFolder

Update = list[Experience | Pretraining]
Kept = tuple[int, Buffer]  # the number of an iteration and its completions


def ready(prepared: Prepared, model: nn.Module) -> Prepared:
    """With the reference, the base tensors that will train as they are now, and with rewards that can be asked.

    `model` has its method, and has not trained.
    """
    rolled, codec = prepared.rolled, replace(prepared.codec, front=(), back=())
    if rolled is None or rolled.originals is not None:
        return prepared
    others = {name: getattr(rolled, name) for name in ("judge", "measured")}
    others = {name: given and bound(given, model, codec) for name, given in others.items()}
    reward = bound(rolled.reward, model, codec)
    return replace(prepared, rolled=replace(rolled, originals=snapshot(model), reward=reward, **others))


def opened(prepared: Prepared, model: nn.Module) -> Prepared:
    """`ready`, and the model with a value head where the objective has one."""
    prepared = ready(prepared, model)
    if rolls(prepared.recipe) and prepared.recipe.objective.valued:
        add_value_head(model)
    return prepared


def groups(
    prepared: Prepared,
    model: nn.Module,
    run: RunFolder,
    start: int,
    heed: Callable[[], None],
    told: dict[str, float],
    autocast: torch.dtype | None,
) -> Iterator[Update]:
    """The batches of every update after `start`; `told` always holds what was seen of the completions they are from.

    heed: called before every token, to stop the run where a signal has come.
    """
    how, steps = prepared.recipe.rollouts, prepared.recipe.training.steps
    folder, rolled = run.path / "rollouts", _rolled(prepared)
    last = _resumed(folder, start, how.updates, rolled.train)
    for iteration in count(start // how.updates):
        begin = iteration * how.updates
        if last is None or last[0] != iteration:
            beta = _beta(last, iteration, prepared)
            with torch.autocast(next(model.parameters()).device.type, autocast, enabled=autocast is not None):
                last = iteration, _collected(prepared, model, iteration, beta, heed)
            save(folder, begin, *_flat(last[1]), keep=iteration - _needed(run, how.updates, iteration) + 1)
        told.clear()
        told.update(last[1].told)
        for step in range(max(start, begin), min(begin + how.updates, steps)):
            yield _update(prepared, model, last[1], iteration, step)
        if begin + how.updates >= steps:
            return


def _rolled(prepared: Prepared) -> Rolled:
    assert prepared.rolled is not None
    return prepared.rolled


def _collected(prepared: Prepared, model: nn.Module, iteration: int, beta: float, heed: Callable[[], None]) -> Buffer:
    given, how, rolled = prepared.recipe.training, prepared.recipe.rollouts, _rolled(prepared)
    places = drawn(len(rolled.train), how.prompts, given.seed, iteration)
    return collect(
        model,
        [rolled.train[i] for i in places],
        rolled.reward,
        prepared.recipe.objective,
        how,
        prepared.codec,
        beta=beta,
        seed=int(np.random.default_rng([given.seed, iteration]).integers(2**62)),
        originals=rolled.originals or {},
        budget=given.tokens_per_pass,
        stop_check=heed,
        judge=rolled.judge,
    )


def drawn(rows: int, prompts: int, seed: int, iteration: int) -> list[int]:
    """The rows whose prompts an iteration asks: the next ones of one pass over the shuffled data after the other.

    >>> sorted(drawn(4, 2, 0, 0) + drawn(4, 2, 0, 1))
    [0, 1, 2, 3]
    """
    places = range(iteration * prompts, (iteration + 1) * prompts)
    orders = {epoch: epochs(rows, seed, epoch) for epoch in {place // rows for place in places}}
    return [orders[place // rows][place % rows] for place in places]


def _update(prepared: Prepared, model: nn.Module, buffer: Buffer, iteration: int, step: int) -> Update:
    """The batches of one update: a part of the shuffled completions, and ordinary text beside them."""
    given, how = prepared.recipe.training, prepared.recipe.rollouts
    epoch, part = divmod(step - iteration * how.updates, how.parts)
    order = np.random.default_rng([given.seed, iteration, epoch]).permutation(len(buffer.rows))
    chosen = [int(row) for row in np.array_split(order, how.parts)[part]]
    own = once(how, prepared.recipe.objective)
    made: Update = [*experiences(model, buffer, chosen, how, prepared.codec, given.tokens_per_pass, own)]
    return made + _beside(prepared, model, step, sum(buffer.lengths[row] for row in chosen))


def _beside(prepared: Prepared, model: nn.Module, step: int, written: int) -> Update:
    """Ordinary text of an update, up to tokens_per_step, whose mean loss weighs `rollouts.ptx`."""
    given, how, rows = prepared.recipe.training, prepared.recipe.rollouts, _rolled(prepared).pretrain
    if not how.ptx:
        return []
    sizes = [row.size for row in rows]
    cut = passes(plan(sizes, given.tokens_per_step, given.steps, given.seed)[step], sizes, given.tokens_per_pass)
    batches = [collate(model, [rows[i] for i in part], prepared.codec.pad, share=True) for part in cut]
    share = how.ptx * written / sum(len(batch.targets) for batch in batches)
    return [Pretraining(batch, share) for batch in batches]


def _beta(last: Kept | None, iteration: int, prepared: Prepared) -> float:
    """The penalty's weight in an iteration: the recipe's, then what the one before makes of it."""
    how = prepared.recipe.rollouts
    if iteration == 0 or not how.target:
        return how.beta
    if last is None or last[0] != iteration - 1:
        raise _gone(iteration - 1)
    return adapted(last[1].beta, last[1].told["rollout_kl"], how)


def _gone(iteration: int) -> TrainingError:
    return TrainingError(
        f"The completions of iteration {iteration} are not in the run folder any more, and the checkpoint goes on with "
        "them; begin again in another folder."
    )


def _needed(run: RunFolder, updates: int, iteration: int) -> int:
    """The first iteration whose completions a resumed run may ask for: that of the oldest checkpoint's last update."""
    steps = [int(path.name.split("-")[1].split(".")[0]) for path in run.checkpoints.glob("step-*")]
    return max(0, min([iteration, *((step - 1) // updates for step in steps)]))


def _resumed(folder: Path, start: int, updates: int, prompts: Sequence[Prompt]) -> Kept | None:
    """The newest completions that are not newer than `start`. TrainingError where the middle of an iteration lacks its own."""
    if folder.is_dir():
        clean(folder)
        for path in folder.glob("step-*"):
            if int(path.name.split("-")[1].split(".")[0]) > start:
                shutil.rmtree(path.rename(path.with_name(f".trash-{path.name}")))
    found = newest(folder)
    if start % updates and (found is None or found.step != start - start % updates):
        raise _gone(start // updates)
    if found is None:
        return None
    step, columns, state = load(found)
    return step // updates, _buffer(columns, state, prompts)


def _flat(buffer: Buffer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A buffer as tensors and plain JSON."""
    state = {
        "ids": [list(row.ids) for row in buffer.rows],
        "numbers": list(buffer.numbers),
        "lengths": list(buffer.lengths),
        "beta": buffer.beta,
        "told": dict(buffer.told),
    }
    return {name: buffer.columns[name] for name in COLUMNS}, state


def _buffer(columns: Mapping[str, torch.Tensor], state: Mapping[str, Any], prompts: Sequence[Prompt]) -> Buffer:
    """The inverse of `_flat`."""
    rows = []
    for ids, number, length in zip(state["ids"], state["numbers"], state["lengths"], strict=True):
        scored = (False,) * (len(ids) - length) + (True,) * length
        rows.append(prompts[number].row._replace(ids=tuple(ids), scored=scored))
    numbers, lengths = tuple(state["numbers"]), tuple(state["lengths"])
    return Buffer(tuple(rows), numbers, lengths, columns, state["beta"], state["told"])


def history(log: Sequence[Mapping[str, Any]], updates: int) -> list[dict[str, float]]:
    """What was seen in each iteration, from the rows of a log: means over its updates, and the last of its steps."""
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for row in log:
        if "loss" in row:
            rows.setdefault((row["step"] - 1) // updates, []).append(row)
    return [
        {"step": group[-1]["step"], **{n: fmean(row["metrics"][n] for row in group) for n in group[0]["metrics"]}}
        for group in rows.values()
    ]


def facts(prepared: Prepared, run: RunFolder, base: Answers, result: Answers) -> dict[str, Any]:
    """The `rollouts` entry of a report: every iteration, doubts, and KL and length of held-out completions."""
    given, how = prepared.recipe.evaluation, prepared.recipe.rollouts
    if not rolls(prepared.recipe):
        return {}
    seen = history([json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()], how.updates)

    def told(metric: Written, side: Answers) -> dict[str, Any]:
        both = zip(side.task.answers, prepared.parts.test.rows, strict=True)
        rows = [metric.row(output, row) for output, row in both]
        return dict(score(metric, rows, draws=given.draws, seed=given.seed).json())

    return {
        "rollouts": {
            "iterations": seen,
            "doubts": alarms(seen, how.target),
            "kl": told(KL(), result),
            "length": {"base": told(Length(), base), "result": told(Length(), result)},
        }
    }


def doubts(found: Mapping[str, Any]) -> list[str]:
    """What the course of the rollouts gives reason to doubt; `found` is what `facts` returned."""
    return list(found["rollouts"]["doubts"]) if found else []
