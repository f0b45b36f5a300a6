"""Does a model prefer what people preferred? Held-out accuracy, margin, calibration, and what length has to do with it.

A row is a prompt; its pairs are all completions of which one was put before the other. Intervals resample prompts.
`Output.scores` holds "reward 1", "reward 2", … of the completions in the order of the row (of a preference the chosen one
first), and for a model that writes "log p 1", …
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.data.examples import Output, Preference, Ranking
from acclimate.errors import RecipeError, unknown
from acclimate.evaluation.predictor import Tick
from acclimate.generation.score import score
from acclimate.metrics.metric import Array, Kind, Summed, ratio
from acclimate.models.collate import collate_readings
from acclimate.models.heads import TaskModel
from acclimate.models.modes import evaluating
from acclimate.tokens.pairs import Compared, reading
from acclimate.tokens.schedule import passes

BINS = 5  # of the probability of the likelier side, from 0.5 to 1


class Implicit(Protocol):
    """An objective that gives a policy's log-probabilities a meaning as rewards."""

    def reward(self, logprob: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """(n,) each: Σ log π, Σ log π_ref, scored tokens → rewards."""


@dataclass(frozen=True)
class OwnChoice:
    """The reward of a completion is log π of it: σ of a margin is how often the model, of these two, writes the better one."""

    def reward(self, logprob: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """log π, (n,)."""
        return logprob


@dataclass(frozen=True)
class PolicyRewards:
    """The rewards that a policy implies, by its objective. rows: the examples as ids, in their order.

    A row without a reference is its own: the model that is asked is the reference, and rewards against it are 0.
    """

    model: nn.Module
    rows: Sequence[Compared]
    objective: Implicit
    pad: int
    budget: int = 8192

    def __call__(self, examples: Sequence[Preference | Ranking], tick: Tick | None = None) -> list[Output]:
        documents = [each for row in self.rows for each in row.rows]
        found = iter(score(self.model, documents, self.pad, budget=self.budget))
        outputs = []
        for row, example in zip(self.rows, examples, strict=True):
            logprobs = [next(found) for _ in row.rows]
            own, reference = (torch.tensor(x, dtype=torch.float64) for x in (logprobs, row.reference or logprobs))
            tokens = torch.tensor([sum(r.scored if r.source else r.scored[1:]) for r in row.rows], dtype=torch.float64)
            outputs.append(answer(row, example, self.objective.reward(own, reference, tokens).tolist(), logprobs))
        if tick is not None:
            tick(len(outputs))
        return outputs


@dataclass(frozen=True)
class HeadRewards:
    """The rewards of a reward model. rows: the examples as ids, in their order; budget: padded tokens at once."""

    model: TaskModel
    rows: Sequence[Compared]
    pad: int
    front: int = 0  # soft tokens before a text
    budget: int = 8192

    def __call__(self, examples: Sequence[Preference | Ranking], tick: Tick | None = None) -> list[Output]:
        rewards = head_rewards(self.model, self.rows, self.pad, self.front, self.budget)
        if tick is not None:
            tick(len(rewards))
        return [answer(row, example, given) for row, example, given in zip(self.rows, examples, rewards, strict=True)]


@torch.no_grad()
def head_rewards(
    model: TaskModel, rows: Sequence[Compared], pad: int, front: int = 0, budget: int = 8192
) -> list[list[float]]:
    """The reward of every completion of every row; each is what it would be alone."""
    read = [reading(row, model.shape().pool, front) for row in rows]
    sizes = [len(row.pieces) * max(map(len, row.pieces)) for row in read]
    order = sorted(range(len(rows)), key=lambda i: -max(map(len, read[i].pieces)))
    found: dict[int, list[float]] = {}
    with evaluating(model):
        for part in passes(order, sizes, budget):
            answers = model(collate_readings(model, [read[i] for i in part], pad)).squeeze(-1).double().cpu()
            found |= zip(part, (a.tolist() for a in answers.split([len(read[i].pieces) for i in part])), strict=True)
    return [found[i] for i in range(len(rows))]


def answer(
    row: Compared, example: Preference | Ranking, rewards: Sequence[float], logprobs: Sequence[float] = ()
) -> Output:
    """What a model said of one prompt; its text is the completion that it puts first, its value the mean margin."""
    scores = {f"reward {i}": value for i, value in enumerate(rewards, start=1)}
    scores |= {f"log p {i}": value for i, value in enumerate(logprobs, start=1)}
    first = row.rows[0]
    prompt = first.source or first.ids[: first.scored.index(True)]
    text = judged(example)[0][max(range(len(rewards)), key=rewards.__getitem__)]
    margins = [pair.margin for pair in pairs(example, rewards)]
    return Output(text, scores, prompt_ids=prompt, truncated=row.truncated, value=float(np.mean(margins)))


class Pair(NamedTuple):
    """A completion that was put before another: by how much it is scored above it, and how much longer it is."""

    margin: float
    longer: int  # characters


def judged(example: Preference | Ranking) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Completions and their places, 1 the best."""
    if isinstance(example, Preference):
        return (example.chosen, example.rejected), (1, 2)
    return example.completions, example.ranks


def pairs(example: Preference | Ranking, scores: Sequence[float]) -> Iterator[Pair]:
    """Every pair of a row that is no tie, from the scores of its completions."""
    texts, ranks = judged(example)
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                yield Pair(scores[i] - scores[j], len(texts[i]) - len(texts[j]))


def said(output: Output, example: Preference | Ranking, kind: str = "reward") -> list[float]:
    """The scores of the completions in order."""
    return [output.scores[f"{kind} {i}"] for i in range(1, len(judged(example)[0]) + 1)]


def right(margin: float) -> float:
    """1 where the better one is scored higher, ½ where both are alike."""
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


@dataclass(frozen=True)
class PairAccuracy(Summed):
    """Share of pairs of which the better completion has the higher reward; alike counts half.

    Against its own reference a policy has no reward: every pair counts half until it is trained.
    """

    name: ClassVar[str] = "pair_accuracy"
    kind: ClassVar[Kind] = "number"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(right, pairs)."""
        found = [right(pair.margin) for pair in pairs(example, said(output, example))]
        return sum(found), float(len(found))


@dataclass(frozen=True)
class LikelihoodAccuracy(Summed):
    """Share of pairs of which the model finds the better completion likelier as a whole, whatever its objective."""

    name: ClassVar[str] = "likelihood_accuracy"
    kind: ClassVar[Kind] = "number"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(right, pairs)."""
        found = [right(pair.margin) for pair in pairs(example, said(output, example, "log p"))]
        return sum(found), float(len(found))


@dataclass(frozen=True)
class ShorterAccuracy(Summed):
    """Pair accuracy where the longer completion (in characters) is the worse one: what a model of length gets wrong."""

    name: ClassVar[str] = "pair_accuracy_longer_wrong"
    kind: ClassVar[Kind] = "number"

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(right, pairs)."""
        found = [right(pair.margin) for pair in pairs(example, said(output, example)) if pair.longer < 0]
        return sum(found), float(len(found))


@dataclass(frozen=True)
class Margin(Summed):
    """Mean of the better completion's reward minus the worse one's, over pairs."""

    name: ClassVar[str] = "margin"
    kind: ClassVar[Kind] = "number"
    limits: ClassVar[tuple[float, float]] = (-np.inf, np.inf)

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """(sum of margins, pairs)."""
        found = [pair.margin for pair in pairs(example, said(output, example))]
        return sum(found), float(len(found))


@dataclass(frozen=True)
class PairCalibration(Summed):
    """Expected calibration error of σ(margin) as the probability that people agree, in five bins. Guo et al. 2017, eq. 3."""

    name: ClassVar[str] = "pair_ece"
    kind: ClassVar[Kind] = "number"
    higher_is_better: ClassVar[bool] = False

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """Of each bin the sum of (right − probability), then the number of pairs."""
        gaps, count = [0.0] * BINS, 0
        for pair in pairs(example, said(output, example)):
            sure = 1 / (1 + np.exp(-min(abs(pair.margin), 700.0)))
            gaps[min(BINS - 1, int((sure - 0.5) * 2 * BINS))] += right(pair.margin) - sure
            count += 1
        return (*gaps, float(count))

    def value(self, sums: Array) -> Array:
        """Σ |gap| of the bins over the pairs."""
        return ratio(np.abs(sums[..., :BINS]).sum(-1), sums[..., BINS])


@dataclass(frozen=True)
class LengthCorrelation(Summed):
    """Correlation of reward and length in characters among the completions of a prompt, -1 to 1; 0 where nothing varies.

    Both are measured from their mean at the prompt. What people prefer may itself be longer: read it beside the accuracy.
    """

    name: ClassVar[str] = "length_correlation"
    kind: ClassVar[Kind] = "number"
    higher_is_better: ClassVar[bool] = False
    limits: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def row(self, output: Output, example: Any) -> tuple[float, ...]:
        """Sums of squares of length and reward, and of their products."""
        rewards, lengths = np.array(said(output, example)), np.array([len(text) for text in judged(example)[0]])
        x, y = lengths - lengths.mean(), rewards - rewards.mean()
        return float(x @ x), float(y @ y), float(x @ y)

    def value(self, sums: Array) -> Array:
        """Σ xy / √(Σ xx Σ yy)."""
        spread = np.sqrt(sums[..., 0] * sums[..., 1])
        return np.where(spread > 0, ratio(sums[..., 2], spread), 0.0)


METRICS: Mapping[str, type[Summed]] = {
    metric.name: metric
    for metric in (PairAccuracy, LikelihoodAccuracy, Margin, PairCalibration, ShorterAccuracy, LengthCorrelation)
}


def choose(names: Sequence[str], examples: Sequence[Preference | Ranking], writes: bool) -> tuple[Summed, ...]:
    """The metrics called `names`; without any, those that the examples and the model have a value for.

    writes: whether the model has log-probabilities. RecipeError for a name that there is not.
    """
    for name in names:
        if name not in METRICS:
            raise RecipeError(unknown("metric of preferences", name, METRICS))
    absent = set() if writes else {LikelihoodAccuracy.name}
    if not any(pair.longer < 0 for row in examples for pair in pairs(row, [0.0] * len(judged(row)[0]))):
        absent.add(ShorterAccuracy.name)
    if refused := next((name for name in names if name in absent), None):
        raise RecipeError(
            f"{refused} has no value here: no held-out pair, or no part of this model, says anything to it."
        )
    return tuple(METRICS[name]() for name in names or METRICS if name not in absent)
