"""Everything a run needs before it trains: rows read and split, the model loaded, the text rendered into ids."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acclimate.data.examples import Conversation, Document, Example, Row
from acclimate.data.read import read
from acclimate.data.sandbox import compiled
from acclimate.data.sources import resolve_data
from acclimate.data.template import Template, segments
from acclimate.errors import DataError, RecipeError
from acclimate.methods.soft import soft_of
from acclimate.models.load import Loaded, load, terminators
from acclimate.models.outline import is_encoder_decoder
from acclimate.models.precision import Precision, choose, device
from acclimate.objectives import KTO, Reward
from acclimate.recipe import Data, Recipe, Task
from acclimate.run import feedback, preferences, rollouts, sampled, tasks
from acclimate.run.parts import Part, Parts, parts
from acclimate.tokens.codec import Codec, Encoded, codec, refuse_control_tokens
from acclimate.tokens.pairs import with_others
from acclimate.tokens.truncate import Fitted, fit_rows
from acclimate.training.fit import Objective


@dataclass(frozen=True)
class Prepared:
    """The inputs of a run. `recipe` is resolved: nothing in it is left to the machine."""

    recipe: Recipe
    parts: Parts
    model: nn.Module
    codec: Codec
    template: Template
    context: int
    train: Fitted
    dev: Fitted
    head: tasks.HeadTask | None = None  # what answers, where the model does not write
    pairs: preferences.Comparisons | None = None  # the rows as ids, where they compare completions
    rolled: rollouts.Rolled | None = None  # what scores completions, where the model's own are scored

    @property
    def objective(self) -> Objective:
        """What is descended: the recipe's, or that of the head."""
        return self.head.objective if self.head else self.recipe.objective


def prepare(recipe: Recipe, folder: Path | None = None) -> Prepared:
    """Data first (its mistakes are found in seconds), then the model, then every row as ids.

    folder: where comparisons of the model's own completions are kept, if they are what is learned from. As long as there
    are none, the result can write them and no more.
    """
    compiled(recipe.task.template)
    rollouts.check_recipe(recipe)
    found = parts(recipe.data, recipe.task)
    dtype = choose(recipe.training.precision, device())
    if feedback.marks(recipe, found.train.rows):
        return _with_spans(recipe, found, load(recipe.model, dtype=dtype, task="encoder"))
    if sampled.learns(recipe):
        return _with_sampled(recipe, found, dtype, sampled.kept(folder))
    judged, reads = preferences.compares(recipe, found.train.rows), isinstance(recipe.objective, Reward)
    loaded = load(recipe.model, dtype=dtype, task="encoder" if recipe.task.head or reads else "lm")
    if judged:
        return _with_pairs(recipe, found, loaded)
    rollouts.check_model(recipe, loaded)
    if tasks.wants_head(recipe.task, loaded):
        return _with_head(recipe, found, loaded)
    tasks.refuse_tags(found.train.rows)
    bare = _writer(recipe, found, loaded)
    if rollouts.rolls(recipe):
        return with_rollouts(bare)
    most = min(recipe.data.max_tokens or bare.context, bare.context)
    train = encode_rows(found.train, bare.template, bare.codec, most, recipe.data)
    dev = encode_rows(found.dev, bare.template, bare.codec, most, recipe.data)
    if not train.rows:
        raise DataError(f"No row of {found.train.name} fits into {most:,} tokens.")
    return replace(bare, train=train, dev=dev)


def _writer(recipe: Recipe, found: Parts, loaded: Loaded) -> Prepared:
    """A model that writes, and nothing yet to learn from."""
    loaded.model.to(device())  # type: ignore[arg-type]
    reader, context, empty = codec_of(loaded), context_of(loaded.model), Fitted([], [], [])
    template, task = resolve_task(recipe.task, reader, preferences.first(found.train.rows))
    training = replace(recipe.training, precision=named(loaded.model.dtype))
    recipe = replace(recipe, training=training, task=task)
    rolled = rollouts.scored(recipe) if recipe.rewards else None
    return Prepared(recipe, found, loaded.model, reader, template, context, empty, empty, rolled=rolled)


def with_rollouts(prepared: Prepared) -> Prepared:
    """The same inputs with their rows as prompts to learn from, for the codec they have now."""
    recipe, found, context = prepared.recipe, prepared.parts, prepared.context
    assert prepared.rolled is not None
    most, policy = min(recipe.data.max_tokens or context, context), recipe.data.truncation
    asked, told = rollouts.prompts(recipe, found.train.rows, prepared.template, prepared.codec, most, policy)
    if not asked:
        raise DataError(f"No prompt of {found.train.name} leaves room for a completion.")
    beside = tuple(_beside(recipe.data, prepared)) if recipe.data.pretrain else ()
    return replace(prepared, rolled=replace(prepared.rolled, train=asked, pretrain=beside), train=told)


def _with_sampled(recipe: Recipe, found: Parts, dtype: torch.dtype, rows: tuple[sampled.Ranked, ...]) -> Prepared:
    """As `prepare`, for comparisons of the model's own completions; `rows` are those that are there already."""
    if rows and rollouts.reads(recipe):
        recipe = replace(recipe, task=replace(recipe.task, template=sampled.TEMPLATE))
        return _with_pairs(recipe, sampled.as_parts(rows), load(recipe.model, dtype=dtype, task="encoder"))
    loaded = load(recipe.model, dtype=dtype, task="lm")
    preferences.check_recipe(recipe, loaded)
    bare = _writer(recipe, found, loaded)
    if not rows:
        return bare
    train, dev = (tuple(row.compared for row in sampled.of(rows, part)) for part in ("train", "dev"))
    if isinstance(recipe.objective, KTO):
        train, dev = (tuple(with_others(each, bare.context, bare.codec.kept)) if each else () for each in (train, dev))
    return with_pairs(bare, preferences.Comparisons(train, dev, ()))


def _beside(data: Data, prepared: Prepared) -> list[Encoded]:
    """The ordinary text of PPO-ptx as ids: the column `text`, where a row has one; of a long one its beginning."""
    table = read(resolve_data(data.pretrain), columns=data.columns)
    most = min(data.max_tokens or prepared.context, prepared.context)
    part = Part(table.name, tuple(map(_prose, table.rows)), table.sha256, {})
    data = replace(data, truncation="truncate-response")
    return encode_rows(part, prepared.template, prepared.codec, most, data).rows


def _prose(row: Row) -> Row:
    there = isinstance(row, Example) and isinstance(row.fields.get("text"), str)
    return Document(row.fields["text"], row.where) if there else row  # type: ignore[union-attr]


def with_soft_tokens(prepared: Prepared, model: nn.Module) -> Prepared:
    """The same inputs with the soft tokens of the adapter that answers in their places; as they were without any."""
    soft = soft_of(model)
    if not (soft.front or soft.back):
        return prepared
    reader = replace(prepared.codec, front=soft.front, back=soft.back)
    if rollouts.rolls(prepared.recipe):
        return with_rollouts(replace(prepared, codec=reader))
    if prepared.head and not prepared.pairs:
        return _read_again(prepared, reader)
    data, context = prepared.recipe.data, prepared.context
    most = min(data.max_tokens + len(soft.front + soft.back) if data.max_tokens else context, context)
    if prepared.pairs:
        return _compared_again(prepared, reader, most)
    train, dev = (
        fit_rows([reader.dressed(row) for row in part.rows], most, data.truncation, reader.kept)
        for part in (prepared.train, prepared.dev)
    )
    return replace(prepared, codec=reader, train=train, dev=dev)


def _read_again(prepared: Prepared, reader: Codec) -> Prepared:
    assert prepared.head is not None
    head = replace(prepared.head, reader=replace(prepared.head.reader, codec=reader))
    both = (prepared.parts.train, prepared.parts.dev)
    train, dev = (tasks.encode(head, part.rows, prepared.recipe.data.truncation) for part in both)
    return replace(prepared, codec=reader, head=head, train=train, dev=dev)


def _compared_again(prepared: Prepared, reader: Codec, most: int) -> Prepared:
    assert prepared.pairs is not None
    pairs, policy = prepared.pairs, prepared.recipe.data.truncation
    head = prepared.head and replace(prepared.head, reader=replace(prepared.head.reader, codec=reader))
    train, dev = (preferences.again(rows, reader, most, policy) for rows in (pairs.train, pairs.dev))
    pairs = preferences.Comparisons(train, dev, preferences.again(pairs.test, reader, most, "truncate-prompt"))
    return with_pairs(replace(prepared, codec=reader, head=head), pairs)


def with_pairs(prepared: Prepared, pairs: preferences.Comparisons) -> Prepared:
    """The same inputs with other comparisons, and what goes through the model made of them."""
    objective, head = prepared.recipe.objective, prepared.head
    train = preferences.learnable(pairs.train, prepared.train, objective, head)
    return replace(
        prepared, pairs=pairs, train=train, dev=preferences.learnable(pairs.dev, prepared.dev, objective, head)
    )


def _with_pairs(recipe: Recipe, found: Parts, loaded: Loaded) -> Prepared:
    """As `prepare`, for rows that compare completions: a policy learns from them, or a reward model."""
    preferences.check_recipe(recipe, loaded)
    preferences.check_parts(found, ("train", "dev") if rollouts.writes(recipe) else ("train", "dev", "test"))
    objective, data, dtype = recipe.objective, recipe.data, loaded.model.dtype
    reads = isinstance(objective, Reward)
    reader = replace(codec_of(loaded), reads=False) if reads else codec_of(loaded)
    template, task = resolve_task(recipe.task, reader, preferences.stand_in(found.train.rows))
    context = context_of(loaded.model)
    most = min(data.max_tokens or context, context)
    model, head = (
        preferences.with_reward_head(loaded, task, reader, template, most, recipe) if reads else (loaded.model, None)
    )
    model.to(device())  # type: ignore[arg-type]
    train, dev = (
        preferences.encode(part.rows, template, reader, most, data.truncation, objective)
        for part in (found.train, found.dev)
    )
    if not train[0]:
        raise DataError(f"No row of {found.train.name} fits into {most:,} tokens.")
    rolled = rollouts.scored(recipe) if rollouts.writes(recipe) else None
    test = () if rolled else preferences.encode_test(found.test.rows, template, reader, context)
    recipe = replace(recipe, training=replace(recipe.training, precision=named(dtype)), task=task)
    pairs = preferences.Comparisons(train[0], dev[0], test)
    made = Prepared(recipe, found, model, reader, template, context, train[1], dev[1], head, rolled=rolled)
    return with_pairs(made, pairs)


def _with_head(recipe: Recipe, found: Parts, loaded: Loaded) -> Prepared:
    """As `prepare`, for a model that answers with a task head on its trunk."""
    dtype = loaded.model.dtype
    loaded = loaded if recipe.task.head else load(recipe.model, dtype=dtype, task="encoder")
    tasks.check_recipe(recipe)
    reader = replace(codec_of(loaded), reads=False)
    most = min(recipe.data.max_tokens or context_of(loaded.model), context_of(loaded.model))
    rows = (found.train.rows, found.dev.rows)
    model, head = tasks.with_head(loaded, recipe.task, reader, *rows, most, recipe.training.seed)
    model.to(device())
    train, dev = (tasks.encode(head, part.rows, recipe.data.truncation) for part in (found.train, found.dev))
    if not train.rows:
        raise DataError(f"No row of {found.train.name} fits into {most:,} tokens.")
    settled = replace(
        recipe,
        training=replace(recipe.training, precision=named(dtype)),
        task=replace(recipe.task, head=True, chat=False),
    )
    return Prepared(settled, found, model, reader, head.reader.template, most, train, dev, head)


def _with_spans(recipe: Recipe, found: Parts, loaded: Loaded) -> Prepared:
    """As `prepare`, for completions with marked spans."""
    reader, data, dtype = replace(codec_of(loaded), reads=False), recipe.data, loaded.model.dtype
    template, task = resolve_task(recipe.task, reader, preferences.stand_in(found.train.rows))
    most = min(data.max_tokens or context_of(loaded.model), context_of(loaded.model))
    model, head = feedback.with_head(loaded, reader, template, most, recipe, found.train.rows)
    model.to(device())
    train, dev = (tasks.encode(head, part.rows, data.truncation) for part in (found.train, found.dev))
    if not train.rows:
        raise DataError(f"No row of {found.train.name} fits into {most:,} tokens.")
    recipe = replace(recipe, training=replace(recipe.training, precision=named(dtype)), task=task)
    return Prepared(recipe, found, model, reader, template, most, train, dev, head)


def named(dtype: torch.dtype) -> Precision:
    """A dtype as a recipe names it."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def codec_of(loaded: Loaded) -> Codec:
    """The tokenizer's conventions for this model."""
    return codec(
        loaded.tokenizer,
        reads=is_encoder_decoder(loaded.model),
        terminators=terminators(loaded.model, loaded.tokenizer),
    )


def resolve_task(task: Task, reader: Codec, first: Row) -> tuple[Template, Task]:
    """The template with the chat format it is to use: conversations need one, otherwise where the tokenizer has one."""
    talks = isinstance(first, Conversation)
    chat = task.chat if task.chat is not None else (talks or (reader.has_chat and isinstance(first, Example)))
    if talks and not chat:
        raise RecipeError("task.chat is false, but the training rows are conversations, which need a chat format.")
    if task.system and not chat:
        raise RecipeError("task.system needs a chat format; set task.chat to true or write it into task.template.")
    template = Template(
        task.template, task.system, reader.chat() if chat else None, reader.eos_text, words=task.verbalizer
    )
    return template, replace(task, chat=chat)


def context_of(model: nn.Module) -> int:
    """Tokens that fit into the model at once; models with relative positions have no limit of their own: 4,096."""
    config: Any = model.config
    for name in ("max_position_embeddings", "n_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit - _skipped(model)
    return 4096


def _skipped(model: nn.Module) -> int:
    """Places of a position table that no token takes: RoBERTa and MPNet count from behind their pad id."""
    tables = [m for n, m in model.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    return max((m.padding_idx + 1 for m in tables if m.padding_idx is not None), default=0)


def encode_rows(part: Part, template: Template, reader: Codec, most: int, data: Data) -> Fitted:
    """The rows of a part as ids, within `most` tokens by the recipe's policy.

    DataError for a row without a scored token, and for one of which all is scored though it is no running text (G1).
    """
    rows: list[Encoded] = []
    for row in part.rows:
        for text in _texts(row):
            refuse_control_tokens(reader, text, row.where)
        pieces = segments(row, template)
        if not isinstance(row, Document) and all(scored for text, scored in pieces if text):
            raise DataError(
                f"{row.where} has no prompt: all of it would be learned; a text alone is a row with `text`."
            )
        encoded = reader.encode(pieces, row.where)
        if not any(encoded.scored if encoded.source else encoded.scored[1:]):
            raise DataError(f"{row.where} has no token that the loss would count; its answer is empty.")
        rows.append(encoded)
    return fit_rows(rows, most, data.truncation, reader.kept)


def _texts(row: Row) -> list[str]:
    if isinstance(row, Conversation):
        return [m.content for m in row.messages]
    if isinstance(row, Document):
        return [row.text]
    assert isinstance(row, Example)
    return [str(v) for v in row.fields.values() if isinstance(v, str)] + [row.prompt, row.target]
