"""llama.cpp through its Python binding, which pip builds for this machine's processor."""

import ctypes
import os
from itertools import count
from pathlib import Path
from typing import Any

import llama_cpp

from bench.lines import read
from bench.turns import Side

KINDS = {"float32": 0, "float16": 1, "bfloat16": 32}  # llama.cpp's numbers for the dtype of weights


def decode(folder: Path, batch: int = 1, new: int = 64, dtype: str = "float16") -> Side:
    """One prompt after the other, greedy, on all cores; weights as our own side's were read, in `dtype`."""
    model = llama_cpp.Llama(str(_written(folder, dtype)), n_ctx=256, n_threads=os.cpu_count(), verbose=False)
    prompts = [row["input_ids"] for row in read(folder / "prompts.jsonl")[:batch]]
    for number in count():
        found = [_greedy(model, prompt, new) for prompt in prompts]
        yield {"ids": [t for ids in found for t in ids]} if not number else {"units": sum(map(len, found))}


def _greedy(model: Any, prompt: list[int], new: int) -> list[int]:
    ids: list[int] = []
    model.reset()
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0, reset=True):
        if token == model.token_eos() or len(ids) == new:
            break
        ids.append(token)
    return ids


def _written(folder: Path, dtype: str) -> Path:
    """The package's weights in another dtype, written once by llama.cpp itself."""
    made = folder / f"{dtype}.gguf"
    if not made.exists():
        how = llama_cpp.llama_model_quantize_default_params()
        how.ftype, how.allow_requantize = KINDS[dtype], True
        source = str(folder / "model.gguf").encode()
        if llama_cpp.llama_model_quantize(source, str(made).encode(), ctypes.byref(how)):
            raise RuntimeError(f"llama.cpp could not write {made}.")
    return made


WORKS: dict[str, Any] = {"decode": decode}
