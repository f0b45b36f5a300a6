"""Log-probabilities of given texts: of labels after a prompt, of references, of running text."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acclimate.models.collate import WORTH, collate, streams
from acclimate.models.logprobs import judged, logprobs
from acclimate.models.modes import evaluating
from acclimate.models.outline import is_encoder_decoder
from acclimate.tokens.batch import Batch, asked
from acclimate.tokens.codec import Encoded
from acclimate.tokens.tree import beginning


def score(
    model: nn.Module,
    rows: Sequence[Encoded],
    fill: int,
    *,
    budget: int = 4096,
    tick: Callable[[int], None] | None = None,
) -> list[float]:
    """Σ log p of the scored tokens of each row, natural log, in the order given; at most `budget` tokens at once.

    Rows whose inputs are equal, or begin another row's input, are computed once: the labels of one prompt share its pass.
    So is what several rows begin with, such as instructions, shots and the context of several endings.
    tick(n) is told after every batch that n more rows are done.
    """
    sums = _summed(model, rows, fill, lambda model, batch: logprobs(model, batch)[:, None], budget, tick)
    return [total for (total,) in sums]


def judge(
    model: nn.Module,
    rows: Sequence[Encoded],
    fill: int,
    *,
    budget: int = 4096,
    tick: Callable[[int], None] | None = None,
) -> list[tuple[float, bool]]:
    """As `score`, and whether each scored token is the likeliest in its place: what greedy decoding would write."""
    sums = _summed(model, rows, fill, judged, budget, tick)
    counts = [sum(row.scored if row.source else row.scored[1:]) for row in rows]
    return [(total, hits == count) for (total, hits), count in zip(sums, counts, strict=True)]


@torch.no_grad()
def _summed(
    model: nn.Module,
    rows: Sequence[Encoded],
    fill: int,
    ask: Callable[[nn.Module, Batch], Float[Tensor, "n k"]],
    budget: int,
    tick: Callable[[int], None] | None,
) -> list[list[float]]:
    """The k numbers that `ask` gives for each place, summed over the places of each row."""
    results: list[list[float]] = [[]] * len(rows)
    sharing = not is_encoder_decoder(model) and _causal(model)
    shared = _hosts(rows) if sharing else {i: i for i in range(len(rows))}
    guests: dict[int, list[int]] = {}
    for guest, host in shared.items():
        guests.setdefault(host, []).append(guest)
    with evaluating(model):
        for hosts in _budgeted(list(guests), rows, budget, streams(model)):
            batch = collate(model, [rows[i] for i in hosts], fill, share=True)
            batch, members = _ask_for_guests(batch, hosts, guests, rows) if sharing else (batch, list(hosts))
            values = ask(model, batch).double().cpu()
            sums = torch.zeros(len(members), values.shape[1], dtype=torch.float64)
            sums.index_add_(0, batch.owner.cpu(), values)
            for member, value in zip(members, sums.tolist(), strict=True):
                results[member] = value
            if tick is not None:
                tick(len(members))
    return results


def _causal(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_decoder", False)) or (hasattr(model, "generate") and model.can_generate())  # type: ignore[operator]


def _hosts(rows: Sequence[Encoded]) -> dict[int, int]:
    """For each row the row whose input begins with its input (itself, if none is longer)."""
    inputs = [row.ids[:-1] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: inputs[i], reverse=True)
    hosts: dict[int, int] = {}
    host = -1
    for i in order:  # in descending order every prefix follows directly behind what it begins
        if host < 0 or inputs[host][: len(inputs[i])] != inputs[i]:
            host = i
        hosts[i] = host
    return hosts


def _ask_for_guests(
    batch: Batch, hosts: Sequence[int], guests: dict[int, list[int]], rows: Sequence[Encoded]
) -> tuple[Batch, list[int]]:
    """The hosts' batch, asked for the scored tokens of every guest."""
    members = [guest for host in hosts for guest in guests[host]]
    place = {host: p for p, host in enumerate(hosts)}
    questions = [
        (place[host], t, rows[guest].ids[t], m)
        for m, (host, guest) in enumerate((host, guest) for host in hosts for guest in guests[host])
        for t in range(1, len(rows[guest].ids))
        if rows[guest].scored[t]
    ]
    return asked(batch, questions), members


def _budgeted(members: Sequence[int], rows: Sequence[Encoded], budget: int, streamed: bool) -> list[list[int]]:
    """Rows in batches of `budget` tokens at most, of like length where they are padded, of like beginning in a stream.

    The largest batch comes first.
    """
    size = {i: rows[i].size for i in members}
    order = sorted(members, key=lambda i: (rows[i].ids, i) if streamed else (-size[i], i))
    own = {i: size[i] - _again(rows[before].ids, rows[i].ids) for before, i in pairwise(order)} if streamed else {}
    batches: list[list[int]] = []
    used = 0
    for i in order:
        more = own.get(i, size[batches[-1][0]] if batches else 0)
        if not batches or used + more > budget:
            batches.append([i])
            used = size[i]
        else:
            batches[-1].append(i)
            used += more
    return sorted(batches, key=lambda batch: -sum(size[i] for i in batch))


def _again(before: Sequence[int], ids: Sequence[int]) -> int:
    """Ids at the beginning of a row that need not be read again behind the row `before`."""
    shared = beginning(before, ids)
    return shared if shared >= WORTH else 0
