"""Several ways on one task: every rung sees the same rows and the same base, has the same budget, and is a row of a table.

rungs/<name>/trials/<round>-<rate>.json    a trial of the search
rungs/<name>/seed-<n>/                     a training in full: log.jsonl, adapter/, answers.json, and last result.json
rungs/<name>/result.json                   the rung is done, or failed with a sentence

Each file is whole or absent, so whatever was finished is read again, and only the work in progress is lost.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from acclimate.data.examples import Output
from acclimate.errors import DataError, ModelError, RecipeError, TrainingError, UsageError, unknown
from acclimate.evaluation.evaluate import kinds, rows_of, scores
from acclimate.evaluation.predictor import Predictor
from acclimate.interchange.adapter import save_adapter
from acclimate.methods.soft import settle
from acclimate.models.fingerprint import fingerprint, same_base
from acclimate.recipe import Recipe
from acclimate.rewards.reward import Weighted
from acclimate.run.borrow import borrowed
from acclimate.run.carry import (
    REFERENCE,
    Voice,
    absolute,
    artifact_of,
    facts_of,
    for_answering,
    heeding,
    listening_trackers,
    parameters,
    ready,
    with_threshold,
)
from acclimate.run.dev import chooses, on_dev
from acclimate.run.draw import drawn, keep
from acclimate.run.learned import learned
from acclimate.run.measure import Answers, Told, from_json, general, measure, metrics_of
from acclimate.run.prepare import Prepared, prepare
from acclimate.run.rollouts import check_recipe, heard, reads
from acclimate.run.rungs import Comparison, Rung, Untuned, dump, stands_apart, taught, teachers
from acclimate.run.sampled import learns
from acclimate.run.search import Searched, Trial, halve, label_loss
from acclimate.run.train import Spent, train
from acclimate.run.write import spent_table
from acclimate.training.checkpoint import atomic_write
from acclimate.training.folder import RunFolder, claim
from acclimate.training.signals import Stop

FAILS = (ModelError, TrainingError, RecipeError, UsageError)  # of one rung; the comparison goes on


@dataclass
class Bench:
    """What the rungs share. `base` is the base model under the shared task; `stamp` its fingerprint."""

    comparison: Comparison
    out: Path
    base: Prepared
    stamp: dict[str, str]
    stop: Stop
    voice: Voice
    seconds: float  # that making this took

    @property
    def told(self) -> Told:
        """Evaluations that a signal ends between two batches."""
        return heeding(self.voice.told, self.stop)

    def folder(self, rung: Rung) -> Path:
        """Where the rung's work is kept."""
        return self.out / "rungs" / rung.folder


class Fits(Protocol):
    """A way that does not tune the model: it fits a predictor of its own, such as a classifier on cached features."""

    def fit_predictor(self, prepared: Any, seed: int) -> Any:
        """A predictor of the rows of prepared.parts.

        It may say in `parameters` how many numbers it fitted, and in `learned(outputs)` what it has to show of them.
        """


def bench(comparison: Comparison, out: Path, stop: Stop, voice: Voice) -> Bench:
    """Read the data and load the model, once for all rungs; the resolved recipe is written down."""
    stop.check("preparation")
    begun = time.perf_counter()
    comparison = settled(comparison)
    if not (out / "recipe.yaml").exists():
        atomic_write(out / "recipe.yaml", dump(comparison))
    base = drawn(_heard(comparison.shared), out, voice.say, lambda: stop.check("sampling"))
    base = replace(base, recipe=replace(base.recipe, data=comparison.shared.data))
    rungs = tuple(_resolved(rung, comparison.shared, base.recipe) for rung in comparison.rungs)
    comparison = replace(comparison, shared=base.recipe, rungs=rungs)
    atomic_write(out / "recipe.yaml", dump(comparison))
    _refuse(base, comparison)
    if any(map(learns, comparison.rungs)):
        keep(base, out, voice.say, lambda: stop.check("sampling"))
    for warning in base.parts.warnings:
        voice.say(f"note: {warning}")
    return Bench(comparison, out, base, fingerprint(base.model), stop, voice, time.perf_counter() - begun)


def _refuse(base: Prepared, comparison: Comparison) -> None:
    """What cannot be carried out is said before anything is computed."""
    if any(len(rung.rates) > 1 for rung in comparison.rungs):
        on_dev(base, comparison.search.rows)
    for rung in comparison.rungs:
        check_recipe(rung if reads(comparison.shared) else heard(rung))
    names, picture = [metric.name for metric in metrics_of(base)], comparison.picture
    if picture is not None and picture.metric and picture.metric not in names:
        raise RecipeError(f"picture.metric: {unknown('metric of this task', picture.metric, names)}")


def _heard(shared: Recipe) -> Recipe:
    return shared if reads(shared) else heard(shared)


def settled(comparison: Comparison) -> Comparison:
    """Files by their full path, so that the resolved recipe means the same anywhere."""
    rungs = tuple(_absolute(rung, comparison.rungs) for rung in comparison.rungs)
    return replace(comparison, shared=absolute(comparison.shared), rungs=rungs)


def _absolute(rung: Rung, others: Sequence[Rung]) -> Rung:
    found = absolute(rung)
    assert isinstance(found, Rung)
    return replace(found, rewards=rung.rewards) if teachers(rung, others) else found


def _resolved(rung: Rung, shared: Recipe, settled: Recipe) -> Rung:
    """Nothing is left to the machine: what the shared recipe left open is as `settled` has it, for every rung."""
    same = rung.task == shared.task
    chat = settled.task.chat if rung.task.chat is None else rung.task.chat
    training = replace(rung.training, precision=settled.training.precision)
    return replace(rung, training=training, task=settled.task if same else replace(rung.task, chat=chat))


def carry_base(bench: Bench) -> dict[str, Any]:
    """The base model's answers under the shared task: asked once, kept in base.json."""
    path = bench.out / "base.json"
    if not path.exists():
        bench.voice.say("base: evaluation")
        note(path, _asked(bench, bench.base, bench.base.model.eval()))
    return read(path)


def carry_rungs(bench: Bench, names: tuple[str, ...] = ()) -> None:
    """Carry out every rung (those in `names`, if any) that is not done."""
    begun, rungs = time.perf_counter(), [r for r in bench.comparison.rungs if not names or r.name in names]
    waiting = [rung for rung in rungs if not (bench.folder(rung) / "result.json").exists()]
    for number, rung in enumerate(waiting, start=1):
        bench.stop.check(f"rung {rung.name}")
        with claim(bench.folder(rung) / "held", resume=False):  # by this process alone, as long as it lives
            note(bench.folder(rung) / "result.json", _carried(bench, rung))
        spent = time.perf_counter() - begun
        left = spent / number * (len(waiting) - number)
        done = len(rungs) - len(waiting) + number
        bench.voice.say(f"{done} of {len(rungs)} rungs after {spent / 60:.1f} min; about {left / 60:.0f} min left")


def _carried(bench: Bench, rung: Rung) -> dict[str, Any]:
    """What came of a rung, or why nothing did. It starts from the base that all start from."""
    begun = time.perf_counter()
    if not same_base(fingerprint(bench.base.model), bench.stamp):
        bench.base = replace(bench.base, model=prepare(_heard(bench.comparison.shared), bench.out).model)
    try:
        found = carry_rung(bench, rung, inputs(bench, rung))
    except FAILS as error:
        bench.voice.say(f"{rung.name} failed: {error}")
        found = {"failed": str(error)}
    return {**found, "seconds": time.perf_counter() - begun}


def inputs(bench: Bench, rung: Rung) -> Prepared:
    """What a rung reads: the shared rows and ids, or its own where it changes data or task; always the shared base.

    A rung that trains a reward is asked nothing that the others are; it has rows, and a model, of its own.

    Raises DataError where its dev or test rows would be others, and what of it does not fit otherwise.
    """
    shared, seed, base = bench.comparison.shared, bench.comparison.seeds[0], bench.base
    named = teachers(rung, bench.comparison.rungs)
    rung = taught(rung, {each.name: bench.folder(each) / f"seed-{seed}" / "adapter" for each in named})
    if stands_apart(rung, shared):
        return prepare(heard(replace(rung, task=replace(rung.task, metrics=()))), bench.out)
    own = replace(base, recipe=rung)
    if (rung.data, rung.task, rung.objective) != (shared.data, shared.task, shared.objective):
        own = replace(prepare(heard(rung), bench.out), model=base.model)
    for name in ("dev", "test"):
        if getattr(own.parts, name).rows != getattr(base.parts, name).rows:
            raise DataError(f"Rung {rung.name} has other {name} rows than the rest; all must be asked the same.")
    if own.rolled is None or base.rolled is None:
        return own
    return replace(own, rolled=replace(own.rolled, reward=Weighted(rung.rewards), measured=base.rolled.reward))


def carry_rung(bench: Bench, rung: Rung, given: Prepared) -> dict[str, Any]:
    """One rung from beginning to end. Another kind of rung is another line here."""
    if isinstance(rung.method, Untuned):
        return _untuned(bench, given)
    if hasattr(rung.method, "fit_predictor"):
        return _fitted(bench, rung.method, given)
    return _tuned(bench, rung, given)


def _untuned(bench: Bench, given: Prepared) -> dict[str, Any]:
    """The base as it is: nothing to search, nothing to train."""
    shared = given.parts is bench.base.parts and given.recipe.task == bench.base.recipe.task
    asked = carry_base(bench) if shared else _asked(bench, given, given.model.eval())
    counts = {**parameters(given.model), "trainable_parameters": 0}
    return {"rate": None, "search": Searched(0.0, ()).json(), "seeds": [_seed(0, Spent(), 0, counts, {}, asked)]}


def _fitted(bench: Bench, method: Fits, given: Prepared) -> dict[str, Any]:
    """A predictor of its own. The model is as before, so there is nothing it could forget."""
    metrics, examples = metrics_of(given), given.parts.test.rows
    asked_for = kinds(metrics, given.recipe.task.labels)
    if "likelihood" in asked_for:
        raise ModelError(f"{type(method).__name__} gives answers and no probabilities of texts; measure answers.")
    runs = []
    for seed in bench.comparison.seeds:
        begun = time.perf_counter()
        predictor: Predictor = method.fit_predictor(given, seed)
        spent = Spent(seconds=round(time.perf_counter() - begun, 1))  # a prompt takes none
        begun = time.perf_counter()
        outputs: list[Output] = predictor(examples, bench.told("evaluation", len(examples)))
        measured = rows_of(metrics, dict.fromkeys(asked_for, outputs), examples)
        asked = {"answers": Answers(measured, (), ()).json(), "task_seconds": time.perf_counter() - begun}
        counts = {**parameters(given.model), "trainable_parameters": int(getattr(predictor, "parameters", 0))}
        shown = predictor.learned(outputs) if hasattr(predictor, "learned") else {}
        runs.append({**_seed(seed, spent, 0, counts, {}, {**asked, "forgetting_seconds": 0.0}), "learned": shown})
    return {"rate": None, "search": Searched(0.0, ()).json(), "seeds": runs}


def _tuned(bench: Bench, rung: Rung, given: Prepared) -> dict[str, Any]:
    """The rate by trials on dev, then the chosen one in full for each seed, and each measured once on test."""
    searched = _search(bench, rung, given) if len(rung.rates) > 1 else Searched(rung.rates[0], ())
    runs = []
    for seed in bench.comparison.seeds:
        folder = bench.folder(rung) / f"seed-{seed}"
        if not (folder / "result.json").exists():
            note(folder / "result.json", _in_full(bench, _set(given, searched.rate, seed), folder))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        runs.append(read(folder / "result.json"))
    return {"rate": searched.rate, "search": searched.json(), "seeds": runs}


def _set(given: Prepared, rate: float, seed: int, steps: int = 0) -> Prepared:
    """The rate, the seed and, for a trial, its steps, with the loss on dev after the last one only."""
    training = replace(given.recipe.training, rate=rate, seed=seed)
    training = replace(training, steps=steps, dev_every=steps) if steps else training
    return replace(given, recipe=replace(given.recipe, training=training))


def _search(bench: Bench, rung: Rung, given: Prepared) -> Searched:
    dev, folder = on_dev(given, bench.comparison.search.rows), bench.folder(rung) / "trials"
    folder.mkdir(exist_ok=True)
    metric = metrics_of(dev)[0]
    before = measure(dev, dev.model.eval(), bench.told).task.answers if _compares(dev) else ()

    def attempt(number: int, rate: float, steps: int) -> Trial:
        path = folder / f"{number}-{rate!r}.json"
        if not path.exists():
            trial = _trial(bench, _set(dev, rate, bench.comparison.seeds[0], steps), folder, before)
            shown = trial.failed if trial.score is None else f"{metric.name} {trial.score:.3f} on dev"
            bench.voice.say(f"{rung.name}: rate {rate:g}, {steps} steps: {shown}")
            note(path, vars(trial))
        return Trial(**read(path))

    steps, given_search = rung.training.steps, bench.comparison.search
    return halve(rung.rates, steps, given_search, metric.higher_is_better, attempt, by_loss=chooses(dev))


def _compares(given: Prepared) -> bool:
    """Whether held-out comparisons are asked about, of which a policy is held against what the base says."""
    return bool(given.pairs and given.pairs.test) and given.head is None


def _stamp(bench: Bench, given: Prepared) -> dict[str, str]:
    """The fingerprint of the model that is lent: the shared base's, but for a rung that has one of its own."""
    return bench.stamp if given.model is bench.base.model else fingerprint(given.model)


def _trial(bench: Bench, given: Prepared, folder: Path, before: Sequence[Output]) -> Trial:
    """A pure function of the recipe, the method, the rate and the seed; `given` holds no row of test."""
    begun, training = time.perf_counter(), given.recipe.training
    log = RunFolder(folder, -1).log
    log.unlink(missing_ok=True)
    try:
        with borrowed(given, _stamp(bench, given)) as (changed, model):
            spent, changed = _train(bench, changed, model, folder, before, resumable=False)
            bench.stop.check("a trial")
            answers = measure(changed, for_answering(model, changed), bench.told)
    except TrainingError as error:
        return Trial(training.rate, training.steps, None, None, 0, time.perf_counter() - begun, str(error))
    metric = metrics_of(given)[0]
    score = float(metric.combine(np.array(answers.task.rows[metric.name])))
    loss = next((row["dev"]["loss"] for row in _lines(log) if "dev" in row), None)
    if chooses(given):
        loss = label_loss(answers.task.outputs["labels"], [row.target for row in given.parts.test.rows])
    log.unlink(missing_ok=True)
    return Trial(training.rate, training.steps, score, loss, spent.tokens, time.perf_counter() - begun)


def _in_full(bench: Bench, given: Prepared, folder: Path) -> dict[str, Any]:
    """Trained to the last step, saved, and asked what the base was asked."""
    folder.mkdir(parents=True, exist_ok=True)
    training = given.recipe.training
    stamp = _stamp(bench, given)
    before = from_json(carry_base(bench)["answers"]).task.answers if _compares(given) else ()
    with borrowed(given, stamp) as (changed, model):
        counts = parameters(model)
        spent, changed = _train(bench, changed, model, folder, before, resumable=True)
        begun = time.perf_counter()
        save_adapter(model, changed.recipe.method, folder / "adapter", facts_of(changed, stamp))
        saving = time.perf_counter() - begun
        counts["kept_parameters"] = parameters(model)["trainable_parameters"]
        asked = _asked(bench, changed, for_answering(model, changed))
        apart = stands_apart(changed.recipe, bench.comparison.shared)
        shown = _right(changed, asked) if apart else learned(changed, model)
    artifact = {**artifact_of(folder / "adapter"), "path": str((folder / "adapter").relative_to(bench.out))}
    found = _seed(training.seed, spent, training.steps, counts, artifact, asked)
    return {**found, "learned": shown, "saving_seconds": saving, "log": list(_lines(RunFolder(folder, -1).log))}


def _train(
    bench: Bench, given: Prepared, model: nn.Module, folder: Path, before: Sequence[Output], resumable: bool
) -> tuple[Spent, Prepared]:
    """To the last step; then what only training needed is dropped, and what is chosen on dev is chosen.

    before: what the base said of held-out comparisons.
    """
    run, steps = RunFolder(folder, -1), given.recipe.training.steps
    given = ready(given, model, before, bench.out / REFERENCE, bench.stamp, bench.told)
    with ExitStack() as stack:
        listening = stack.enter_context(listening_trackers(given, run)) if resumable else ()
        spent = train(
            given, model, run, bench.stop, listening, lambda s: bench.voice.step(s, steps), bench.voice.say, resumable
        )
    settle(model)
    return spent, with_threshold(given, model)


def _asked(bench: Bench, given: Prepared, model: nn.Module) -> dict[str, Any]:
    """Answers to the task and, apart from it in time, to what shows forgetting."""
    plainly = replace(
        given, recipe=replace(given.recipe, evaluation=replace(given.recipe.evaluation, forgetting=False))
    )
    begun = time.perf_counter()  # forgetting first: whoever is asked first would also pay for the warming up
    writes = given.recipe.evaluation.forgetting and given.head is None
    rest = general(given, model, bench.told) if writes else ((), (), ())
    middle = time.perf_counter()
    answers = Answers(measure(plainly, model, bench.told).task, *rest)
    end = time.perf_counter()
    return {"answers": answers.json(), "task_seconds": end - middle, "forgetting_seconds": middle - begun}


def _right(given: Prepared, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a rung that scores texts is right in, as it stands among what was learned."""
    how = given.recipe.evaluation
    found = scores(metrics_of(given), from_json(asked["answers"]).task, how.draws, how.seed)
    return {"Held-out rows": {name: {"value": s.value, "low": s.low, "high": s.high} for name, s in found.items()}}


def _seed(
    seed: int,
    spent: Spent,
    steps: int,
    counts: Mapping[str, int],
    artifact: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    return {"seed": seed, **counts, "training": spent_table(spent, steps), "artifact": dict(artifact), **asked}


def note(path: Path, found: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    atomic_write(path, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """What `note` wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
