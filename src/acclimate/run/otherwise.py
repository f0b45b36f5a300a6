"""Ways to ask that `evaluate` is told of: the questions in the model's own words, and prompts as the rungs have them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from acclimate.data.examples import Example, Output
from acclimate.data.sources import cache
from acclimate.data.yaml_tables import build, compose
from acclimate.errors import RecipeError, UsageError
from acclimate.evaluation import paraphrase
from acclimate.evaluation.predictor import Generate, Predictor
from acclimate.models.fingerprint import fingerprint
from acclimate.recipe import Recipe
from acclimate.run.learned import Learned
from acclimate.run.measure import Told
from acclimate.run.open import Opened
from acclimate.run.parts import parts
from acclimate.run.prepare import Prepared, resolve_task
from acclimate.run.rungs import WAYS
from acclimate.run.versions import Change, version
from acclimate.tokens.truncate import Fitted

FITTED = {name: way for name, way in WAYS.items() if hasattr(way, "fit_predictor")}  # ways in which no weight moves


def paraphrases(
    opened: Opened, rows: Sequence[Any], labels: Sequence[str], told: Told
) -> tuple[dict[str, Change], dict[str, dict[str, float]]]:
    """A change of questions for each request for other words, and how far it goes."""
    texts = asked_texts(rows, labels)
    general = Generate(opened.model, opened.codec, opened.template(), opened.context, paraphrase.LONGEST)
    stamp = paraphrase.stamped(fingerprint(opened.model)["weights"], general)
    changes: dict[str, Change] = {}
    facts = {}
    for name, request in paraphrase.REQUESTS.items():
        ask = paraphrase.asking(general, request)
        found = paraphrase.reworded(texts, ask, request, cache() / "paraphrases", stamp, told(name, len(texts)))
        changes[name], facts[name] = partial(_instead, found), paraphrase.told(texts, found)
    return changes, facts


def asked_texts(rows: Sequence[Any], labels: Sequence[str]) -> list[str]:
    """Every text that a change of the rows would be made to."""
    seen: list[str] = []

    def note(text: str) -> str:
        seen.append(text)
        return text

    version(rows, note, labels)
    return list(dict.fromkeys(seen))


def _instead(found: Mapping[str, str], text: str) -> str:
    return found.get(text, text)


@dataclass(frozen=True)
class _Way:
    """--method, as a rung has it."""

    method: Any = field(metadata={"choices": FITTED})


class Asked(Predictor, Protocol):
    """What a way of asking makes."""

    def learned(self, outputs: Sequence[Output]) -> Learned:
        """Facts about the prompts and the answers: title → row → column → number."""


def way(text: str) -> Any:
    """The method that `text` says, such as few_shot or {name: few_shot, shots: 8}."""
    return build(_Way, compose(f"method: {text}", "--method"), "", "--method").method


def prompted(method: Any, opened: Opened, recipe: Recipe, kinds: Collection[str]) -> Asked:
    """What answers in this way: its worked examples are training rows of the recipe, what it chooses it chooses on dev.

    kinds: what the metrics look at. UsageError for what such an answer does not have.
    """
    if "likelihood" in kinds:
        raise UsageError("--method answers, and has no likelihood of the right answers; measure what is answered.")
    found = parts(recipe.data, recipe.task)
    if not all(isinstance(row, Example) for row in found.test.rows) or recipe.task.head:
        raise UsageError("--method asks questions of a model that writes; these rows, or this task, need no prompt.")
    template, task = resolve_task(recipe.task, opened.codec, found.test.rows[0])
    nothing = Fitted([], [], [])
    given = Recipe(recipe.model, recipe.data, task, training=recipe.training, evaluation=recipe.evaluation)
    prepared = Prepared(given, found, opened.model, opened.codec, template, opened.context, nothing, nothing)
    try:
        made: Asked = method.fit_predictor(prepared, recipe.training.seed)
    except RecipeError as error:
        raise UsageError(f"--method: {error}") from None
    return made
