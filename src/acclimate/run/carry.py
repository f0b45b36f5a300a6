"""A recipe from beginning to end: one folder, resumable at any point, nothing of a finished run ever touched."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from acclimate.data.examples import Output
from acclimate.data.sources import DATA, model_source, resolve_data
from acclimate.data.yaml_tables import plain
from acclimate.evaluation.evaluate import scores
from acclimate.interchange.adapter import heads_beside, save_adapter
from acclimate.methods import Prefix, PromptTuning
from acclimate.methods.delta import Method, adapt, trainable
from acclimate.methods.nf4 import NF4Linear
from acclimate.methods.soft import settle
from acclimate.models.fingerprint import fingerprint, template_hash, tokenizer_hash
from acclimate.models.precision import DTYPES
from acclimate.recipe import Recipe, dump
from acclimate.report.trackers import Tracker, safely, tracker
from acclimate.run import iterations, reference, rollouts, tasks
from acclimate.run.draw import drawn
from acclimate.run.learned import learned
from acclimate.run.measure import Answers, Told, from_json, measure, metrics_of
from acclimate.run.mixture import absolute_sources
from acclimate.run.prepare import Prepared, with_soft_tokens
from acclimate.run.train import autocast, train
from acclimate.run.write import machine, predictions, provenance, report, spent_table, write
from acclimate.training.checkpoint import atomic_write
from acclimate.training.fit import Step
from acclimate.training.folder import RunFolder
from acclimate.training.signals import Stop

REFERENCE = "reference.json"  # what the base said of comparisons, by their content


@dataclass(frozen=True)
class Voice:
    """How a run speaks to whoever started it. say: a line. told: begins a stretch of n things. step: after an update."""

    say: Callable[[str], None]
    told: Told
    step: Callable[[Step, int], None]
    sample: Callable[[Prepared], None]


def carry(recipe: Recipe, run: RunFolder, stop: Stop, voice: Voice) -> Path:
    """Adapt one model one way, measured before and after; returns the path of the report."""
    recipe = absolute(recipe)
    stop.check("preparation")
    if not run.recipe.exists():
        atomic_write(run.recipe, dump(recipe))
    prepared = drawn(recipe, run.path, voice.say, lambda: stop.check("sampling"))
    atomic_write(run.recipe, dump(prepared.recipe))
    for warning in prepared.parts.warnings:
        voice.say(f"note: {warning}")
    voice.sample(prepared)
    stop.check("preparation")
    told = heeding(voice.told, stop)
    before = _base(prepared, run, told, voice)
    stamp = fingerprint(prepared.model)
    prepared, model = installed(prepared)
    prepared = ready(prepared, model, before.task.answers, run.path / REFERENCE, stamp, told)
    counts, steps = parameters(model), recipe.training.steps
    shares = f"{counts['trainable_parameters']:,} of {counts['total_parameters']:,}"
    voice.say(f"{shares} parameters train ({_name(prepared)}).")
    with listening_trackers(prepared, run) as listening:
        spent = train(prepared, model, run, stop, listening, lambda s: voice.step(s, steps), voice.say)
    settle(model)
    prepared = with_threshold(prepared, model)
    save_adapter(model, prepared.recipe.method, run.path / "adapter", facts_of(prepared, stamp))
    serve = for_answering(model, prepared)
    after = measure(prepared, serve, told)
    rolled = iterations.facts(prepared, run, before, after)
    facts = {
        **rolled,
        **counts,
        "kept_parameters": parameters(model)["trainable_parameters"],
        "learned": learned(prepared, model),
        "training": spent_table(spent, steps),
        "provenance": provenance(prepared, stamp, licence_of(recipe.model)),
        "machine": machine(model),
        "artifact": artifact_of(run.path / "adapter"),
        "warnings": [*prepared.parts.warnings, *_cut(before), *tasks.notes(prepared.head), *iterations.doubts(rolled)],
    }
    return write(run, report(prepared, before, after, facts), predictions(prepared, before, after))


def installed(prepared: Prepared) -> tuple[Prepared, nn.Module]:
    """The base with the recipe's method on it, and the rows as that method has them read."""
    method, seed = worded(prepared), prepared.recipe.training.seed
    prepared = replace(prepared, recipe=replace(prepared.recipe, method=method))
    model = adapt(prepared.model, method, seed=seed, beside=heads_beside(prepared.model, method))
    return with_soft_tokens(prepared, model), model


def ready(
    prepared: Prepared, model: nn.Module, before: Sequence[Output], kept: Path, stamp: dict[str, str], told: Told
) -> Prepared:
    """With what is kept or asked of the model before it trains, where it is compared with itself later.

    before: what the base answered to the test rows, where these are comparisons. kept: the file that holds what it says of
    the others.
    """
    reference.hold_bias(prepared, model)
    mixed, prepared = autocast(model, prepared.recipe.training), iterations.ready(prepared, model)
    return reference.with_reference(prepared, model, before, kept, stamp["weights"], told, mixed)


def worded(prepared: Prepared) -> Method:
    """The recipe's method, told the ids of the task's labels where it begins at words."""
    method, labels = prepared.recipe.method, prepared.recipe.task.labels
    if not isinstance(method, Prefix | PromptTuning) or method.start not in ("words", "labels") or method.words:
        return method  # type: ignore[no-any-return]
    return replace(method, words=tuple(prepared.codec.continuation(f" {label}") for label in labels))


def with_threshold(prepared: Prepared, model: nn.Module) -> Prepared:
    """With the threshold of a head of two labels as the recipe has it, and the zero of a reward, now that it is trained."""
    reference.centre(prepared, model)
    if prepared.head is None:
        return prepared
    names = tuple(metric.name for metric in metrics_of(prepared))
    return replace(
        prepared, head=tasks.settled(prepared.head, prepared.recipe.task, model, prepared.parts.dev.rows, names)
    )


def absolute(recipe: Recipe) -> Recipe:
    """Files of the recipe by their full path, so that the resolved recipe means the same anywhere."""
    named = (recipe.data.train, recipe.data.test, recipe.data.dev, recipe.data.pretrain)
    for name in filter(None, named):
        resolve_data(name)
    train, test, dev, pretrain = (_full(name) if name not in DATA else name for name in named)
    model = recipe.model if model_source(recipe.model) else _full(recipe.model)
    mixture = recipe.data.mixture and absolute_sources(recipe.data.mixture, _full)
    data = replace(recipe.data, train=train, mixture=mixture, test=test, dev=dev, pretrain=pretrain)
    return rollouts.absolute(replace(recipe, model=model, data=data), _full)


def _full(name: str) -> str:
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def _base(prepared: Prepared, run: RunFolder, told: Told, voice: Voice) -> Answers:
    """The base model's answers: asked once, kept in base.json for a run that is resumed."""
    kept = run.path / "base.json"
    if kept.exists():
        return from_json(json.loads(kept.read_text(encoding="utf-8")))
    answers = measure(prepared, prepared.model, told)
    atomic_write(kept, json.dumps(answers.json(), ensure_ascii=False))
    found = scores(metrics_of(prepared), answers.task, 200, 0)
    voice.say("base: " + ", ".join(f"{name} {s.value:.3f} ({s.low:.3f} to {s.high:.3f})" for name, s in found.items()))
    return answers


def heeding(told: Told, stop: Stop) -> Told:
    """A signal ends an evaluation between two batches."""

    def begin(what: str, count: int) -> Callable[[int], None]:
        tick = told(what, count)

        def hear(done: int) -> None:
            tick(done)
            stop.check(what)

        return hear

    return begin


def _cut(answers: Answers) -> list[str]:
    """A sentence when prompts had to be shortened to be asked at all."""
    short = sum(output.truncated > 0 for output in answers.task.answers)
    return (
        [f"{short} held-out prompts were longer than the model's context; their oldest part was left out."]
        if short
        else []
    )


def for_answering(model: nn.Module, prepared: Prepared) -> nn.Module:
    """The model as it will be used: weights that trained in float32 are rounded to the precision of the recipe."""
    dtype = DTYPES[prepared.recipe.training.precision]
    for name, parameter in model.named_parameters():
        if ".delta." not in name and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model.eval()


@contextmanager
def listening_trackers(prepared: Prepared, run: RunFolder) -> Iterator[Sequence[Tracker]]:
    """The recipe's trackers, closed in the end."""
    listening = [safely(tracker(name, run.path / name)) for name in prepared.recipe.trackers]
    try:
        yield listening
    finally:
        for each in listening:
            each.close()


def parameters(model: nn.Module) -> dict[str, int]:
    """How many numbers train, and how many the base has."""
    own = {name: p for name, p in model.named_parameters() if ".delta." not in name}
    packed = [module for module in model.modules() if isinstance(module, NF4Linear)]
    return {
        "trainable_parameters": sum(p.numel() for p in trainable(model).values()),
        "total_parameters": sum(p.numel() for p in own.values())
        + sum(layer.in_features * layer.out_features for layer in packed),
    }


def facts_of(prepared: Prepared, base: dict[str, str]) -> dict[str, object]:
    """What an adapter says of the base (its fingerprint), tokenizer and task that it was made with."""
    chat = prepared.template.chat
    return {
        "model": prepared.recipe.model,
        "base": base,
        "tokenizer": tokenizer_hash(prepared.codec.tokenizer),
        "chat": template_hash(chat.source) if chat else "",
        "task": plain(prepared.recipe.task),
        **tasks.facts_of(prepared.head),
    }


def artifact_of(folder: Path) -> dict[str, Any]:
    """The format and the bytes of an adapter folder."""
    files = [path for path in folder.iterdir() if path.is_file()]
    form = "peft" if (folder / "adapter_config.json").exists() else "acclimate"
    return {"path": "adapter", "format": form, "bytes": sum(path.stat().st_size for path in files)}


def licence_of(model: str) -> str:
    """The licence of a built-in model; empty for others."""
    source = model_source(model)
    return source.licence if source else ""


def _name(prepared: Prepared) -> str:
    return str(plain(prepared.recipe)["method"]["name"])
