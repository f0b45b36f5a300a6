"""A comparison as YAML: a run recipe that all rungs share, and what each rung does differently. As strict as recipe.py."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from acclimate.data.yaml_tables import build, compose, laid_over, overlay, plain
from acclimate.errors import ModelError, RecipeError, unknown
from acclimate.methods import METHODS, LoRA
from acclimate.objectives import name_of
from acclimate.recipe import Recipe, check, text_of
from acclimate.run.best_rung import BestOf
from acclimate.run.feature_rung import Features
from acclimate.run.prompt_rung import ChainOfThought, FewShot
from acclimate.run.prompt_search import PromptSearch
from acclimate.run.rollouts import reads

OWN = ("rungs", "search", "seeds", "picture")  # entries that a run recipe has not
# What no rung may change: they are compared on one base, one test and the same seeds.
SHARED = (
    *("model", "trackers", "evaluation", "training.precision", "training.seed", "task.labels", "task.metrics"),
    *("data.sampled", "judge", "rollouts.temperature", "rollouts.max_new_tokens"),
)


@dataclass(frozen=True)
class Untuned:
    """Nothing trains: the base model answers under the rung's template."""

    def install(self, model: nn.Module, name: str = "default") -> None:
        """Opens and attaches nothing."""


WAYS: dict[str, type] = {
    **METHODS,
    "none": Untuned,
    "few_shot": FewShot,
    "chain_of_thought": ChainOfThought,
    "prompt_search": PromptSearch,
    "features": Features,
    "best_of": BestOf,
}


@dataclass(frozen=True)
class Rung(Recipe):
    """One way of adapting: the shared recipe with this rung's entries laid over it.

    Its `rewards` are what it learns from or picks by; what it is measured by are those of the shared recipe. A reward that
    is a model may name an earlier rung, which trains it, in the place of an adapter's folder.
    """

    method: Any = field(default=LoRA(), metadata={"choices": WAYS})
    name: str = ""  # the method's, without one
    series: str = ""  # of the picture: rungs of one name are joined by a line; without one the method's or objective's
    rates: tuple[float, ...] = ()  # tried in the search; without any those of `search`, or else training.rate alone

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return slug(self.name)


@dataclass(frozen=True)
class Search:
    """How every rung's learning rate is chosen, on dev alone: successive halving, the same budget for each.

    By the loss among the labels, where the model chooses one; else by the task's first metric.

    Jamieson & Talwalkar 2016, arXiv:1502.07943, figure 3: every round trains what is left, keeps its better part and
    gives that more steps. Here a round begins each training anew, because the schedule of a rate spans its steps.
    """

    rates: tuple[float, ...] = ()  # none: nothing is searched, every rung has its training.rate
    keep: float = 0.5  # the share of a round's rates that goes on, rounded down, one at least
    share: float = (
        0.25  # of the rung's steps that each rate has in the first round; later rounds have 1 / keep times more
    )
    rows: int = 100  # of dev that a trial is scored on


@dataclass(frozen=True)
class Picture:
    """One chart for a study: a score, with its interval, against an entry in which the rungs differ."""

    x: str  # such as method.rank or data.limit.train, or a metric, such as kl
    metric: str = ""  # the task's first, without one


@dataclass(frozen=True)
class _Own:
    """The entries of a comparison that are not the shared recipe's."""

    search: Search = Search()
    seeds: tuple[int, ...] = ()  # training.seed alone, without any
    picture: Picture | None = None


@dataclass(frozen=True)
class Comparison:
    """Several ways on one task. The search runs with the first seed; the chosen rate is trained in full for each."""

    shared: Recipe
    rungs: tuple[Rung, ...]
    search: Search
    seeds: tuple[int, ...]
    picture: Picture | None


def load(path: Path, overrides: Sequence[str] = (), quick: bool = False) -> Comparison:
    """The comparison at `path`, with `key=value` overrides; `quick` lays its table of that name over it first."""
    return parse(text_of(path), str(path), overrides, quick)


def parse(text: str, where: str = "recipe", overrides: Sequence[str] = (), quick: bool = False) -> Comparison:
    """The comparison in `text`. What it says under `quick` is read strictly in any case."""
    root, over = compose(text, where), overlay(overrides)
    tables = {key.value: value for key, value in root.value}
    fast = tables.get("quick")
    if fast is None and quick:
        raise RecipeError(f"{where} does not say what --quick means; give it a table `quick` with the smaller numbers.")
    full = _without(root, ("quick",))
    made = {False: full} if fast is None else {False: full, True: laid_over(full, fast)}
    return {key: _comparison(laid_over(node, over), where) for key, node in made.items()}[quick]


def _comparison(root: yaml.Node, where: str) -> Comparison:
    assert isinstance(root, yaml.MappingNode)
    given = [pair for pair in root.value if pair[0].value in OWN and pair[0].value != "rungs"]
    own = build(_Own, yaml.MappingNode(root.tag, given, root.start_mark), "", where)
    _check_search(own.search, where)
    below = _without(root, OWN)
    shared = build(Recipe, below, "", where)
    check(shared, where)
    entries = next((value for key, value in root.value if key.value == "rungs"), None)
    if not isinstance(entries, yaml.SequenceNode) or not entries.value:
        raise RecipeError(f"{where}: a comparison needs rungs, a list such as [{{method: lora}}, {{method: none}}].")
    rungs = tuple(_rung(entry, below, own.search, where) for entry in entries.value)
    found = Comparison(shared, rungs, own.search, own.seeds or (shared.training.seed,), own.picture)
    _check(found, where)
    return found


def _rung(entry: yaml.Node, below: yaml.Node, search: Search, where: str) -> Rung:
    line = f"{where}:{entry.start_mark.line + 1}" if entry.start_mark else "command line"
    if not isinstance(entry, yaml.MappingNode):
        raise RecipeError(f"{line}: a rung must be a table, such as {{method: lora}}.")
    rung: Rung = build(Rung, laid_over(below, entry), "", where)
    check(rung, line)
    name = rung.name or method_name(rung)
    if not tuned(rung.method):
        return replace(rung, name=name, rates=())
    rates, most = rung.rates or search.rates or (rung.training.rate,), len(search.rates) or 1
    _check_rates(rates, f"{line}: the rates of {name}")
    if len(rates) != most:
        raise RecipeError(
            f"{line}: {name} has {len(rates)} rates and the search {most}; a fair budget is the same number of trials "
            "for every rung."
        )
    return replace(rung, name=name, rates=rates)


def tuned(method: object) -> bool:
    """Whether a method trains by steps at a rate; one that fits a predictor of its own, or nothing, does not."""
    return not (isinstance(method, Untuned) or hasattr(method, "fit_predictor"))


def _check_search(given: Search, where: str) -> None:
    _check_rates(given.rates, f"{where}: search.rates")
    if not (0 < given.keep < 1 and 0 < given.share <= 1 and given.rows > 0):
        raise RecipeError(
            f"{where}: search needs 0 < keep < 1, 0 < share <= 1 and rows above 0, not {given.keep}, {given.share} "
            f"and {given.rows}."
        )


def _check(found: Comparison, where: str) -> None:
    """What no single entry can say."""
    if len(set(found.seeds)) != len(found.seeds) or min(found.seeds) < 0:
        raise RecipeError(f"{where}: seeds must be different numbers from 0 on, not {list(found.seeds)}.")
    twice = [name for name, count in Counter(slug(rung.name) for rung in found.rungs).items() if count > 1]
    if twice:
        raise RecipeError(f"{where}: {twice[0]} is the name of several rungs; give each a `name` of its own.")
    for number, rung in enumerate(found.rungs):
        _check_shared(rung, found.shared, where)
        _check_teacher(rung, found.rungs[:number], found.rungs[number:], where)
    measured, picture = found.shared.task.metrics, found.picture
    if picture and picture.x not in measured and not any(has(rung, picture.x) for rung in found.rungs):
        entry(found.rungs[0], picture.x, where)


def stands_apart(rung: Recipe, shared: Recipe) -> bool:
    """Whether the rung trains what scores texts, among others that write them: it has no place in their table."""
    return reads(rung) and not reads(shared)


def teachers(rung: Rung, others: Sequence[Rung]) -> list[Rung]:
    """The rungs among `others` that train a reward of this one."""
    named = [getattr(reward, "adapter", "") for _, reward in rung.rewards]
    return [other for other in others if other.name in named]


def taught(rung: Rung, places: Mapping[str, Path]) -> Rung:
    """The rung with adapters for the rungs that its rewards name. places: their folders. ModelError where one is missing."""
    if missing := next((name for name, place in places.items() if not place.is_dir()), ""):
        raise ModelError(f"Rung {missing}, which trains a reward of {rung.name}, left none.")
    adapters = {name: str(place) for name, place in places.items()}
    rewards = tuple(
        (weight, replace(each, adapter=adapters[each.adapter]) if getattr(each, "adapter", "") in adapters else each)
        for weight, each in rung.rewards
    )
    return replace(rung, rewards=rewards)


def _check_teacher(rung: Rung, before: Sequence[Rung], rest: Sequence[Rung], where: str) -> None:
    """A reward that is a model lies in a folder, or an earlier rung trains it."""
    there, rungs = [other.name for other in before if reads(other)], {other.name for other in (*before, *rest)}
    for named in (reward.adapter for _, reward in rung.rewards if hasattr(reward, "adapter")):
        if named not in there and (named in rungs or ("/" not in named and not Path(named).is_dir())):
            raise RecipeError(
                f"{where}: rung {rung.name} has {named!r} as a reward, which is no adapter folder and no earlier rung with "
                f"objective reward or spans; of these there is: {', '.join(there) or 'none'}."
            )


def _check_rates(rates: Sequence[float], what: str) -> None:
    if len(set(rates)) != len(rates) or not all(0 < rate < float("inf") for rate in rates):
        raise RecipeError(f"{what} must be different finite numbers above 0, not {list(rates)}.")


def _check_shared(rung: Rung, shared: Recipe, where: str) -> None:
    for path in SHARED:
        if entry(rung, path, where) != entry(shared, path, where):
            raise RecipeError(
                f"{where}: rung {rung.name} changes {path}, which all rungs share: they are compared on one base, one "
                "test and the same seeds."
            )
    if len(rung.rates) > 1 and rung.training.rate != shared.training.rate:
        raise RecipeError(f"{where}: rung {rung.name} has a training.rate, but its rate is searched; give it `rates`.")


def entry(recipe: Recipe, path: str, where: str = "recipe") -> Any:
    """The value at `path`, such as method.rank, as plain data. Raises RecipeError, saying what there is."""
    found = plain(recipe)
    for part in path.split("."):
        if isinstance(found, list):  # such as rewards.0.weight
            found = {str(place): each for place, each in enumerate(found)}
        if not isinstance(found, Mapping) or part not in found:
            name = getattr(recipe, "name", "") or "recipe"
            there = found if isinstance(found, Mapping) else ()
            raise RecipeError(f"{where}: {name} has no {path}: " + unknown("entry there", part, there))
        found = found[part]
    return found


def has(recipe: Recipe, path: str) -> bool:
    """Whether there is an entry at `path`."""
    try:
        entry(recipe, path)
    except RecipeError:
        return False
    return True


def _without(root: yaml.Node, names: Sequence[str]) -> yaml.MappingNode:
    assert isinstance(root, yaml.MappingNode)
    kept = [pair for pair in root.value if pair[0].value not in names]
    return yaml.MappingNode(root.tag, kept, root.start_mark, root.end_mark)


def method_name(rung: Rung) -> str:
    """The method's name in a recipe."""
    return next(name for name, cls in WAYS.items() if cls is type(rung.method))


def way(rung: Rung) -> str:
    """The objective's name in a recipe, or the method's where nothing trains."""
    return name_of(rung.objective) if tuned(rung.method) else method_name(rung)


def slug(name: str) -> str:
    """A name as that of a folder.

    >>> slug("prompt only"), slug("q+k, rank 8")
    ('prompt-only', 'q+k-rank-8')
    """
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "rung"


def changes(rung: Rung, shared: Recipe) -> dict[str, Any]:
    """The entries of a rung that are not the shared recipe's; its name and method always."""
    mine, theirs = plain(rung), plain(shared)
    found = {f.name: _changed(mine[f.name], theirs[f.name]) for f in fields(Recipe) if mine[f.name] != theirs[f.name]}
    own = {name: mine[name] for name in ("series", "rates") if mine[name]}
    return {"name": rung.name, **found, "method": mine["method"], **own}


def _changed(mine: Any, theirs: Any) -> Any:
    if not (isinstance(mine, Mapping) and isinstance(theirs, Mapping)) or mine.get("name") != theirs.get("name"):
        return mine
    return {key: _changed(mine[key], theirs.get(key)) for key in mine if mine[key] != theirs.get(key)}


def table(found: Comparison) -> dict[str, Any]:
    """The comparison as plain tables and lists."""
    own = {name: plain(getattr(found, name)) for name in ("search", "seeds", "picture")}
    return {**plain(found.shared), **own, "rungs": [changes(rung, found.shared) for rung in found.rungs]}


def dump(found: Comparison) -> str:
    """The comparison as YAML that `parse` reads back to an equal one."""
    return yaml.safe_dump(table(found), sort_keys=False, allow_unicode=True, width=120)
