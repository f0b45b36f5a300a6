"""Beam search: the completion with the best score among those that a beam of partial ones leads to.

The score is (sum of log-probabilities) / length ** length_penalty, the terminator counted in both; with a penalty of 1
it is the mean. At every step the best `width` unfinished continuations of a prompt live on; a continuation that ends
among the best `width` of all is finished. A prompt is done when `width` completions are finished (Sutskever et al.
2014, arXiv:1409.3215, section 3.2, with the beam refilled), or when no live one can overtake the best finished.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acclimate.generation.draft import Draft, Ends
from acclimate.generation.samplers import Beam
from acclimate.models.cache import extend, select
from acclimate.models.prefill import prefill


@dataclass(frozen=True)
class Search:
    """One prompt's beam, best first: `live[i]` is draft `parents[i]` of the beam before, grown by `tokens[i]`."""

    live: tuple[Draft, ...] = (Draft(),)
    parents: tuple[int, ...] = (0,)
    tokens: tuple[int, ...] = ()
    finished: tuple[Draft, ...] = ()


def search(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    beam: Beam,
    ends: Ends,
    pad: int,
    stop_check: Callable[[], None] | None = None,
) -> list[Draft]:
    """The best completion of each prompt; prompts share the forward and nothing else."""
    searches = [Search() for _ in prompts]
    logits, past = prefill(model, prompts, pad)
    while True:
        if stop_check is not None:
            stop_check()
        before = [len(one.live) for one in searches]
        blocks = torch.split(logits.log_softmax(-1), before)
        searches = [step(one, block, beam, ends) if one.live else one for one, block in zip(searches, blocks)]
        offsets = [sum(before[:place]) for place in range(len(before))]
        rows = [offset + parent for one, offset in zip(searches, offsets) for parent in one.parents]
        if not rows:
            return [max(one.finished, key=lambda draft: score(draft, beam)) for one in searches]
        ids = torch.tensor([token for one in searches for token in one.tokens], device=logits.device)
        logits, past = extend(model, ids, select(past, rows))


def score(draft: Draft, beam: Beam) -> float:
    """Sum of log-probabilities over length ** length_penalty."""
    return draft.total / math.pow(len(draft.logprobs), beam.length_penalty)


def step(one: Search, logprobs: Tensor, beam: Beam, ends: Ends) -> Search:
    """The beam after one more token; logprobs (live, vocab) are those of the token after each live draft."""
    grown = _grow(one.live, logprobs, beam, ends)
    finished = one.finished + tuple(draft for _, _, draft in grown[: beam.width] if draft.finish)
    live = [triple for triple in grown if not triple[2].finish][: beam.width]
    if not live or len(finished) >= beam.width or _settled(live[0][2], finished, beam, ends):
        return Search((), (), (), finished)
    parents, tokens, drafts = zip(*live)
    return Search(drafts, parents, tokens, finished)


def _grow(live: Sequence[Draft], logprobs: Tensor, beam: Beam, ends: Ends) -> list[tuple[int, int, Draft]]:
    """(parent, token, draft) of the likeliest continuations, best first; at least `width` of them do not terminate."""
    totals = logprobs.new_tensor([draft.total for draft in live])
    sums = (totals[:, None] + logprobs).flatten()
    wanted = beam.width * (1 + max(1, len(ends.terminators)))
    places = sums.topk(min(wanted, len(sums))).indices
    grown = []
    for place, logprob in zip(places.tolist(), logprobs.flatten()[places].tolist()):
        parent, token = divmod(place, logprobs.shape[1])
        grown.append((parent, token, live[parent].add(token, logprob, ends)))
    return grown


def _settled(best: Draft, finished: Sequence[Draft], beam: Beam, ends: Ends) -> bool:
    """Whether the best live draft, were all its coming tokens certain, could not overtake the best finished one."""
    if not finished:
        return False
    length = ends.max_new if beam.length_penalty > 0 else len(best.logprobs) + 1
    return max(score(draft, beam) for draft in finished) >= best.total / math.pow(length, beam.length_penalty)
