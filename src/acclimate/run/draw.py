"""Completions that the base writes of its prompts, put in order by their rewards: drawn once for a folder, then kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

from acclimate.models.modes import evaluating
from acclimate.recipe import Recipe
from acclimate.rewards.model import asked
from acclimate.rewards.reward import Completion, Reward, checked, total
from acclimate.rewards.rollout import Prompt, completion, joined, sampled
from acclimate.run.beside import lent
from acclimate.run.prepare import Prepared, prepare
from acclimate.run.rollouts import prompts
from acclimate.run.sampled import FILE, Ranked, learns, text
from acclimate.tokens.schedule import epochs
from acclimate.training.checkpoint import atomic_write

Say = Callable[[str], None]


def drawn(recipe: Recipe, folder: Path, say: Say, heed: Callable[[], None]) -> Prepared:
    """`prepare`, after the completions that the recipe compares have been drawn."""
    found = prepare(recipe, folder)
    if not learns(recipe) or (folder / FILE).exists():
        return found
    keep(found, folder, say, heed)
    return prepare(recipe, folder)


def keep(prepared: Prepared, folder: Path, say: Say, heed: Callable[[], None]) -> None:
    """Write the folder's file of comparisons, whole, unless it is there. heed: called before every token."""
    if (folder / FILE).exists():
        return
    rolled = prepared.rolled
    assert rolled is not None
    with evaluating(prepared.model), lent(rolled.reward, prepared.model, prepared.codec) as reward:
        rows = [row for part in ("train", "dev", "test") for row in ranked(prepared, part, reward, heed)]
    apart = [row for row in rows if max(row.ranks) > 1]
    say(f"sampled: {len(apart):,} prompts whose completions are compared, {len(rows) - len(apart):,} left out as ties")
    atomic_write(folder / FILE, text(apart))


def ranked(prepared: Prepared, part: str, reward: Reward, heed: Callable[[], None]) -> Iterator[Ranked]:
    """Some prompts of a part, chosen by the seed, each with its completions and what they earn."""
    recipe, codec = prepared.recipe, prepared.codec
    given, how, seed = recipe.data.sampled, recipe.rollouts, recipe.training.seed
    assert given is not None
    rows = getattr(prepared.parts, part).rows
    chosen = [rows[i] for i in sorted(epochs(len(rows), seed, 0)[: given.prompts])]
    fitting, _ = prompts(recipe, chosen, prepared.template, codec, prepared.context)
    every = [prompt for prompt in fitting for _ in range(given.each)]
    written = sampled(prepared.model, every, how, codec, seed, heed)
    found = [completion(prompt, done, codec) for prompt, done in zip(every, written, strict=True)]
    scores = [total(marks) for marks in checked(reward(found), found, "of the recipe")]
    rows_of = [joined(prompt.row, done) for prompt, done in zip(every, written, strict=True)]
    for first, prompt in zip(range(0, len(every), given.each), fitting, strict=True):
        mine = slice(first, first + given.each)
        ids = tuple(row.ids[len(prompt.row.ids) :] for row in rows_of[mine])
        yield _ranked(part, prompt, found[mine], ids, scores[mine])


def _ranked(
    part: str, prompt: Prompt, found: list[Completion], ids: tuple[tuple[int, ...], ...], scores: list[float]
) -> Ranked:
    texts = tuple(each.text for each in found)
    return Ranked(part, prompt.row, asked(found[0]), texts, ids, tuple(scores))
