"""What DPO is compared with: fine-tuning on the chosen completions, and unlikelihood of the rejected ones."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from acclimate.models.logprobs import logprobs
from acclimate.objectives.lm import by_token
from acclimate.objectives.preference import duels, log_one_minus, read, weighed
from acclimate.tokens.batch import Batch
from acclimate.tokens.pairs import Pairs, by_document
from acclimate.training.fit import Loss


@dataclass(frozen=True)
class PreferredFT:
    """Language modelling on the completions in first place: −1/N Σ log p. Rafailov et al. 2023, section 6, Preferred-FT."""

    against: ClassVar[bool] = False  # a reference

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        return by_token(logprobs(model, batch))

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log(π / π_ref), (n,)."""
        return logprob - reference


@dataclass(frozen=True)
class Unlikelihood:
    """−mean log p of the chosen tokens − α mean log(1 − p) of the rejected ones. Welleck et al. 2019, arXiv:1908.04319, eq. 3.

    DPO's baseline of that name (section 6, α in [0, 1]) lowers log p of the rejected completion without a bound; the
    original's log(1 − p) is taken here, which has one.
    """

    alpha: float = 1.0
    against: ClassVar[bool] = False  # a reference

    def __call__(self, model: nn.Module, batch: Pairs) -> Loss:
        found = read(model, batch)
        absent, _ = by_document(log_one_minus(found.each), batch.owner, len(found.tokens))
        losses = -(found.logprob / found.tokens)[:, None] - self.alpha * (absent / found.tokens)[None]
        return weighed(duels(batch), losses, self.reward(found.logprob, found.reference, found.tokens))

    def reward(
        self, logprob: Float[Tensor, " n"], reference: Float[Tensor, " n"], tokens: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log(π / π_ref), (n,)."""
        return logprob - reference
