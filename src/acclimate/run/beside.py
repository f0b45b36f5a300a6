"""Rewards that are models, opened beside the policy: on its own trunk where that is theirs too, so that the base is held once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acclimate.data.template import Template
from acclimate.errors import UsageError
from acclimate.interchange.adapter import load_adapter, shapes
from acclimate.methods.artifact import FACTS, WEIGHTS, read_facts, read_tensors
from acclimate.methods.delta import activate, base, detach, names
from acclimate.methods.soft import soft_of
from acclimate.models.fingerprint import fingerprint, same_base, template_hash, tokenizer_hash
from acclimate.models.heads import TaskModel
from acclimate.models.outline import is_encoder_decoder, trunk_of
from acclimate.models.precision import Precision
from acclimate.rewards.fine import Segments
from acclimate.rewards.model import Heard, Model
from acclimate.rewards.reward import Reward, Weighted
from acclimate.run.open import open_model
from acclimate.run.prepare import context_of
from acclimate.tokens.codec import Codec

MODELS = (Model, Segments)  # rewards that need a model


def bound(reward: Any, policy: nn.Module, codec: Codec) -> Reward:
    """The reward, ready to score. Those that are models are opened, once each, beside the policy.

    Call it when the policy has its method. codec: the policy's, without soft tokens.
    """
    if isinstance(reward, Weighted):
        return Weighted(tuple((weight, bound(part, policy, codec)) for weight, part in reward.parts))
    if isinstance(reward, MODELS):
        return reward.bind(heard(Path(reward.adapter), policy, codec))
    return reward  # type: ignore[no-any-return]


@contextmanager
def lent(reward: Any, policy: nn.Module, codec: Codec) -> Iterator[Reward]:
    """`bound`, for as long as the block lasts and nothing trains: afterwards the policy is as it was."""
    before, open_ = names(policy), [p for p in policy.parameters() if p.requires_grad]
    policy.requires_grad_(False)
    try:
        yield bound(reward, policy, codec)
    finally:
        for name in set(names(policy)) - set(before):
            detach(policy, name)
        for parameter in open_:
            parameter.requires_grad_(True)


def heard(folder: Path, policy: nn.Module, codec: Codec) -> Heard:
    """The head in an adapter folder: a further adapter on the policy's trunk where it fits there, else a model of its own."""
    if not (folder / FACTS).is_file():
        raise UsageError(f"{folder} is no adapter folder with a head; give the adapter/ folder of a run on rewards.")
    facts = read_facts(folder / FACTS)
    if not shapes(facts, folder):
        raise UsageError(f"{folder} brings no head, so it scores nothing; train one with objective reward or spans.")
    trunk = _trunk(policy)
    if trunk is None or not fits(trunk, folder, facts, codec):
        opened = open_model(str(facts["model"]), folder, _precision(policy), heads=True)
        return Heard(opened.model, opened.codec, template(facts, opened.codec), opened.context, str(folder), facts)
    model, others = TaskModel(trunk), names(policy)
    name = next(name for n in count(1) if (name := f"reward_{n}") not in others)
    load_adapter(model, folder, name)
    if not others:
        activate(model, None)  # the first adapter answers at once; the policy is the base
    soft = soft_of(model, name)
    mine = replace(codec, reads=False, front=soft.front, back=soft.back)
    return Heard(model, mine, template(facts, mine), context_of(policy), str(folder), facts, name)


def _precision(policy: nn.Module) -> Precision:
    """The policy's, so that a reward is the same whether its model rides on the policy or not."""
    return "bfloat16" if next(policy.parameters()).dtype == torch.bfloat16 else "float32"


def fits(trunk: nn.Module, folder: Path, facts: Mapping[str, Any], codec: Codec) -> bool:
    """Whether the adapter can ride on this trunk: the base it was made with, standing still; changes alone; one spelling."""
    stored = folder / WEIGHTS
    rides = not stored.is_file() or all(".delta." in name for name in read_tensors(stored))
    still = not any(p.requires_grad for p in base(trunk).values())
    chat = facts.get("chat")
    spelled = facts.get("tokenizer") == tokenizer_hash(codec.tokenizer)
    spelled = spelled and (not chat or chat == template_hash(codec.chat().source))
    made: Any = facts.get("base")
    plain = isinstance(made, dict) and "quantised" not in facts
    return rides and still and spelled and plain and same_base(fingerprint(TaskModel(trunk)), made)


def template(facts: Mapping[str, Any], codec: Codec) -> Template:
    """How the adapter's prompts are written."""
    task = facts["task"]
    return Template(task["template"], task["system"], codec.chat() if task["chat"] else None, codec.eos_text)


def _trunk(policy: Any) -> Any:
    return policy.get_encoder() if is_encoder_decoder(policy) else trunk_of(policy)
