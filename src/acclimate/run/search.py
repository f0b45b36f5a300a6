"""Which learning rate: successive halving on dev. The test rows are not among what a trial is given."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from acclimate.data.examples import Output
from acclimate.errors import TrainingError
from acclimate.evaluation.predictor import log_shares
from acclimate.run.dev import rounds
from acclimate.run.rungs import Search


@dataclass(frozen=True)
class Trial:
    """One rate trained for some steps. score: on dev, by the task's first metric; loss: on dev, nats a scored token."""

    rate: float
    steps: int
    score: float | None  # None where the training fell ill
    loss: float | None  # of labels: among them, where there are some
    tokens: int
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Searched:
    """The rate chosen and every round's trials; without a search there are none."""

    rate: float
    rounds: tuple[tuple[Trial, ...], ...]

    def json(self) -> dict[str, Any]:
        """As it stands in compare.json."""
        trials = [trial for some in self.rounds for trial in some]
        return {
            "rounds": [[asdict(trial) for trial in some] for some in self.rounds],
            "trials": len(trials),
            "tokens": sum(trial.tokens for trial in trials),
            "seconds": sum(trial.seconds for trial in trials),
        }


def label_loss(outputs: Sequence[Output], targets: Sequence[str]) -> float:
    """Mean −log p of the right label, by the softmax of the labels' scores: what tells equal scores of two rates apart."""
    return -fmean(log_shares(output.scores)[target] for output, target in zip(outputs, targets, strict=True))


Try = Callable[[int, float, int], Trial]  # (round from 0, rate, steps) → what came of it


def ranked(trials: Sequence[Trial], higher_is_better: bool, by_loss: bool = False) -> list[Trial]:
    """Best first: by score, then by loss, then the smaller rate; by loss first where asked. The ill ones are left out."""
    sign = -1 if higher_is_better else 1

    def key(trial: Trial) -> tuple[float, float, float]:
        score, loss = sign * (trial.score or 0.0), math.inf if trial.loss is None else trial.loss
        return (loss, score, trial.rate) if by_loss else (score, loss, trial.rate)

    return sorted((trial for trial in trials if trial.score is not None), key=key)


def halve(
    rates: Sequence[float],
    steps: int,
    given: Search,
    higher_is_better: bool,
    attempt: Try,
    by_loss: bool = False,
) -> Searched:
    """Successive halving of `rates`. Raises TrainingError where every rate of a round makes the training ill.

    by_loss: a few steps into a training a model may still prefer one label, and which one it is decides its accuracy on
    few rows; the loss among the labels, a proper score, tells rates apart long before.
    """
    left, done = list(rates), []
    for number, (count, length) in enumerate(rounds(len(left), steps, given.keep, given.share)):
        trials = tuple(attempt(number, rate, length) for rate in left[:count])
        done.append(trials)
        best = ranked(trials, higher_is_better, by_loss)
        if not best:
            raise TrainingError(f"No rate of the search trains well. {trials[0].failed}")
        left = [trial.rate for trial in best[: max(1, math.floor(count * given.keep))]]
    return Searched(left[0], tuple(done))
