"""Best-of-n: n completions are drawn, and the one that a reward puts first is the answer. Nothing trains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

from acclimate.data.examples import Example, Output
from acclimate.errors import RecipeError
from acclimate.evaluation.predictor import Generate, Tick
from acclimate.generation.samplers import Sample
from acclimate.rewards.reward import Completion, Reward, checked, total


@dataclass(frozen=True)
class BestOf:
    """The best of n samples by a reward. Stiennon et al. 2020, arXiv:2009.01325, appendix G.3.

    An answer's `value` is its reward; `scores` holds "reward 1", … of all n in the order they were drawn. Of equal rewards
    the first drawn is taken.
    """

    writer: Generate
    reward: Reward
    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or not isinstance(self.writer.sampler, Sample):
            raise RecipeError(f"Best-of-n draws n samples, n above 0, not {self.n} by {self.writer.sampler}.")

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        repeated = [example for example in examples for _ in range(self.n)]
        drawn = self.writer(repeated, tick)
        shown = [completion(example, output) for example, output in zip(repeated, drawn, strict=True)]
        rewards = [total(m) for m in checked(self.reward(shown), shown, type(self.reward).__name__)]
        parts = [slice(start, start + self.n) for start in range(0, len(drawn), self.n)]
        return [best(drawn[part], rewards[part]) for part in parts]


def completion(example: Example, output: Output) -> Completion:
    """What a reward is shown of an answer."""
    return Completion(example.prompt, output.text, output.finish == "stop", example.fields, example.where)


def best(drawn: Sequence[Output], rewards: Sequence[float]) -> Output:
    """The answer with the highest reward, the first of equal ones, with the rewards of all."""
    at = max(range(len(drawn)), key=rewards.__getitem__)
    scores = {f"reward {i}": value for i, value in enumerate(rewards, start=1)}
    return replace(drawn[at], scores=scores, value=rewards[at])


def kl_bound(n: int) -> float:
    """log n − (n − 1)/n nats: the most that best-of-n moves from what is sampled, as a KL divergence of completions.

    Stiennon et al. 2020, appendix G.3; a bound for text by Beirami et al. 2024, arXiv:2401.01879, theorem 1.

    >>> round(kl_bound(1), 6), round(kl_bound(4), 6)
    (0.0, 0.636294)
    """
    return log(n) - (n - 1) / n
