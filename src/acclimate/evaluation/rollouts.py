"""What a policy's own completions of held-out prompts earn, how far they are from the reference, and how long they are.

Every side writes with the same seeds, at the temperature of the rollouts. `Output.value` is what a completion earned,
`Output.tokens` how many tokens it has, and `Output.scores` holds its "kl", Σ (log π − log reference) in nats, and what a
"judge" says of it, where there is one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from acclimate.data.examples import Output
from acclimate.errors import RecipeError
from acclimate.evaluation.best_of import kl_bound
from acclimate.evaluation.predictor import Tick
from acclimate.generation.draft import Generated
from acclimate.generation.score import score
from acclimate.methods.delta import disabled
from acclimate.metrics import choose as named
from acclimate.metrics.likelihood import Perplexity
from acclimate.metrics.metric import Kind, Metric, Summed
from acclimate.models.modes import evaluating
from acclimate.rewards.reward import Completion, Reward, checked, total
from acclimate.rewards.rollout import Prompt, Rollouts, completion, joined, opinions, sampled, undressed
from acclimate.tokens.codec import Codec

BUDGET = 8192  # tokens at once


@dataclass(frozen=True)
class Rewarded:
    """A completion of every prompt, scored. originals: base tensors as they were; None: the model is the reference.

    n above 1: the best of n by `picks`, whose distance from the reference is known by a bound alone (`kl_bound`).
    """

    model: nn.Module
    prompts: Sequence[Prompt]
    reward: Reward
    how: Rollouts
    codec: Codec
    seed: int
    originals: Mapping[str, Tensor] | None
    judge: Reward | None = None
    n: int = 1
    picks: Reward | None = None
    under_base: bool = False  # whether the reference is asked for the log-probability of what was written

    def __call__(self, examples: Sequence[Any], tick: Tick | None = None) -> list[Output]:
        written = self._written(None if tick is None else lambda: tick(0))
        found = [completion(p, w, self.codec) for p, w in zip(self.prompts, written, strict=True)]
        earned = _earned(self.reward, found)
        rows = [joined(p.row, w) for p, w in zip(self.prompts, written, strict=True)]
        told = {"kl": self._kl(rows)}
        told |= {"base logprob": self._plain(rows)} if self.under_base else {}
        told |= {"judge": _earned(self.judge, found)} if self.judge else {}
        if tick is not None:
            tick(len(rows))
        return [
            Output(
                found[i].text,
                {name: values[i] for name, values in told.items()},
                tokens=sum(rows[i].scored),
                prompt_ids=prompt.row.source or prompt.row.ids,
                truncated=prompt.row.truncated,
                finish=written[i].finish,
                value=earned[i],
            )
            for i, prompt in enumerate(self.prompts)
        ]

    def _written(self, check: Callable[[], None] | None) -> list[Generated]:
        """A completion of every prompt, or the best of n; of equal ones the first drawn."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.n)]
        drawn = sampled(self.model, prompts, self.how, self.codec, self.seed, check)
        if self.n == 1:
            return drawn
        shown = [completion(p, w, self.codec) for p, w in zip(prompts, drawn, strict=True)]
        scores = _earned(self.picks or self.reward, shown)
        return [drawn[max(range(at, at + self.n), key=scores.__getitem__)] for at in range(0, len(drawn), self.n)]

    def _kl(self, rows: Sequence[Any]) -> list[float]:
        if self.originals is None:
            return [kl_bound(self.n)] * len(rows)
        with evaluating(self.model):
            own, _, reference, _ = opinions(self.model, rows, self.how, self.codec, self._before(), BUDGET)
        return [float((a - b).double().sum()) for a, b in zip(own, reference, strict=True)]

    def _plain(self, rows: Sequence[Any]) -> list[float]:
        """Σ log p of every completion under the reference, in nats, at temperature 1."""
        reference = nullcontext() if self.originals is None else disabled(self.model, self._before())
        with evaluating(self.model), reference:
            return score(self.model, [undressed(row, self.codec) for row in rows], self.codec.pad, budget=BUDGET)

    def _before(self) -> dict[str, Tensor]:
        now = dict(self.model.named_parameters())
        return {name: tensor.to(now[name].dtype) for name, tensor in (self.originals or {}).items()}


def _earned(reward: Reward, found: Sequence[Completion]) -> list[float]:
    return [total(marks) for marks in checked(reward(found), found, "of the recipe")]


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
class Judged(Written):
    """Mean of what the recipe's judge says of completions: a scorer that nothing learns from."""

    name: ClassVar[str] = "judge"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(its score,)."""
        return (output.scores["judge"],)


@dataclass(frozen=True)
class UnderBase(Perplexity):
    """exp(−Σ log p / Σ tokens) of completions under the reference, at temperature 1: do they still read as its own would?"""

    name: ClassVar[str] = "base_perplexity"
    kind: ClassVar[Kind] = "text"

    def row(self, output: Output, example: Any) -> tuple[float, float]:
        """(log-probability, tokens)."""
        return output.scores["base logprob"], float(output.tokens)


@dataclass(frozen=True)
class Length(Written):
    """Mean length of completions in tokens, the end included."""

    name: ClassVar[str] = "length"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(tokens,)."""
        return (float(output.tokens),)


OWN: Mapping[str, Metric] = {metric.name: metric for metric in (Earned(), KL(), Length(), Judged(), UnderBase())}


def choose(names: Sequence[str], judged: bool = False) -> tuple[Metric, ...]:
    """The metrics called `names`: OWN, and any of text that needs no right answer. RecipeError for others.

    judged: whether there is a judge to be asked.
    """
    made = tuple(OWN[name] if name in OWN else named([name])[0] for name in names or (Earned.name,))
    if odd := next((metric.name for metric in made if metric.kind != "text"), None):
        raise RecipeError(
            f"{odd} does not measure what a model writes; with rewards there is {', '.join(OWN)}, and metrics of text."
        )
    if Judged.name in names and not judged:
        raise RecipeError("The metric judge needs a judge, such as judge: {name: harmless}.")
    return made
