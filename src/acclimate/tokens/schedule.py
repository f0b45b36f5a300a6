"""Which rows make up which step: a pure function of the lengths and a seed, so that any step can be made again."""

from collections.abc import Sequence

import numpy as np

from acclimate.errors import DataError

PADDING = 96  # tokens: computing so many for nothing costs about what one more pass through a small model does


def epochs(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` rows in one pass over the data."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(count)]


def plan(lengths: Sequence[int], tokens_per_step: int, steps: int, seed: int) -> list[tuple[int, ...]]:
    """The rows of each step: whole rows in shuffled order, as many as fit into `tokens_per_step`.

    A row that is longer than the budget is a step of its own. The heaviest step comes first, so that whatever does not fit
    into memory fails at once.
    """
    if not lengths:
        raise DataError("There is no row to train on.")
    done: list[tuple[int, ...]] = []
    current: list[int] = []
    used, epoch = 0, 0
    while len(done) < steps:
        for row in epochs(len(lengths), seed, epoch):
            if current and used + lengths[row] > tokens_per_step:
                done.append(tuple(current))
                current, used = [], 0
            current.append(row)
            used += lengths[row]
        epoch += 1
    done = done[:steps]
    return _heaviest_first(done, lengths)


def _heaviest_first(steps: list[tuple[int, ...]], lengths: Sequence[int]) -> list[tuple[int, ...]]:
    weight = [sum(lengths[r] ** 2 for r in rows) + 1000 * sum(lengths[r] for r in rows) for rows in steps]
    heaviest = max(range(len(steps)), key=weight.__getitem__) if steps else 0
    if steps:
        steps[0], steps[heaviest] = steps[heaviest], steps[0]
    return steps


def passes(rows: Sequence[int], lengths: Sequence[int], tokens_per_pass: int) -> list[tuple[int, ...]]:
    """A step cut into what goes through the model at once; sums and counts make the cut invisible."""
    cut: list[list[int]] = [[]]
    used = 0
    for row in rows:
        if cut[-1] and used + lengths[row] > tokens_per_pass:
            cut.append([])
            used = 0
        cut[-1].append(row)
        used += lengths[row]
    return [tuple(part) for part in cut if part]


def even_passes(rows: Sequence[int], lengths: Sequence[int], tokens_per_pass: int) -> list[tuple[int, ...]]:
    """As `passes`, for rows that are padded to the longest beside them: rows of like length together, shorter ones first.

    Padding counts among the tokens of a pass, which ends before it has more than PADDING of it.

    >>> even_passes(range(6), [300, 100, 310, 100, 110, 290], 1000), even_passes(range(3), [3, 9, 4], 15)
    ([(1, 3, 4), (5, 0, 2)], [(0, 2), (1,)])
    """
    cut: list[list[int]] = [[]]
    used = 0
    for row in sorted(rows, key=lengths.__getitem__):
        padded, real = lengths[row] * (len(cut[-1]) + 1), used + lengths[row]
        if cut[-1] and (padded > tokens_per_pass or padded - real > PADDING):
            cut.append([])
            used = 0
        cut[-1].append(row)
        used += lengths[row]
    return [tuple(part) for part in cut if part]
