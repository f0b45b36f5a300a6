"""What a run needs whose completions are scored: a recipe that fits, and every row as a prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from acclimate.data.examples import Conversation, Document, Example
from acclimate.data.template import Segment, Template, dialogue
from acclimate.errors import DataError, RecipeError
from acclimate.evaluation.predictor import bare, within
from acclimate.models.load import Loaded
from acclimate.objectives import GRPO, PPO, RLOO, Spans, name_of
from acclimate.objectives import Reward as RewardModel
from acclimate.recipe import Recipe
from acclimate.rewards.reward import Reward, Weighted
from acclimate.rewards.rollout import Prompt, Rollouts
from acclimate.run import sampled
from acclimate.tokens.codec import Codec, Encoded, refuse_control_tokens
from acclimate.tokens.truncate import Fitted, Policy, fit_rows

LEARNERS = (PPO, GRPO, RLOO)


@dataclass(frozen=True)
class Rolled:
    """What scores completions, and the prompts of a run that learns from them.

    measured: what scores those of held-out prompts, where it is not `reward`. pretrain: ordinary text for PPO-ptx.
    originals: the base tensors that train, as they were before; None until a method is installed, and the model is its own
    reference.
    """

    train: tuple[Prompt, ...]
    reward: Reward
    judge: Reward | None = None
    measured: Reward | None = None
    pretrain: tuple[Encoded, ...] = ()
    originals: Mapping[str, Tensor] | None = None


def rolls(recipe: Recipe) -> bool:
    """Whether the recipe learns from completions that the model samples itself."""
    return isinstance(recipe.objective, LEARNERS)


def reads(recipe: Recipe) -> bool:
    """Whether the recipe trains what scores texts and writes none."""
    return isinstance(recipe.objective, RewardModel | Spans)


def writes(recipe: Recipe) -> bool:
    """Whether held-out rows are asked as prompts, and what the model writes is scored."""
    return bool(recipe.rewards) and not reads(recipe)


def heard(recipe: Recipe) -> Recipe:
    """Of what several recipes share that which this one hears of."""
    if sampled.learns(recipe):
        return recipe
    recipe = replace(recipe, data=replace(recipe.data, sampled=None))
    return replace(recipe, rewards=(), judge=(), rollouts=Rollouts()) if reads(recipe) else recipe


def check_recipe(recipe: Recipe) -> None:
    """RecipeError for rollouts, rewards or ordinary text that nothing hears of, and for objectives that lack them."""
    name = name_of(recipe.objective)
    odd = _odd(recipe, name) if rolls(recipe) else _idle(recipe, name)
    if odd := odd or _strange(recipe, name):
        raise RecipeError(odd)


def check_model(recipe: Recipe, loaded: Loaded) -> None:
    """RecipeError for rollouts of a model that cannot write."""
    if writes(recipe) and not loaded.model.can_generate():
        raise RecipeError(f"{loaded.name} cannot write, so it has no rollouts; choose a decoder or an encoder-decoder.")


def _idle(recipe: Recipe, name: str) -> str:
    if recipe.data.sampled and not recipe.rewards:
        return "data.sampled needs rewards, which put completions in order, such as rewards: [{name: lexicon}]."
    heard = writes(recipe) or recipe.data.sampled
    parts = {"rollouts": recipe.rollouts != Rollouts(), "rewards": recipe.rewards, "judge": recipe.judge}
    given = {**({} if heard else parts), "data.pretrain": recipe.data.pretrain, "rollouts.ptx": recipe.rollouts.ptx}
    idle = next((part for part, there in given.items() if there), "")
    alone = " without rewards" if not (recipe.rewards or reads(recipe)) else ""
    return f"{idle} has no meaning for objective {name}{alone}; set objective to ppo, grpo or rloo." if idle else ""


def _strange(recipe: Recipe, name: str) -> str:
    task = recipe.task
    if recipe.data.sampled and not sampled.learns(recipe):
        return f"data.sampled has no meaning for objective {name}, which compares no completions."
    if writes(recipe) and (task.labels or task.numbers or task.head):
        return (
            f"task.labels, task.numbers and task.head are for answers; with rewards, objective {name} has a model write "
            "freely."
        )
    return ""


def _odd(recipe: Recipe, name: str) -> str:
    how = recipe.rollouts
    if not recipe.rewards:
        return f"Objective {name} needs rewards, such as rewards: [{{name: lexicon, weight: 1.0}}]."
    if recipe.objective.grouped and how.each < 2:
        return f"Objective {name} compares completions of one prompt; set rollouts.each to 2 at least, not {how.each}."
    if how.ptx and not isinstance(recipe.objective, PPO):
        return f"rollouts.ptx is for objective ppo, not {name}."
    if bool(how.ptx) != bool(recipe.data.pretrain):
        return "rollouts.ptx above 0 and data.pretrain, the ordinary text that it weighs, need each other."
    if recipe.training.checkpointing:
        return f"training.checkpointing needs a mode with dropout, and objective {name} one without; leave it out."
    return ""


def absolute(recipe: Recipe, full: Callable[[str], str]) -> Recipe:
    """The recipe with the adapters of rewards that are models by their full path."""

    def found(rewards: tuple[tuple[float, Any], ...]) -> tuple[tuple[float, Any], ...]:
        return tuple((w, replace(r, adapter=full(r.adapter)) if hasattr(r, "adapter") else r) for w, r in rewards)

    return replace(recipe, rewards=found(recipe.rewards), judge=found(recipe.judge))


def scored(recipe: Recipe) -> Rolled:
    """What scores completions."""
    return Rolled((), Weighted(recipe.rewards), Weighted(recipe.judge) if recipe.judge else None)


def prompts(
    recipe: Recipe,
    rows: Sequence[Any],
    template: Template,
    codec: Codec,
    context: int,
    policy: Policy = "truncate-prompt",
) -> tuple[tuple[Prompt, ...], Fitted]:
    """The rows as prompts that leave room for a completion in `context` ids, and what fitting them cost."""
    longest = recipe.rollouts.max_new_tokens
    room = context if codec.reads else context - longest
    if room < 1:
        raise RecipeError(
            f"rollouts.max_new_tokens is {longest}, which leaves no room for a prompt: {context:,} tokens fit in all."
        )
    return encode(rows, template, codec, room, policy)


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
    """What is fed, what a reward is shown of it, and the columns. Of a conversation all before the last assistant's turn.

    A row that people judged asks its prompt. Turns are in the column `prompt`: a reward model reads them as they are.
    """
    if isinstance(row, Document):
        row = Example(row.text, fields={"text": row.text}, where=row.where)
    if isinstance(row, Example):
        return template(row, None), template.question(row), row.fields
    turns = row.messages if isinstance(row, Conversation) else row.prompt
    if isinstance(row, Conversation):
        turns = turns[: max((i for i, m in enumerate(turns) if m.role == "assistant"), default=len(turns))]
    fields = {"prompt": [{"role": turn.role, "content": turn.content} for turn in turns]}
    if not isinstance(row, Conversation) and [turn.role for turn in turns] == ["user"]:
        alone = Example(turns[0].content, fields={"prompt": turns[0].content}, where=row.where)
        return template(alone, None), template.question(alone), fields
    if not turns:
        raise DataError(f"{row.where} has nothing before its last answer; a prompt needs at least one turn.")
    if template.chat is None:
        raise DataError(f"{row.where} has a prompt of several turns, which needs a chat format; set task.chat to true.")
    read = tuple(replace(turn, train=False) for turn in turns)
    pieces = [Segment(text, False) for text, _ in dialogue(read, template.chat, row.where, reply=True)]
    return pieces, "\n\n".join(turn.content for turn in turns), fields
