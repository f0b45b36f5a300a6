"""What a run on comparisons needs before it trains: which objectives go with which rows, and the rows as ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from acclimate.data.examples import Conversation, Example, Feedback, Message, Preference, Ranking
from acclimate.data.template import Template
from acclimate.errors import DataError, RecipeError
from acclimate.models.heads import TaskModel, best_pool, trunk_with_heads
from acclimate.models.load import Loaded
from acclimate.objectives import KTO, OBJECTIVES, PreferredFT, Reward, Spans, name_of
from acclimate.recipe import Recipe, Task
from acclimate.run.parts import Parts
from acclimate.run.rollouts import rolls
from acclimate.run.sampled import TEXTS
from acclimate.run.tasks import HeadTask
from acclimate.tokens.codec import Codec, Encoded
from acclimate.tokens.pairs import Compared, compared, dressed, fit_pairs, reading, with_others
from acclimate.tokens.reading import Reader, Shape
from acclimate.tokens.truncate import Fitted, Policy


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of a run as ids: learned from, watched, asked about in the end."""

    train: tuple[Compared, ...]
    dev: tuple[Compared, ...]
    test: tuple[Compared, ...]


def compares(recipe: Recipe, rows: Sequence[Any]) -> bool:
    """Whether the rows are learned from as comparisons. RecipeError where the objective is for others.

    Of any row an objective on rollouts asks the prompt alone.
    """
    if rolls(recipe):
        return False
    judged = isinstance(rows[0], Preference | Ranking)
    if judged == (not isinstance(recipe.objective, TEXTS)):
        return judged
    fitting = [name for name, kind in OBJECTIVES.items() if (kind in TEXTS) != judged and kind is not Spans]
    kind, name = type(rows[0]).__name__, name_of(recipe.objective)
    raise RecipeError(
        f"{recipe.data.train} holds rows of kind {kind}, which objective {name} does not learn from; choose one of: "
        f"{', '.join(fitting)}."
    )


def check_recipe(recipe: Recipe, loaded: Loaded) -> None:
    """RecipeError for what a run on comparisons cannot follow."""
    task, odd = recipe.task, ""
    if task.labels or task.numbers:
        odd = "task.labels and task.numbers are for answers; rows that compare completions have none. Leave them out."
    elif isinstance(recipe.objective, Reward):
        if recipe.data.truncation == "truncate-response":
            odd = "data.truncation is truncate-response, but a reward is read at the end of a completion; use another."
    elif task.head or not loaded.model.can_generate():
        odd = (
            f"This objective trains a model that writes, and {loaded.name} is to answer with a head or cannot write. "
            "Leave task.head out and choose a decoder or an encoder-decoder, or set objective to reward."
        )
    if odd:
        raise RecipeError(odd)


def check_parts(found: Parts, names: Sequence[str]) -> None:
    """RecipeError where a part that is learned from or asked about as comparisons holds something else."""
    for name in names:
        odd = next((row for row in getattr(found, name).rows if not isinstance(row, Preference | Ranking)), None)
        if odd is not None:
            raise RecipeError(
                f"data.{name}: {odd.where} is of kind {type(odd).__name__}, and comparisons are learned from. Give "
                "comparisons; or for test prompts, with `rewards` that score what is written."
            )


def first(rows: Sequence[Any]) -> Any:
    """The first row, or what stands for it where rows are comparisons or marked."""
    return stand_in(rows) if isinstance(rows[0], Preference | Ranking | Feedback) else rows[0]


def stand_in(rows: Sequence[Preference | Ranking | Feedback]) -> Conversation | Example:
    """A row that needs a chat format if one of `rows` does: where a prompt has several turns."""
    talks = next((row for row in rows if [m.role for m in row.prompt] != ["user"]), None)
    return Example("") if talks is None else Conversation((*talks.prompt, Message("assistant", "")), talks.where)


def encode(
    rows: Sequence[Any], template: Template, codec: Codec, most: int, policy: Policy, objective: Any
) -> tuple[tuple[Compared, ...], Fitted]:
    """The comparisons of a part as ids within `most` tokens, and what that cost."""
    done, told = fit_pairs([compared(row, template, codec) for row in rows], most, policy, codec.kept)
    made = with_others(done, most, codec.kept) if isinstance(objective, KTO) and done else done
    return tuple(made), told


def encode_test(rows: Sequence[Any], template: Template, codec: Codec, most: int) -> tuple[Compared, ...]:
    """Every row that is asked about; the oldest part of a long prompt is left out. DataError where that is not enough."""
    done, told = fit_pairs([compared(row, template, codec) for row in rows], most, "truncate-prompt", codec.kept)
    if told.dropped:
        raise DataError(f"{told.dropped[0]} does not fit into {most:,} tokens, even without its prompt.")
    return tuple(done)


def again(rows: Sequence[Compared], codec: Codec, most: int, policy: Policy) -> tuple[Compared, ...]:
    """The rows with the soft tokens of an adapter in their places."""
    return tuple(fit_pairs([dressed(row, codec) for row in rows], most, policy, codec.kept)[0])


def learnable(rows: Sequence[Compared], told: Fitted, objective: Any, head: HeadTask | None) -> Fitted:
    """What goes through the model: comparisons, readings of a reward head, or the completions in first place alone."""
    made: Sequence[Any] = rows
    if head is not None:
        made = [reading(row, head.shape.pool, len(head.reader.codec.front)) for row in rows]
    elif isinstance(objective, PreferredFT):
        made = [each for row in rows for each, rank in zip(row.rows, row.ranks, strict=True) if rank == 1]
    return told._replace(rows=cast(list[Encoded], list(made)))


def with_reward_head(
    loaded: Loaded, task: Task, codec: Codec, template: Template, most: int, recipe: Recipe
) -> tuple[TaskModel, HeadTask]:
    """The trunk with a scalar head drawn from the seed: a reward model, read at the end of a completion in a decoder."""
    pool = best_pool(loaded) if task.pool == "auto" else task.pool
    shape = Shape("regress", (), pool)
    model = trunk_with_heads(loaded, pooler=pool == "pooler")
    model.add(shape, seed=recipe.training.seed)
    return model, HeadTask(Reader(replace(codec, reads=False), template, shape, (), most), recipe.objective)


def target_of(row: Any) -> str:
    """The completion in first place; "" for a row that compares none."""
    if isinstance(row, Preference):
        return row.chosen
    return row.completions[row.ranks.index(1)] if isinstance(row, Ranking) else ""
