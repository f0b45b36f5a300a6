"""What a forecast takes completions to be that are not written yet: each as long as it may be."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.objectives.ppo import Experience
from acclimate.run.iterations import drawn
from acclimate.run.preferences import Comparisons
from acclimate.run.prepare import Prepared, with_pairs
from acclimate.run.rollouts import prompts, reads, rolls
from acclimate.run.sampled import continued, learns
from acclimate.tokens.batch import Batch
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared
from acclimate.tokens.truncate import Fitted

ASSUMED = (
    "assumed: completions as long as rollouts.max_new_tokens lets them be; not in the forecast: the time that writing them "
    "takes, rewards that are models, and the ordinary text of rollouts.ptx"
)


def imagined(prepared: Prepared) -> Prepared:
    """The same inputs with such completions, where the run learns from the model's own; and with a reference of 0.

    RecipeError for a reward model of completions that nobody has written.
    """
    return _referenced(_written(prepared))


def _referenced(prepared: Prepared) -> Prepared:
    """Comparisons as if the reference had been asked of them."""
    if prepared.pairs is None or prepared.head or not prepared.recipe.objective.against:
        return prepared
    known = {
        part: tuple(row._replace(reference=(0.0,) * len(row.every)) for row in getattr(prepared.pairs, part))
        for part in ("train", "dev")
    }
    return with_pairs(prepared, replace(prepared.pairs, **known))


def _written(prepared: Prepared) -> Prepared:
    recipe = prepared.recipe
    if rolls(recipe) and prepared.rolled:
        rows = [_full(prompt.row, prepared) for prompt in prepared.rolled.train]
        return replace(prepared, train=Fitted(rows, [], []))
    if not learns(recipe) or prepared.train.rows:
        return prepared
    if reads(recipe):
        raise RecipeError(
            "There is no forecast of a reward model before the completions are drawn that it learns from."
        )
    given = recipe.data.sampled
    assert given is not None
    chosen = prepared.parts.train.rows[: given.prompts]
    asked, _ = prompts(recipe, chosen, prepared.template, prepared.codec, prepared.context)
    ranks = tuple(range(1, given.each + 1))
    pairs = [Compared((_full(prompt.row, prepared),) * given.each, ranks, prompt.row.where) for prompt in asked]
    return with_pairs(prepared, Comparisons(tuple(pairs), (), ()))


def _full(row: Encoded, prepared: Prepared) -> Encoded:
    return continued(row, (prepared.codec.pad,) * prepared.recipe.rollouts.max_new_tokens)


def updates(prepared: Prepared) -> list[tuple[int, ...]]:
    """The prompts of every update of a run on rollouts."""
    given, how, rows = prepared.recipe.training, prepared.recipe.rollouts, len(prepared.train.rows)
    found = []
    for step in range(given.steps):
        iteration, part = divmod(step, how.updates)
        every = np.repeat(drawn(rows, how.prompts, given.seed, iteration), how.each)
        order = np.random.default_rng([given.seed, iteration, part // how.parts]).permutation(len(every))
        found.append(tuple(int(i) for i in every[np.array_split(order, how.parts)[part % how.parts]]))
    return found


def loss(objective: Any, model: nn.Module, batch: Batch) -> Tensor:
    """() what an objective on rollouts makes of a batch of which nothing is learned yet."""
    none = torch.zeros(len(batch.targets))
    total: Tensor = objective(model, Experience(batch, none, none, none, none, none)).total
    return total
