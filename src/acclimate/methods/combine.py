"""Several changes of one base become one: their weighted sum, TIES, or DARE.

What is combined is ΔW, what merging adds to each base tensor, so any method that can be merged takes part, and methods
may differ. LoRAs can also be summed as LoRAs: `concatenate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acclimate.errors import ModelError, UsageError
from acclimate.methods.delta import base, carriers, install, merged, require, switch_of
from acclimate.methods.lora import LoRA, LowRank

Change = Mapping[str, Tensor]  # ΔW by the name of the base tensor; what is not named does not change

Factors = Mapping[str, tuple[Tensor, Tensor]]  # A (rank, d_in) and B (d_out, rank), scaled, by the path of the layer


class Way(Protocol):
    """How changes, each already times its weight, become one."""

    def __call__(self, changes: Sequence[Change]) -> dict[str, Tensor]:
        """Raises UsageError where a constant of the way is impossible."""


@dataclass(frozen=True)
class Linear:
    """Σ w τ. Task arithmetic, Ilharco et al. 2022, arXiv:2212.04089, section 2."""

    def __call__(self, changes: Sequence[Change]) -> dict[str, Tensor]:
        return {key: stack.sum(0) for key, stack in _stacked(changes).items()}


@dataclass(frozen=True)
class Ties:
    """Trim, elect sign, disjoint mean. Yadav et al. 2023, arXiv:2306.01708, algorithm 1.

    The paper's λ is the weight of all changes, which has them unweighted; unequal weights scale them before they vote.
    A change is trimmed over the tensors it has, and numbers as large as the smallest one kept are kept too.
    """

    keep: float = 0.2  # share of the numbers of each change, the largest by magnitude

    def __call__(self, changes: Sequence[Change]) -> dict[str, Tensor]:
        if not 0 < self.keep <= 1:
            raise UsageError(f"TIES keeps {self.keep} of each change; the share is above 0 and at most 1.")
        return {key: disjoint_mean(stack) for key, stack in _stacked([trim(c, self.keep) for c in changes]).items()}


@dataclass(frozen=True)
class Dare:
    """Drop numbers of each change at random, divide the rest by 1 − drop, add up. Yu et al. 2023, arXiv:2311.03099, eq. 3."""

    drop: float = 0.5  # probability p that a number is dropped
    seed: int = 0

    def __call__(self, changes: Sequence[Change]) -> dict[str, Tensor]:
        if not 0 <= self.drop < 1:
            raise UsageError(f"DARE drops {self.drop} of each change; the probability is at least 0 and below 1.")
        dropped = [
            {key: rescaled(tensor, _mask(tensor, self, f"{number} {key}"), self.drop) for key, tensor in change.items()}
            for number, change in enumerate(changes)
        ]
        return Linear()(dropped)


WAYS = {"dare": Dare, "linear": Linear, "ties": Ties}


def combine(changes: Sequence[Change], weights: Sequence[float], way: Way) -> dict[str, Tensor]:
    """One change, of each `changes` times its weight. Raises UsageError unless every change has a weight."""
    if len(changes) != len(weights):
        raise UsageError(f"There are {len(changes)} adapters and {len(weights)} weights; give each its weight.")
    return way([{key: w * tensor for key, tensor in c.items()} for c, w in zip(changes, weights, strict=True)])


def trim(change: Change, keep: float) -> dict[str, Tensor]:
    """The largest ⌈keep · n⌉ of all n numbers by magnitude, the others 0."""
    sizes = torch.cat([tensor.abs().flatten() for tensor in change.values()])
    least = sizes.kthvalue(len(sizes) - ceil(keep * len(sizes)) + 1).values
    return {key: tensor * (tensor.abs() >= least) for key, tensor in change.items()}


def disjoint_mean(stack: Float[Tensor, "changes ..."]) -> Float[Tensor, "..."]:
    """At each place the mean of the numbers whose sign is that of the sum; 0 where the sum is 0."""
    elected = stack.sum(0).sign()
    agree = (stack.sign() == elected) & (elected != 0)
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


def rescaled(change: Float[Tensor, "*shape"], kept: Bool[Tensor, "*shape"], drop: float) -> Float[Tensor, "*shape"]:
    """m ⊙ δ / (1 − p)."""
    return change * kept / (1 - drop)


def _mask(tensor: Tensor, way: Dare, what: str) -> Tensor:
    """True where a number stays: from the seed and the tensor's own name alone, on the CPU."""
    seed = int.from_bytes(sha256(f"{way.seed} {what}".encode()).digest()[:8], "little", signed=True)
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(tensor.shape, generator=draw, dtype=torch.float64).to(tensor.device) >= way.drop


def _stacked(changes: Sequence[Change]) -> dict[str, Tensor]:
    shapes = {key: tensor for change in changes for key, tensor in change.items()}
    return {
        key: torch.stack([change.get(key, torch.zeros_like(like)) for change in changes])
        for key, like in shapes.items()
    }


@torch.no_grad()
def changes_of(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """What merging the change called `name` adds to each base tensor, by name, at least float32; the model stays as it is.

    Computed in float64, so that a small change of a bfloat16 weight is not rounded away. Raises ModelError for a change
    that cannot be merged.
    """
    with merged(model, name):  # every refusal that there is, before anything is computed
        pass
    places = {id(p): path for path, p in base(model).items()}
    found: dict[str, Tensor] = {}
    for module in carriers(model, name).values():
        found |= {places[id(p)]: change for p, change in _added(module, name) if bool(change.any())}
    return found


def _added(module: nn.Module, name: str) -> list[tuple[nn.Parameter, Tensor]]:
    own = [(p, p.data) for p in module.parameters(recurse=False)]
    try:
        for p, data in own:
            p.data = data.double()
        wide = [p.data for p, _ in own]
        with merged(module, name):
            return [
                (p, (p.data - before).to(torch.promote_types(data.dtype, torch.float32)))
                for (p, data), before in zip(own, wide, strict=True)
            ]
    finally:
        for p, data in own:
            p.data = data


@torch.no_grad()
def add(model: nn.Module, change: Change) -> None:
    """base tensor += change, in at least float32, rounded once; never writing into the old ones.

    Raises ModelError for a tensor that the model has not.
    """
    own = base(model)
    if foreign := sorted(change.keys() - own.keys()):
        raise ModelError(f"{type(model).__name__} has no tensor {foreign[0]}, which the change is made for.")
    for key, tensor in change.items():
        wide = own[key].to(torch.promote_types(own[key].dtype, tensor.dtype))
        own[key].data = (wide + tensor).to(own[key].dtype)


def is_low_rank(model: nn.Module, name: str) -> bool:
    """Whether the change called `name` is a LoRA and nothing else (DoRA is more)."""
    require(model, name)
    return all(type(_low_rank(module, name)) is LowRank for module in carriers(model, name).values())


@torch.no_grad()
def factors_of(model: nn.Module, name: str = "default") -> Factors:
    """Copies of the factors of the LoRA called `name`. Raises ModelError for an adapter that is no LoRA."""
    if not is_low_rank(model, name):
        raise ModelError(f"The adapter {name!r} is no LoRA, so a LoRA cannot express it; combine the weights instead.")
    riding = {path: _low_rank(module, name) for path, module in carriers(model, name).items()}
    return {path: (one.a.clone(), one.scale * one.b) for path, one in riding.items()}


@torch.no_grad()
def concatenate(model: nn.Module, parts: Sequence[Factors], weights: Sequence[float], name: str = "default") -> LoRA:
    """Put one LoRA on `model` as `name` that computes Σ weight · change of all `parts`, exactly.

    Σ w B A = [w₁ B₁, w₂ B₂, …] [A₁; A₂; …], so its rank is the sum of theirs; a layer that a part leaves alone has zeros.
    """
    ranks = [max(len(a) for a, _ in part.values()) for part in parts]
    rank, paths = sum(ranks), dict.fromkeys(path for part in parts for path in part)
    method = LoRA(rank, float(rank), 0.0, tuple(paths))
    install(model, method, name)
    for path, module in carriers(model, name).items():
        whole, at = _low_rank(module, name), 0
        whole.a.zero_()
        for part, weight, width in zip(parts, weights, ranks, strict=True):
            if path in part:
                a, b = part[path]
                whole.a[at : at + len(a)] = a
                whole.b[:, at : at + len(a)] = weight * b
            at += width
    return method


def _low_rank(module: nn.Module, name: str) -> LowRank:
    return cast(LowRank, cast(nn.ModuleDict, switch_of(module))[name])
