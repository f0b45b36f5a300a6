"""transformers' own `generate`."""

from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.lines import read
from bench.shared import DEVICE, DTYPES
from bench.turns import Side


def decode(folder: Path, batch: int = 32, new: int = 64, adapter: str = "", dtype: str = "float32") -> Side:
    """model.generate, greedy, with left padding; an adapter is PEFT's."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype])
    model = (PeftModel.from_pretrained(model, str(folder / adapter)) if adapter else model).eval().to(DEVICE)
    rows = [row["input_ids"] for row in read(folder / "prompts.jsonl")[:batch]]
    width, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=DEVICE)
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    for number in count():
        written = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=pad)
        found = [_cut(row[width:].tolist(), ends) for row in written]
        yield {"ids": [t for row in found for t in row]} if not number else {"units": sum(map(len, found))}


def _cut(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


WORKS: dict[str, Any] = {"decode": decode}
