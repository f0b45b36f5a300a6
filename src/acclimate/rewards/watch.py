"""When the course of rollouts gives reason to doubt what it earned: sentences from what every iteration was told."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Limits:
    """What is still ordinary, from the first third of the iterations to the last."""

    iterations: int = 6  # fewer say nothing
    errors: float = 2.0  # standard errors that a change must have to be one
    nats: float = 1.0  # KL a written token, where no target is set
    target: float = 2.0  # times the target of the KL
    length: float = 2.0  # times as long, or as short
    entropy: float = 0.25  # of the entropy at the start


ORDINARY = Limits()


def alarms(history: History, target: float = 0.0, limits: Limits = ORDINARY) -> list[str]:
    """A sentence for each: reward up and judge down, KL blow-up, length drift, entropy collapse. target: of the KL, in nats.

    Gao et al. 2023, arXiv:2210.10760, for the first: what is optimised goes on rising when what is meant falls.
    """
    if len(history) < limits.iterations:
        return []
    found = (_hacked(history, limits), _far(history, target, limits), _drifted(history, limits), _sure(history, limits))
    return [sentence for sentence in found if sentence]


def _thirds(history: History, name: str) -> tuple[list[float], list[float]]:
    third = len(history) // 3
    values = [row[name] for row in history if name in row]
    return values[:third], values[len(values) - third :]


def _change(history: History, name: str) -> tuple[float, float, float]:
    """(mean of the first third, mean of the last, their difference in standard errors)."""
    first, last = _thirds(history, name)
    if not first:
        return 0.0, 0.0, 0.0
    error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
    moved = fmean(last) - fmean(first)
    return fmean(first), fmean(last), moved / error if error else math.copysign(math.inf, moved) if moved else 0.0


def _hacked(history: History, limits: Limits) -> str:
    _, _, reward = _change(history, "reward")
    before, after, judge = _change(history, "judge")
    if reward <= limits.errors or judge >= -limits.errors:
        return ""
    return (
        f"The reward rose while the judge's fell, from {before:.3g} to {after:.3g}: the policy may have learned what the "
        "reward overlooks. Stop earlier, or raise rollouts.beta."
    )


def _far(history: History, target: float, limits: Limits) -> str:
    last = {name: fmean(_thirds(history, name)[1]) for name in ("rollout_kl", "length")}
    most = limits.target * target if target else limits.nats * last["length"]
    if last["rollout_kl"] <= most:
        return ""
    return (
        f"The policy is {last['rollout_kl']:.3g} nats a completion from its reference, of {last['length']:.3g} tokens. "
        "Read what it writes; lower training.rate or raise rollouts.beta."
    )


def _drifted(history: History, limits: Limits) -> str:
    before, after, moved = _change(history, "length")
    if abs(moved) <= limits.errors or 1 / limits.length <= after / before <= limits.length:
        return ""
    return f"Completions went from {before:.3g} to {after:.3g} tokens: the reward may be paying for length."


def _sure(history: History, limits: Limits) -> str:
    before, after, _ = _change(history, "entropy")
    if after >= limits.entropy * before:
        return ""
    return (
        f"The entropy of a token fell from {before:.3g} to {after:.3g} nats: the policy hardly tries anything else. "
        "Raise rollouts.beta or objective.entropy, or lower training.rate."
    )
