"""What a run on rollouts needs before it trains: a recipe that fits, and every row as a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from acclimate.data.examples import Conversation, Document, Example
from acclimate.data.template import Segment, Template, dialogue
from acclimate.errors import DataError, RecipeError
from acclimate.evaluation.predictor import bare, within
from acclimate.models.load import Loaded
from acclimate.objectives import GRPO, OBJECTIVES, PPO, RLOO
from acclimate.recipe import Recipe
from acclimate.rewards.reward import Reward, Weighted
from acclimate.rewards.rollout import Prompt, Rollouts
from acclimate.tokens.codec import Codec, Encoded, refuse_control_tokens
from acclimate.tokens.truncate import Fitted, Policy, fit_rows

LEARNERS = (PPO, GRPO, RLOO)


@dataclass(frozen=True)
class Rolled:
    """The prompts of a run on rollouts, and what scores their completions.

    pretrain: ordinary text for PPO-ptx. originals: the base tensors that train, as they were before; None until a method
    is installed, and the model is its own reference.
    """

    train: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    reward: Reward
    judge: Reward | None = None
    pretrain: tuple[Encoded, ...] = ()
    originals: Mapping[str, Tensor] | None = None


def rolls(recipe: Recipe) -> bool:
    """Whether the recipe learns from completions that the model samples itself."""
    return isinstance(recipe.objective, LEARNERS)


def check_recipe(recipe: Recipe) -> None:
    """RecipeError for rollouts, rewards or ordinary text without an objective on them, and the other way round."""
    name = next(name for name, kind in OBJECTIVES.items() if type(recipe.objective) is kind)
    odd = _odd(recipe, name) if rolls(recipe) else _idle(recipe, name)
    if odd:
        raise RecipeError(odd)


def check_model(recipe: Recipe, loaded: Loaded) -> None:
    """RecipeError for rollouts of a model that cannot write."""
    if rolls(recipe) and not loaded.model.can_generate():
        raise RecipeError(f"{loaded.name} cannot write, so it has no rollouts; choose a decoder or an encoder-decoder.")


def _idle(recipe: Recipe, name: str) -> str:
    given = {"rollouts": recipe.rollouts != Rollouts(), "rewards": recipe.rewards, "judge": recipe.judge}
    idle = next((part for part, there in {**given, "data.pretrain": recipe.data.pretrain}.items() if there), "")
    return f"{idle} has no meaning for objective {name}; set objective to ppo, grpo or rloo." if idle else ""


def _odd(recipe: Recipe, name: str) -> str:
    how, task = recipe.rollouts, recipe.task
    if not recipe.rewards:
        return f"Objective {name} needs rewards, such as rewards: [{{name: lexicon, weight: 1.0}}]."
    if recipe.objective.grouped and how.each < 2:
        return f"Objective {name} compares completions of one prompt; set rollouts.each to 2 at least, not {how.each}."
    if how.ptx and not isinstance(recipe.objective, PPO):
        return f"rollouts.ptx is for objective ppo, not {name}."
    if bool(how.ptx) != bool(recipe.data.pretrain):
        return "rollouts.ptx above 0 and data.pretrain, the ordinary text that it weighs, need each other."
    if task.labels or task.numbers or task.head:
        return f"task.labels, task.numbers and task.head are for answers; objective {name} has a model write freely."
    if recipe.training.checkpointing:
        return f"training.checkpointing needs a mode with dropout, and objective {name} one without; leave it out."
    return ""


def absolute(recipe: Recipe, full: Callable[[str], str]) -> Recipe:
    """The recipe with the adapters of rewards that are models by their full path."""

    def found(rewards: tuple[tuple[float, Any], ...]) -> tuple[tuple[float, Any], ...]:
        return tuple((w, replace(r, adapter=full(r.adapter)) if hasattr(r, "adapter") else r) for w, r in rewards)

    return replace(recipe, rewards=found(recipe.rewards), judge=found(recipe.judge))


def rolled(
    recipe: Recipe,
    rows: tuple[Sequence[Any], Sequence[Any]],
    template: Template,
    codec: Codec,
    context: int,
    pretrain: Sequence[Encoded] = (),
) -> tuple[Rolled, Fitted]:
    """The prompts of the rows that are learned from and asked about, and what fitting the former cost."""
    most, longest = min(recipe.data.max_tokens or context, context), recipe.rollouts.max_new_tokens
    room = most if codec.reads else most - longest
    if room < 1:
        raise RecipeError(
            f"rollouts.max_new_tokens is {longest}, which leaves no room for a prompt: {most:,} tokens fit in all."
        )
    train, told = encode(rows[0], template, codec, room, recipe.data.truncation)
    test, _ = encode(rows[1], template, codec, room, "truncate-prompt")
    judge = Weighted(recipe.judge) if recipe.judge else None
    return Rolled(train, test, Weighted(recipe.rewards), judge, tuple(pretrain)), told


def encode(
    rows: Sequence[Any], template: Template, codec: Codec, room: int, policy: Policy
) -> tuple[tuple[Prompt, ...], Fitted]:
    """Every row as a prompt within `room` ids, and what that cost; of a prompt that is cut the oldest part goes."""
    made: list[Prompt] = []
    told = Fitted([], [], [])
    for row in rows:
        prompt = _prompt(row, len(made), template, codec)
        if prompt.row.size > room and policy == "drop":
            told.dropped.append(row.where)
            continue
        if prompt.row.size > room:
            if policy == "error":
                fit_rows([prompt.row], room, policy)
            told.cut.append(row.where)
        made.append(replace(prompt, row=within(prompt.row, room, codec)))
        told.rows.append(made[-1].row)
    return tuple(made), told


def _prompt(row: Any, number: int, template: Template, codec: Codec) -> Prompt:
    pieces, text, fields = _asked(row, template)
    refuse_control_tokens(codec, text, row.where)
    return Prompt(bare(codec, pieces, row.where), text, number, fields)


def _asked(row: Any, template: Template) -> tuple[Sequence[Segment], str, Mapping[str, Any]]:
    """What is fed, what a reward is shown of it, and the columns. Of a conversation all before the last assistant's turn."""
    if isinstance(row, Document):
        row = Example(row.text, fields={"text": row.text}, where=row.where)
    if isinstance(row, Example):
        return template(row, None), template.question(row), row.fields
    assert isinstance(row, Conversation)
    last = max((i for i, m in enumerate(row.messages) if m.role == "assistant"), default=len(row.messages))
    turns = row.messages[:last]
    if not turns or template.chat is None:
        raise DataError(f"{row.where} has nothing before its last answer; a prompt needs at least one turn.")
    read = tuple(replace(turn, train=False) for turn in turns)
    pieces = [Segment(text, False) for text, _ in dialogue(read, template.chat, row.where, reply=True)]
    return pieces, "\n\n".join(turn.content for turn in turns), {}
