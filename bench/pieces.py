"""python -m bench.pieces: every compiled piece beside the plain function that it replaces, on this machine, in milliseconds.

At the sizes of SmolLM2-135M; the best of some turns each, by the clock on the wall. Pieces that this machine lacks are left out.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from acclimate.models import flash, kernels, layers, logits, matrices, rows
from acclimate.models.attention import by_document
from acclimate.models.cache import Past, extend
from acclimate.models.frozen_head import _said
from acclimate.models.load import load
from acclimate.models.prefill import prefill
from acclimate.tokens.tree import Piece

HIDDEN, INNER, VOCAB, HEADS, GROUPS, D = 576, 1536, 49152, 9, 3, 64
TOKENS, DOCUMENT = 1024, 256
BF16 = torch.bfloat16


class Pair(NamedTuple):
    """What is done, plainly and by the piece."""

    name: str
    plain: Callable[[], Any]
    piece: Callable[[], Any]


def pairs() -> Iterator[Pair]:
    """Those that this machine has."""
    if isinstance(kernels.library(), str):
        return
    x, wide = _some(TOKENS, HIDDEN), _some(TOKENS, INNER)
    for few in (1, 8, 32):
        weight, asked = _some(INNER, HIDDEN), _some(few, HIDDEN)
        yield Pair(
            f"product, rows: {few}",
            lambda w=weight, a=asked: nn.functional.linear(a, w),
            lambda w=weight, a=asked: kernels.product(a, w),
        )
    if matrices.limit():
        narrow = _some(HIDDEN, INNER)
        yield Pair(
            f"product, rows: {TOKENS}",
            lambda: nn.functional.linear(wide, narrow),
            lambda: matrices.product(wide, narrow, True),
        )
    yield Pair("gate", lambda: nn.functional.silu(wide) * wide, lambda: rows.gate(wide, wide))
    norm = LlamaRMSNorm(HIDDEN).to(BF16).requires_grad_(False)
    yield Pair("norm", lambda: norm(x), lambda: rows.norm(x, norm.weight, norm.variance_epsilon)[0])
    for dtype in filter(flash.built, flash.WIDTHS):
        yield from _attention(dtype)
    said, targets = _some(256, VOCAB), torch.arange(256)
    yield Pair(
        "logits to log-probabilities and shares",
        lambda: _logarithms(said, targets),
        lambda: logits.survey(said, targets, 1.0, True)[0],
    )
    step = said[:32].float()
    yield Pair("likeliest of 32 rows", lambda: step.argmax(-1), lambda: logits.likeliest(step))


def _attention(dtype: torch.dtype) -> Iterator[Pair]:
    pieces = tuple(Piece(start, DOCUMENT, -1) for start in range(0, TOKENS, DOCUMENT))
    q, k, v = (torch.randn(1, h, TOKENS, D).to(dtype).requires_grad_() for h in (HEADS, GROUPS, GROUPS))

    def plain() -> Tensor:
        there, flash.there = flash.there, lambda dtype: False
        try:
            return by_document(nn.Module(), q, k, v, None, document_pieces=pieces, is_causal=True)[0]
        finally:
            flash.there = there

    def piece() -> Tensor:
        return flash.attend(q, k, v, pieces, True, D**-0.5)

    name = str(dtype).removeprefix("torch.")
    yield Pair(f"attention in {name}, forth", plain, piece)
    yield Pair(
        f"attention in {name}, forth and back", lambda: plain().sum().backward(), lambda: piece().sum().backward()
    )


def steps() -> Iterator[Pair]:
    """Decoding steps of several rows behind prompts of 32 tokens: layer by layer, and in one call."""
    model = load("smollm2-135m-instruct", dtype=BF16).model.eval()
    if layers.plan(model) is None:
        return
    for count in (1, 8, 32):
        ids = torch.arange(count) + 5
        _, past = prefill(model, [[7 + row % 90] * 32 for row in range(count)], 0)
        whole = _Stepping(model, ids, past)
        _, past = prefill(model, [[7 + row % 90] * 32 for row in range(count)], 0)
        yield Pair(f"decoding step, rows: {count}", _Stepping(model, ids, _by_layer(past)), whole)


def _by_layer(past: Past) -> Past:
    return replace(past, reader=replace(past.reader, whole=None))


class _Stepping:
    def __init__(self, model: nn.Module, ids: Tensor, past: Past) -> None:
        self.model, self.ids, self.past = model, ids, past

    def __call__(self) -> None:
        _, self.past = extend(self.model, self.ids, self.past)


def _logarithms(said: Tensor, targets: Tensor) -> Tensor:
    chosen, _, logs = _said(said, targets, 1.0)
    logs.exp_()
    return chosen


def _some(count: int, width: int) -> Tensor:
    return torch.randn(count, width).to(BF16)


def main() -> None:
    """Print a line for each."""
    torch.manual_seed(0)
    for pair in (*pairs(), *steps()):
        plain, piece = kernels.fastest(pair.plain, pair.piece, clock=time.perf_counter, seconds=0.5)
        print(f"{pair.name:<40} {plain * 1e3:8.2f} {piece * 1e3:8.2f}   {plain / piece:.1f}×", flush=True)


if __name__ == "__main__":
    main()
