"""What decoding, scoring and training ask of logits, compiled on the machine that uses it (logits.cpp); by PyTorch elsewhere.

A row of logits is long, and PyTorch's operations read and write it one after the other.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acclimate.models import kernels
from acclimate.models.kernels import FLOAT, INT, LONG, POINTER, bound, for_dtype

LEAST = 1024  # logits of a row, for the kernels to be asked


@cache
def _function(name: str) -> Any:
    return bound(name, *[POINTER] * (2 if name == "logarithms_of" else 3), LONG, LONG, INT)


@cache
def _survey(dtype: torch.dtype) -> Any:
    return for_dtype("survey", dtype, *[POINTER] * 5, FLOAT, LONG, LONG, INT)


def _served(logits: Tensor) -> bool:
    alike = logits.is_cpu and logits.dtype == torch.float32 and logits.ndim == 2 and logits.is_contiguous()
    plain = not (logits.requires_grad and torch.is_grad_enabled()) and kernels.content(logits)
    return alike and plain and logits.shape[1] >= LEAST and _function("highest_of") is not None


def highest(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """The highest of each row; NaN where there is one."""
    return _highest(logits)[0] if _served(logits) else logits.amax(-1)


def likeliest(logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """The lowest id that has the highest logit of its row."""
    return _highest(logits)[1] if _served(logits) else logits.argmax(-1)


def _highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    values, places = logits.new_empty(len(logits)), torch.empty(len(logits), dtype=torch.long)
    _call("highest_of", logits, values, places)
    return values, places


def logsumexp(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """log Σ exp of each row."""
    if not _served(logits):
        return logits.logsumexp(-1)
    values = logits.new_empty(len(logits))
    _call("logarithms_of", logits, values)
    return values


def drawn(logits: Float[Tensor, "rows vocab"], draws: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The first id whose cumulative probability, in the order of the ids, exceeds the draw in [0, 1)."""
    if _served(logits) and draws.is_cpu:
        places = torch.empty(len(logits), dtype=torch.long)
        _call("drawn_from", logits, draws.double().contiguous(), places)
        return places
    cumulative = logits.double().softmax(-1).cumsum(-1)
    whole = cumulative[:, -1]
    # Rounding may carry draw * whole up to whole, which no id exceeds.
    target = torch.minimum(draws * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)


def surveys(logits: Tensor, targets: Tensor) -> bool:
    """Whether `survey` can be asked of these, which need no way back."""
    alike = logits.is_cpu and logits.ndim == 2 and logits.is_contiguous()
    plain = not (logits.requires_grad and torch.is_grad_enabled()) and targets.dtype == torch.long
    return alike and plain and logits.shape[1] >= LEAST and _survey(logits.dtype) is not None


def survey(
    logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"], temperature: float, shares: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n vocab"] | None]:
    """Of logits / temperature: log-probability of each target, entropy in nats, in float32; and, where asked, every
    probability less 1 at the target, in the dtype of the logits."""
    chosen, entropy = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
    every = torch.empty_like(logits) if shares else None
    if kernels.content(logits):
        wanted = targets.contiguous()  # which has to live until the kernel has read it
        _survey(logits.dtype)(
            *(each.data_ptr() for each in (logits, wanted, chosen, entropy)), None if every is None else every.data_ptr(),
            temperature, *logits.shape, torch.get_num_threads(),
        )  # fmt: skip
    return chosen, entropy, every


def _call(name: str, *tensors: Tensor) -> None:
    rows, vocab = tensors[0].shape
    _function(name)(*(each.data_ptr() for each in tensors), rows, vocab, torch.get_num_threads())
