"""Several systems over several scenarios: the mean win rate. Liang et al. 2022, arXiv:2211.09110."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from acclimate.errors import DataError
from acclimate.metrics.intervals import TIE, Score
from acclimate.metrics.metric import Array, Metric, checked, resampled

ROUNDED = 12  # decimals kept of an interval


@dataclass(frozen=True)
class Scenario:
    """One metric on one set of examples: rows (n, k) of each system by its name, of the same examples in one order."""

    metric: Metric
    rows: Mapping[str, ArrayLike]


def win_rates(values: Float[np.ndarray, "*draws systems scenarios"]) -> Float[np.ndarray, "*draws systems"]:
    """The share of the other systems that each one beats, a tie half, mean over scenarios; more is better in all of them.

    >>> win_rates(np.array([[0.9, 0.5], [0.8, 0.5], [0.1, 0.7]])).tolist()  # (1 + 1/4) / 2, (1/2 + 1/4) / 2, (0 + 1) / 2
    [0.625, 0.375, 0.5]
    """
    ahead = values[..., :, None, :] - values[..., None, :, :]
    won = np.where(np.abs(ahead) < TIE, 0.5, ahead > 0)
    others = values.shape[-2] - 1
    return np.asarray(((won.sum(-2) - 0.5) / others).mean(-1))


def mean_win_rate(
    scenarios: Sequence[Scenario], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> dict[str, Score]:
    """Each system's mean win rate by its name, with a percentile bootstrap interval; n is the number of scenarios.

    Examples are drawn within each scenario, the same ones for all systems; the scenarios are those there are. A rate
    says who is ahead, not by how much, and depends on the company: compare rates of one set of systems alone.
    DataError for fewer than two systems, or where a scenario lacks one or has other examples for it.
    """
    names = _systems(scenarios)
    found = [_values(scenario, names, draws, seed + place) for place, scenario in enumerate(scenarios)]
    rates = win_rates(np.stack(found, axis=-1))  # the first draw is the sample itself
    known = rates[1:][np.isfinite(np.stack(found, axis=-1)[1:]).all((-1, -2))]
    spread = known if len(known) else rates[:1]
    lows, highs = np.quantile(spread, (0.5 - level / 2, 0.5 + level / 2), axis=0).round(ROUNDED)
    columns = zip(names, rates[0], lows, highs, spread.std(0), strict=True)
    return {
        name: Score(float(value), float(low), float(high), len(scenarios), float(error))
        for name, value, low, high, error in columns
    }


def _systems(scenarios: Sequence[Scenario]) -> list[str]:
    names = list(scenarios[0].rows) if scenarios else []
    if len(names) < 2:
        raise DataError("A win rate needs one scenario and two systems at least.")
    for place, scenario in enumerate(scenarios, start=1):
        lengths = {len(checked(rows, scenario.metric.name)) for rows in scenario.rows.values()}
        if set(scenario.rows) != set(names) or len(lengths) != 1:
            raise DataError(
                f"Scenario {place} ({scenario.metric.name}) needs rows of the same examples for each of {', '.join(names)}."
            )
    return names


def _values(scenario: Scenario, names: Sequence[str], draws: int, seed: int) -> Array:
    """(1 + draws, systems), more is better: the sample first, then resamples of it."""
    metric, n = scenario.metric, len(np.asarray(scenario.rows[names[0]]))
    generator = np.random.default_rng([seed, 3])
    counts = np.concatenate([np.ones((1, n)), generator.multinomial(n, np.full(n, 1 / n), size=draws)])
    found = [resampled(metric, checked(scenario.rows[name], metric.name), counts) for name in names]
    return np.stack(found, axis=-1) * (1 if metric.higher_is_better else -1)
