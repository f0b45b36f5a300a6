"""What a model said before it was tuned: the reference of DPO and its family, without a second copy of the model."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.methods.delta import base, using
from acclimate.models.collate import collate
from acclimate.models.logprobs import logprobs
from acclimate.models.modes import evaluating
from acclimate.tokens.batch import Batch
from acclimate.tokens.pairs import Compared, by_document
from acclimate.training.checkpoint import atomic_write

KEEP = 256  # rows, behind which what was asked is on disk


def stands_still(model: nn.Module) -> bool:
    """Whether the base under the deltas never moves, so that the reference can be asked at any time."""
    return not any(parameter.requires_grad for parameter in base(model).values())


def undropped(model: nn.Module) -> None:
    """No dropout from now on though `model` trains: its reference drops nothing either, so their ratio begins at 1.

    What recomputes its activations does so in training mode only; it stays there, with its own rates at 0.
    """
    for module in model.modules():
        module.training = module.training and bool(getattr(module, "gradient_checkpointing", False))
        rates = [name for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)]
        vars(module).update(dict.fromkeys(rates if module.training else (), 0.0))


@torch.no_grad()
def base_logprobs(model: nn.Module, batch: Batch, documents: int, autocast: torch.dtype | None = None) -> Tensor:
    """(documents,) Σ log p in nats under the model's own tensors: no delta answers, no dropout, no gradient."""
    device = next(model.parameters()).device.type
    mixed: Any = nullcontext() if autocast is None else torch.autocast(device, autocast)
    with using(model, None), evaluating(model), mixed:
        return by_document(logprobs(model, batch), batch.owner, documents)[0]


def referenced(
    rows: Sequence[Compared],
    model: nn.Module,
    fill: int,
    kept: Path,
    stamp: str,
    autocast: torch.dtype | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Compared]:
    """The rows with their reference, asked of `model` as it is now, each by itself; what `kept` knows is not asked again.

    kept: a JSON file by the content of rows, which template and tokenizer are part of. stamp: the base's fingerprint; a
    file of another base is written anew, and ours every KEEP rows. tick: is told how many rows more are known.
    """
    known = _known(kept, stamp)
    new = {key: row for row in rows if (key := _key(row)) not in known}
    tick(len(rows) - len(new))
    for number, (key, row) in enumerate(new.items(), 1):
        asked = row.bare or row.every
        known[key] = base_logprobs(model, collate(model, asked, fill, share=True), len(asked), autocast).tolist()
        if number % KEEP == 0 or number == len(new):
            atomic_write(kept, json.dumps({"base": stamp, "rows": known}))
        tick(1)
    return [row._replace(reference=tuple(known[_key(row)])) for row in rows]


def _known(kept: Path, stamp: str) -> dict[str, list[float]]:
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    return dict(found["rows"]) if found.get("base") == stamp else {}


def _key(row: Compared) -> str:
    content = [(each.source, each.ids, each.scored) for each in row.bare or row.every]
    return sha256(json.dumps(content).encode()).hexdigest()
