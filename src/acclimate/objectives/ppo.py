"""What is descended on sampled completions: PPO, and its relatives without a value head.

Decided here, of the details in Huang et al. 2024, arXiv:2403.17031: a value head of zeros on the policy's own trunk; KL
by log π − log ref of each token, in the reward; the score on the last token, or on the ends of spans; advantages whitened
over an iteration; policy and value clipped; no dropout; the probabilities of a rollout asked again of the trunk that
trains, so that the first ratio is 1; one learning rate for policy and value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acclimate.errors import RecipeError
from acclimate.models.logprobs import logprobs
from acclimate.models.policy import Scored, score
from acclimate.objectives.advantages import leave_one_out, relative
from acclimate.objectives.lm import by_row
from acclimate.tokens.batch import Batch
from acclimate.training.fit import Loss

Flat = Float[Tensor, " n"]


@dataclass(frozen=True)
class Experience:
    """Sampled completions and what is learned from each of their tokens, each (n,) like `batch.targets`.

    logprob: under the policy that sampled, at `temperature`; None where that is the one that learns. reference: under the
    reference. values: before each token.
    """

    batch: Batch
    logprob: Tensor | None
    reference: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    temperature: float = 1.0
    beta: float = 0.0

    def before(self, now: Scored) -> Flat:
        """(n,) log-probabilities under the policy that sampled."""
        return now.logprob.detach() if self.logprob is None else self.logprob

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return self.batch.tokens

    @property
    def targets(self) -> Tensor:
        """The tokens that were written."""
        return self.batch.targets

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the prompts, for diagnosis."""
        return self.batch.rows


@dataclass(frozen=True)
class Pretraining:
    """Ordinary text beside the rollouts of an update (PPO-ptx, Ouyang et al. 2022, eq. 2).

    share: what its summed loss is multiplied by: γ · the update's written tokens / the text's tokens.
    """

    batch: Batch
    share: float

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return self.batch.tokens

    def loss(self, model: nn.Module) -> Loss:
        """Counts no token of its own, so that the update's is the mean of the rollouts' plus γ times that of the text."""
        total = -self.share * logprobs(model, self.batch).sum()
        return Loss(total, torch.tensor(0))


@dataclass(frozen=True)
class PPO:
    """PPO with a value head. Schulman et al. 2017, eq. 7 and 9; Ziegler et al. 2019, section 2; Ouyang et al. 2022, 3.5.

    −min(ρA, clip(ρ, 1 ± clip) A) + value_weight · ½ max((V − R)², (V_old + clip(V − V_old, ± value_clip) − R)²) − entropy · H,
    a mean over tokens.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    entropy: float = 0.0
    truncated: Literal["ends", "goes on"] = (
        "ends"  # a completion cut off by its length: nothing comes after, or its value
    )
    valued: ClassVar[bool] = True
    grouped: ClassVar[bool] = False
    in_reward: ClassVar[bool] = True  # the KL penalty is part of the reward

    def __post_init__(self) -> None:
        if min(self.clip, self.value_clip, self.value_weight) <= 0 or not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise RecipeError("ppo needs clip, value_clip and value_weight above 0, and gamma and lam from 0 to 1.")

    def __call__(self, model: nn.Module, given: Experience | Pretraining) -> Loss:
        """The sum over tokens."""
        if isinstance(given, Pretraining):
            return given.loss(model)
        now = score(model, given.batch, given.temperature, spread=self.entropy > 0)
        policy, cut = clipped(now.logprob - given.before(now), given.advantages, self.clip)
        value = clipped_square(now.value, given.values, given.returns, self.value_clip)
        total = policy.sum() + self.value_weight * value.sum() - self.entropy * now.entropy.sum()
        error = (now.value.detach() - given.returns).square()
        watched = {"clip_fraction": cut, "value_error": error, **drift(now, given)}
        return Loss(total, torch.tensor(len(policy)), {name: each.sum() for name, each in watched.items()})


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation: no value head. Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4.

    A mean over completions of the mean over their tokens of −min(ρA, clip(ρ, 1 ± clip) A) + β (r − log r − 1), r = ref / π.
    """

    clip: float = 0.2
    valued: ClassVar[bool] = False
    grouped: ClassVar[bool] = True
    in_reward: ClassVar[bool] = False

    def better(self, scores: Flat, group: Int[Tensor, " n"]) -> Flat:
        """How much better each completion is than those of its prompt."""
        return relative(scores, group)

    def __call__(self, model: nn.Module, given: Experience) -> Loss:
        """The sum over completions."""
        now = score(model, given.batch, given.temperature)
        policy, cut = clipped(now.logprob - given.before(now), given.advantages, self.clip)
        per_token = policy + given.beta * schulman(now.logprob, given.reference)
        loss = by_row(-per_token, given.batch.owner, len(given.batch.lengths))
        return replace(loss, metrics=by_completion({"clip_fraction": cut}, now, given))


@dataclass(frozen=True)
class RLOO:
    """REINFORCE with the other completions of a prompt as its baseline. Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.

    A mean over completions of −ρ(y) A, ρ(y) = π(y) / π_old(y), whose gradient on the policy that sampled is −A ∇ log π(y).
    """

    valued: ClassVar[bool] = False
    grouped: ClassVar[bool] = True
    in_reward: ClassVar[bool] = True

    def better(self, scores: Flat, group: Int[Tensor, " n"]) -> Flat:
        """How much better each completion is than the others of its prompt."""
        return leave_one_out(scores, group)

    def __call__(self, model: nn.Module, given: Experience) -> Loss:
        """The sum over completions."""
        now = score(model, given.batch, given.temperature)
        rows, owner = len(given.batch.lengths), given.batch.owner
        change = now.logprob.new_zeros(rows).index_add(0, owner, now.logprob - given.before(now))
        mine = given.advantages.new_zeros(rows).index_copy(0, owner, given.advantages)
        return Loss(-(change.exp() * mine).sum(), torch.tensor(rows), by_completion({}, now, given))


def clipped(change: Flat, advantages: Flat, clip: float) -> tuple[Flat, Flat]:
    """−min(ρA, clip(ρ)A) of log ρ, and 1 where clipping decides. Schulman et al. 2017, arXiv:1707.06347, eq. 7."""
    ratio = change.exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(free, held), (held < free).to(ratio.dtype).detach()


def clipped_square(value: Flat, old: Flat, returns: Flat, clip: float) -> Flat:
    """½ max((V − R)², (V_old + clip(V − V_old) − R)²)."""
    near = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - returns).square(), (near - returns).square())


def schulman(logprob: Flat, reference: Flat) -> Flat:
    """r − log r − 1 with r = ref / π: an estimate of KL(π, ref) that is never negative. Schulman 2020 (k₃)."""
    change = reference - logprob
    return change.exp() - change - 1


def drift(now: Scored, given: Experience) -> Mapping[str, Flat]:
    """Of every token: entropy, and log π − log π_old both as k₃ to the policy that sampled and as k₁ to the reference."""
    logprob = now.logprob.detach()
    return {
        "entropy": now.entropy.detach(),
        "step_kl": schulman(given.before(now), logprob),
        "kl": logprob - given.reference,
    }


def by_completion(more: Mapping[str, Flat], now: Scored, given: Experience) -> dict[str, Tensor]:
    """`drift` and `more` as sums over rows of their means, so that they do not depend on how a step is cut.

    With the KL to the reference of whole completions, where nobody could say it before.
    """
    watched = {**more, **drift(now, given)}
    found = {name: -by_row(each, given.batch.owner, len(given.batch.lengths)).total for name, each in watched.items()}
    return found | ({"rollout_kl": watched["kl"].sum()} if given.logprob is None else {})
