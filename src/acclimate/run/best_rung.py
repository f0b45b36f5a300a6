"""Best-of-n as a rung: nothing trains, the base writes n completions and a reward picks one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.data.examples import Output
from acclimate.errors import RecipeError
from acclimate.evaluation.predictor import Tick
from acclimate.run.measure import written
from acclimate.run.prepare import Prepared


@dataclass(frozen=True)
class Drawn:
    """The best of n completions of every test row."""

    prepared: Prepared
    n: int
    seed: int

    def __call__(self, examples: Sequence[Any], tick: Tick | None = None) -> list[Output]:
        return written(self.prepared, self.prepared.model, tick, self.n, self.seed)


@dataclass(frozen=True)
class BestOf:
    """The best of n completions by the rung's `rewards`. Stiennon et al. 2020, arXiv:2009.01325, appendix G.3.

    Its `kl` is no estimate but the bound log n − (n − 1)/n of that appendix, whatever the reward.
    """

    n: int = 4

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RecipeError(f"best_of draws n completions, n above 0, not {self.n}.")

    def fit_predictor(self, prepared: Prepared, seed: int) -> Drawn:
        """What answers. RecipeError where there is no reward to pick by."""
        if prepared.rolled is None:
            raise RecipeError("best_of picks by a reward; give `rewards`, such as rewards: [{name: lexicon}].")
        return Drawn(prepared, self.n, seed)
