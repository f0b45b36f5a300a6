"""A trained reward model as a reward: what its head says at the end of a completion."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from acclimate.data import turns
from acclimate.data.examples import Message, Ranking
from acclimate.data.template import Template
from acclimate.errors import DataError, ModelError
from acclimate.methods.delta import using
from acclimate.models.collate import collate_readings
from acclimate.models.heads import TaskModel
from acclimate.models.modes import evaluating
from acclimate.rewards.reward import Completion, Marks, whole
from acclimate.tokens.codec import Codec
from acclimate.tokens.pairs import Compared, compared, fit_pairs, reading
from acclimate.tokens.reading import Reading
from acclimate.tokens.schedule import passes


@dataclass(frozen=True)
class Heard:
    """A trained head, and how texts are put before it.

    name: of the adapter that answers, on a trunk where others do otherwise; "": the model is the head's own.
    """

    model: TaskModel
    codec: Codec
    template: Template
    context: int  # tokens that fit
    where: str = ""  # the adapter's folder
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the adapter says of itself
    name: str = ""
    budget: int = 8192  # padded tokens at once

    @property
    def room(self) -> int:
        """Tokens of a prompt and its completion: as many as the head was trained on, where its adapter says so."""
        return min(self.context, int(self.facts.get("max_tokens", self.context)))

    @torch.no_grad()
    def answers(self, readings: Sequence[Reading]) -> list[Tensor]:
        """Of each reading (places, k): what the head says where it looks. Float64, on the CPU."""
        order = sorted(range(len(readings)), key=lambda i: -readings[i].size)
        found: dict[int, Tensor] = {}
        with evaluating(self.model), using(self.model, self.name) if self.name else nullcontext():
            for part in passes(order, [row.size for row in readings], self.budget):
                batch = collate_readings(self.model, [readings[i] for i in part], self.codec.pad)
                said = self.model(batch).double().cpu()
                counts = [sum(map(len, readings[i].places)) for i in part]
                found |= zip(part, said.split(counts), strict=True)
        return [found[i] for i in range(len(readings))]

    def row(self, completion: Completion) -> Compared:
        """A completion after its prompt, as the model was trained to read it. DataError where it does not fit.

        One that was cut off is read as if it ended there: the model has learned from no other.
        """
        given = compared(
            Ranking(asked(completion), (completion.text,), (1,), completion.where), self.template, self.codec
        )
        fitting, _ = fit_pairs([given], self.context, "truncate-prompt", self.codec.kept)
        if not fitting:
            raise DataError(f"{completion.where}: what was written does not fit into {self.context:,} tokens.")
        return fitting[0]


@dataclass(frozen=True)
class Model:
    """The reward model in an adapter folder, trained with `objective: reward`: its head at the last real token (G18).

    Its zero is in the stored bias. Ouyang et al. 2022, arXiv:2203.02155, section 3.5. It is opened beside the policy.
    """

    adapter: str = ""

    def bind(self, heard: Heard) -> "Scored":
        """The reward that asks it. ModelError for an adapter whose head gives anything but one number a text."""
        shape = heard.model.shape()
        if shape.kind != "regress":
            raise ModelError(
                f"{heard.where} has a head of kind {shape.kind}, which is no reward model; train one with objective reward."
            )
        return Scored(heard)


@dataclass(frozen=True)
class Scored:
    """A number for each whole completion."""

    heard: Heard

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        shape, front = self.heard.model.shape(), len(self.heard.codec.front)
        rows = [reading(self.heard.row(completion), shape.pool, front) for completion in completions]
        scores = [shape.center + shape.scale * float(said) for said in self.heard.answers(rows)]
        return whole(scores, completions)


def asked(completion: Completion) -> tuple[Message, ...]:
    """The prompt: the turns of the row's column `prompt` where it holds several, otherwise the text."""
    given = completion.fields.get("prompt")
    return turns.prompt(given) if isinstance(given, list) else (Message("user", completion.prompt),)
