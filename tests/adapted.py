"""Tiny models that a method has trained, and what the suites ask about them."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.methods import (
    DID,
    IA3,
    MAM,
    SAID,
    BitFit,
    DoRA,
    Full,
    Head,
    Houlsby,
    LoRA,
    Parallel,
    Pfeiffer,
    PreEmbed,
    Prefix,
    PreLayer,
    PromptTuning,
    QLoRA,
    RsLoRA,
    ScaledParallel,
    UniPELT,
    VeRA,
)
from acclimate.methods.delta import Method, PerRow, adapt, merged, switches, trainable
from acclimate.methods.qlora import quantise_layers
from acclimate.methods.soft import Soft, soft_of
from acclimate.tokens.batch import rectangle
from tests import tiny

SPECS: dict[str, Method] = {
    "bitfit": BitFit(),
    "did": DID(24),
    "dora": DoRA(rank=2, targets=("linear",)),
    "full": Full(),
    "head": Head(),
    "houlsby": Houlsby(4),
    "ia3": IA3(),
    "lora": LoRA(rank=2, targets=("linear",)),
    "mam": MAM(2, 8, 4),
    "parallel": Parallel(4),
    "pfeiffer": Pfeiffer(4),
    "preembed": PreEmbed(2, 1),
    "prefix": Prefix(3, middle=8),
    "prelayer": PreLayer(2, 1),
    "prompt": PromptTuning(3),
    "qlora": QLoRA(rank=2),
    "rslora": RsLoRA(rank=2, targets=("linear",)),
    "said": SAID(24),
    "scaled_parallel": ScaledParallel(4),
    "unipelt": UniPELT(bottleneck=4, length=3, rank=2),
    "vera": VeRA(rank=4, targets=("linear",)),
}
SGD: Callable[..., torch.optim.Optimizer] = torch.optim.SGD


def _soft(method: str) -> bool:
    return soft_of(adapt(tiny.build("llama"), SPECS[method])) != Soft()


def _rides(method: str) -> bool:
    return all(".delta." in name for name in trainable(adapt(tiny.build("llama"), SPECS[method])))


SOFT = tuple(filter(_soft, SPECS))  # heard through soft tokens alone
RIDING = tuple(filter(_rides, SPECS))  # what rides on the base and leaves its tensors alone

every_method = pytest.mark.parametrize("method", SPECS)
riding_method = pytest.mark.parametrize("method", RIDING)
every_build = pytest.mark.parametrize("build", tiny.BUILDS)


def base_of(build: str, method: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model that a method starts at: QLoRA quantises it first, and there is no way back."""
    model = tiny.build(build, dtype)
    spec = SPECS[method]
    if isinstance(spec, QLoRA):
        quantise_layers(model, spec.double)
    return model


def some_ids(rows: int = 3, time: int = 7) -> Tensor:
    return torch.randint(3, tiny.VOCAB, (rows, time), generator=torch.Generator().manual_seed(7))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """A weighted sum of all log-probabilities, so that nothing is left out by symmetry."""
    logprobs = heard(model, ids).double().log_softmax(-1)
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (logprobs * weights).mean()


def train(
    model: nn.Module, steps: int = 2, kind: Callable[..., torch.optim.Optimizer] = SGD, rate: float = 1.0
) -> None:
    optimizer = kind(trainable(model).values(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, some_ids()).backward()
        optimizer.step()


def adapted(build: str, method: str, dtype: torch.dtype = torch.float64, name: str = "default") -> nn.Module:
    model = adapt(tiny.build(build, dtype), SPECS[method], name=name)
    train(model)
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def silent(model: nn.Module, build: str) -> set[str]:
    """Biases on keys, which add the same to every score of a row: softmax cancels them unless positions rotate them."""
    keys = (".k_proj", ".key", ".k")
    owners = {n: re.sub(r"\.bias$|\.delta\.\w+\.b$", "", n) for n, p in trainable(model).items() if p.ndim == 1}
    return {n for n, owner in owners.items() if owner.endswith(keys) and build != "llama"}


def refusal(model: nn.Module, name: str = "default") -> str | None:
    """Why the change `name` cannot be merged, if it cannot."""
    try:
        with merged(model, name):
            return None
    except ModelError as problem:
        return str(problem)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {n for n in before if not torch.equal(before[n], after[n])}


def close(a: Tensor, b: Tensor, relative: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= relative * b.abs().max())


def checkpoint_layers(model: nn.Module) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@torch.no_grad()
def answers(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    return heard(model, some_ids() if ids is None else ids)


def heard(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits at `ids`, read among the soft tokens of whichever adapter answers."""
    read, mask, places = dressed(model, ids)
    if mask is None:
        return tiny.logits(model, ids)
    if model.config.is_encoder_decoder:
        return model(input_ids=read, attention_mask=mask, decoder_input_ids=ids).logits
    logits = model(input_ids=read, attention_mask=mask).logits
    return logits if logits.ndim == 2 else logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))


def dressed(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """(rows, longest) ids with the soft tokens of the adapter that answers each row, mask, places of `ids` in them.

    The front goes before the first id, after it in an encoder, whose head may read there; the back before the last two.
    The ids alone and no mask where nobody has soft tokens.
    """
    softs = _softs(model, len(ids))
    lead = 0 if model.config.is_encoder_decoder or model.can_generate() else 1
    cuts = (lead, ids.shape[1] - 2)
    rows = [(*r[:lead], *s.front, *r[lead : cuts[1]], *s.back, *r[cuts[1] :]) for r, s in zip(ids.tolist(), softs)]
    if not any(s.front + s.back for s in softs):
        return ids, None, ids
    read, mask = rectangle(rows, 0)
    places = [[i for i, new in enumerate(row) if new < tiny.VOCAB] for row in rows]
    return read, mask, torch.tensor(places)


def _softs(model: nn.Module, rows: int) -> list[Soft]:
    active = next((switch.active for switch in switches(model)), None)
    if not isinstance(active, PerRow):
        return [soft_of(model)] * rows
    names = [active.names[i] if i >= 0 else None for i in active.index.tolist()]
    return [Soft() if name is None else soft_of(model, name) for name in names]
