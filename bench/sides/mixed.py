"""One batch whose rows are for several adapters: ours on a packed stream, PEFT's `adapter_names` on padded rows."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from acclimate.interchange.adapter import load_adapter
from acclimate.methods.delta import per_row, using
from acclimate.models.collate import collate
from acclimate.models.load import load
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from bench.lines import read
from bench.material import MIXED
from bench.shared import DEVICE, DTYPES
from bench.turns import Side

ROWS = 16


@torch.no_grad()
def ours(folder: Path, dtype: str = "float32") -> Side:
    """Log-probabilities of 16 completions, every adapter for every fourth. Units are tokens; parity is their sum."""
    model = load(str(folder / "base"), dtype=DTYPES[dtype]).model.eval().to(DEVICE)
    for name in MIXED:
        load_adapter(model, folder / "mixed" / name, name)
    rows = [Encoded(tuple(ids), tuple(map(bool, scored))) for ids, scored in _rows(folder)]
    batch = collate(model, rows, 0)
    documents = [piece.length for piece in batch.pieces]  # the last of which may only round the length
    chosen = per_row([*_names(), *[None] * (len(documents) - ROWS)], documents)
    with using(model, chosen):
        yield from _told(lambda: float(logprobs(model, batch).sum()), sum(batch.lengths))


@torch.no_grad()
def peft(folder: Path, dtype: str = "float32") -> Side:
    """The same of PeftModel, with padding on the right; logits of all places, as it comes."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype])
    model = PeftModel.from_pretrained(base, folder / "mixed" / MIXED[0], adapter_name=MIXED[0])
    for name in MIXED[1:]:
        model.load_adapter(folder / "mixed" / name, name)
    model.eval().to(DEVICE)
    rows = _rows(folder)
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows], device=DEVICE)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows], device=DEVICE)
    scored = torch.tensor([said + [0] * (width - len(said)) for _, said in rows], device=DEVICE).bool()[:, 1:]

    def total() -> float:
        logits = model(input_ids=ids, attention_mask=mask, adapter_names=_names()).logits[:, :-1]
        return float(logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[scored].sum())

    yield from _told(total, int(mask.sum()))


def _told(total: Any, tokens: int) -> Iterator[dict[str, float]]:
    for number in count():
        found = total()
        yield {"units": tokens} if number else {"total": found}


def _names() -> list[str]:
    return [MIXED[i % len(MIXED)] for i in range(ROWS)]


def _rows(folder: Path) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"], row["completion_mask"]) for row in read(folder / "rows.jsonl")[:ROWS]]


WORKS: dict[str, Any] = {"ours": ours, "peft": peft}
