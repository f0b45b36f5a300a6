"""What a policy's own completions of held-out prompts earn, how far they are from the reference, and how long they are.

Every side writes with the same seeds, at the temperature of the rollouts. `Output.value` is what a completion earned,
`Output.tokens` how many tokens it has, and `Output.scores` holds its "kl": Σ (log π − log reference) in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from acclimate.data.examples import Output
from acclimate.errors import RecipeError
from acclimate.evaluation.predictor import Tick
from acclimate.metrics import choose as named
from acclimate.metrics.metric import Kind, Metric, Summed
from acclimate.models.cache import evaluating
from acclimate.rewards.reward import Reward, checked, total
from acclimate.rewards.rollout import Prompt, Rollouts, completion, joined, opinions, sampled
from acclimate.tokens.codec import Codec

BUDGET = 8192  # tokens at once


@dataclass(frozen=True)
class Rewarded:
    """A completion of every prompt, scored. originals: base tensors as they were; None: the model is the reference."""

    model: nn.Module
    prompts: Sequence[Prompt]
    reward: Reward
    how: Rollouts
    codec: Codec
    seed: int
    originals: Mapping[str, Tensor] | None

    def __call__(self, examples: Sequence[Any], tick: Tick | None = None) -> list[Output]:
        check = None if tick is None else lambda: tick(0)
        written = sampled(self.model, self.prompts, self.how, self.codec, self.seed, check)
        found = [completion(p, w, self.codec) for p, w in zip(self.prompts, written, strict=True)]
        marks = checked(self.reward(found), found, "of the recipe")
        rows = [joined(p.row, w) for p, w in zip(self.prompts, written, strict=True)]
        far = self._kl(rows)
        if tick is not None:
            tick(len(rows))
        return [
            Output(
                done.text,
                {"kl": kl},
                tokens=sum(row.scored),
                prompt_ids=prompt.row.source or prompt.row.ids,
                truncated=prompt.row.truncated,
                finish=drawn.finish,
                value=total(given),
            )
            for prompt, drawn, done, given, row, kl in zip(self.prompts, written, found, marks, rows, far, strict=True)
        ]

    def _kl(self, rows: Sequence[Any]) -> list[float]:
        if self.originals is None:
            return [0.0] * len(rows)
        now = dict(self.model.named_parameters())
        before = {name: tensor.to(now[name].dtype) for name, tensor in self.originals.items()}
        with evaluating(self.model):
            own, _, reference, _ = opinions(self.model, rows, self.how, self.codec, before, BUDGET)
        return [float((a - b).double().sum()) for a, b in zip(own, reference, strict=True)]


@dataclass(frozen=True)
class Written(Summed):
    """The mean of one number of every completion."""

    kind: ClassVar[Kind] = "text"
    limits: ClassVar[tuple[float, float]] = (-np.inf, np.inf)


@dataclass(frozen=True)
class Earned(Written):
    """Mean reward of completions, as the recipe has it."""

    name: ClassVar[str] = "reward"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(what the completion earned,)."""
        return (output.value,)


@dataclass(frozen=True)
class KL(Written):
    """Mean of Σ (log π − log reference) over completions, in nats: an estimate of KL(π, reference)."""

    name: ClassVar[str] = "kl"
    higher_is_better: ClassVar[bool] = False

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(nats,)."""
        return (output.scores["kl"],)


@dataclass(frozen=True)
class Length(Written):
    """Mean length of completions in tokens, the end included."""

    name: ClassVar[str] = "length"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(tokens,)."""
        return (float(output.tokens),)


def choose(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics called `names`: reward, and any of text that needs no right answer. RecipeError for others."""
    made = tuple(Earned() if name == Earned.name else named([name])[0] for name in names or (Earned.name,))
    if odd := next((metric.name for metric in made if metric.kind != "text"), None):
        raise RecipeError(
            f"{odd} does not measure what a model writes; with rollouts there is reward, and metrics of text."
        )
    return made
