"""Decoding: prompts in, completions out. One loop serves batches and streams.

Prompts are sorted by length and cut into batches that fit a budget of tokens, the costliest first. A row that is done
leaves the batch, and its part of the cache with it. What a row becomes depends on its prompt, its place in the list of
prompts and the seed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.errors import InputError, ModelError
from acclimate.generation.beam import search
from acclimate.generation.draft import Draft, Ends, Generated
from acclimate.generation.samplers import Beam, Sampler, uniforms
from acclimate.generation.stops import Stops
from acclimate.models.cache import context, extend, select, starts
from acclimate.models.logits import logsumexp
from acclimate.models.prefill import prefill

ROW = 64  # tokens of the budget that a row costs at least: its logits are as wide as the vocabulary


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that still write."""

    places: tuple[int, ...]  # in the caller's list
    drafts: tuple[Draft, ...]
    seen: Tensor  # (rows, vocab) True = fed to the decoder already
    draws: Tensor  # (rows, max_new) in [0, 1)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler | Beam,
    *,
    terminators: frozenset[int],
    max_new: int,
    pad: int,
    stops: Stops | None = None,
    seed: int = 0,
    batch_tokens: int = 8192,
    stop_check: Callable[[], None] | None = None,
) -> list[Generated]:
    """One completion for each prompt, in order.

    prompts: token ids; of the encoder where the model has one. max_new: tokens a completion may have. pad: any id.
    batch_tokens: prompt and completion tokens held at once, which bounds memory; a single row may exceed it.
    stop_check: called before every step; what it raises ends the work. The model may be in any mode and is left in it.
    InputError, ModelError: an empty or too long prompt, a model that writes nothing or computes NaN.
    """
    _check(model, prompts, max_new)
    ends = Ends(terminators, max_new, stops)
    done: dict[int, Generated] = {}
    for places in batches([len(prompt) for prompt in prompts], max_new, batch_tokens, sampler):
        batch = [prompts[place] for place in places]
        drafts: Iterable[tuple[int, Draft]]
        if isinstance(sampler, Beam):
            drafts = zip(places, search(model, batch, sampler, ends, pad, stop_check))
        else:
            drafts = _write(model, batch, places, sampler, ends, pad, seed, stop_check)
        done |= {place: draft.generated for place, draft in drafts if draft.finish}
    return [done[place] for place in range(len(prompts))]


def stream(
    model: nn.Module,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    terminators: frozenset[int],
    max_new: int,
    stops: Stops | None = None,
    seed: int = 0,
    stop_check: Callable[[], None] | None = None,
) -> Iterator[int]:
    """The ids of `generate(model, [prompt], …)`, each as soon as it is drawn; `stops.pieces` turns them into text."""
    if isinstance(sampler, Beam):
        raise InputError("A beam search knows its first token only at its end; stream with Greedy or Sample.")
    _check(model, [prompt], max_new)
    ends = Ends(terminators, max_new, stops)
    drafts = _write(model, [prompt], (0,), sampler, ends, 0, seed, stop_check)
    return (draft.ids[-1] for _, draft in drafts if len(draft.ids) == len(draft.logprobs))  # all but a terminator


def batches(lengths: Sequence[int], max_new: int, budget: int, sampler: Sampler | Beam) -> list[tuple[int, ...]]:
    """Places of prompts, longest first, as many to a batch as the budget of tokens holds; at least one."""
    beams = sampler.width if isinstance(sampler, Beam) else 1
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    result = []
    while order:
        cost = beams * max(lengths[order[0]] + max_new, ROW)
        size = max(1, budget // cost)
        result.append(tuple(order[:size]))
        order = order[size:]
    return result


def _write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    places: tuple[int, ...],
    sampler: Sampler,
    ends: Ends,
    pad: int,
    seed: int,
    stop_check: Callable[[], None] | None,
) -> Iterator[tuple[int, Draft]]:
    """(place, draft with one more token drawn) of every row that still writes, step after step."""
    logits, past = prefill(model, prompts, pad)
    rows = _begin(model, prompts, places, logits, ends, seed)
    for step in range(ends.max_new):
        if stop_check is not None:
            stop_check()
        ids = sampler(logits, rows.seen, rows.draws[:, step])
        drawn = zip(rows.drafts, ids.tolist(), _logprobs(logits, ids))
        rows = replace(rows, drafts=tuple(draft.add(token, logprob, ends) for draft, token, logprob in drawn))
        yield from zip(rows.places, rows.drafts)
        keep = [row for row, draft in enumerate(rows.drafts) if not draft.finish]
        if not keep:
            return
        if len(keep) < len(rows.drafts):
            rows, past, ids = _select(rows, keep), select(past, keep), ids[keep]
        logits, past = extend(model, ids, past)
        rows.seen.scatter_(1, ids[:, None], True)


def _begin(
    model: nn.Module, prompts: Sequence[Sequence[int]], places: tuple[int, ...], logits: Tensor, ends: Ends, seed: int
) -> Rows:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        # An id past the end of the vocabulary is a soft prompt's: it can be read, never written.
        seen[row, [token for token in starts(model, prompt) if token < logits.shape[1]]] = True
    draws = torch.stack([uniforms(seed, place, ends.max_new) for place in places]).to(logits.device)
    return Rows(places, (Draft(),) * len(places), seen, draws)


def _select(rows: Rows, keep: Sequence[int]) -> Rows:
    kept = torch.tensor(keep, device=rows.seen.device)
    places, drafts = tuple(rows.places[row] for row in keep), tuple(rows.drafts[row] for row in keep)
    return Rows(places, drafts, rows.seen[kept], rows.draws[kept])


def _logprobs(logits: Tensor, ids: Tensor) -> list[float]:
    chosen = logits.gather(1, ids[:, None]).squeeze(1)
    values: list[float] = (chosen - logsumexp(logits)).tolist()
    return values


def _check(model: nn.Module, prompts: Sequence[Sequence[int]], max_new: int) -> None:
    """InputError or ModelError for what cannot be written."""
    config: Any = model.config
    writes: Any = model.can_generate
    if not writes():
        raise ModelError(
            f"{type(model).__name__} has no head that writes text; load a causal or an encoder-decoder model."
        )
    if max_new < 1:
        raise InputError(f"max_new is {max_new}; at least 1 token must be asked for.")
    room = context(model)
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"Prompt {place} has no tokens; there is nothing to continue.")
        needed = max(len(prompt), max_new) if config.is_encoder_decoder else len(prompt) + max_new
        if room is not None and needed > room:
            raise ModelError(
                f"Prompt {place} has {len(prompt)} tokens and {max_new} more are asked for; "
                f"{type(model).__name__} was built for {room} in all."
            )
