"""Comparisons for the tests of preferences: rows of ids with long shared prompts, and batches of them."""

import torch

from acclimate.models.collate import collate
from acclimate.tokens.codec import Encoded
from acclimate.tokens.pairs import Compared, Pairs, paired
from tests import tiny
from tests.hand import slow_logprobs

PAD = 2  # also the end-of-text id of the tiny models
SIZES = ((1, 2), (1, 2), (1, 2, 2), (2, 1), (1, 3, 2, 4))  # ranks of each row


def rows_for(model, prompt=10, sizes=SIZES, seed=0):
    """Prompts of `prompt` ids with completions of 2 to 6, each ended by the pad id, which occurs in prompts as well."""
    draw = torch.Generator().manual_seed(seed)
    ids = lambda n: tuple(torch.randint(3, tiny.VOCAB, (n,), generator=draw).tolist())  # noqa: E731
    found = []
    for number, ranks in enumerate(sizes):
        asked = (3 + number, PAD, *ids(prompt - 2))
        answers = [(*ids(1 + (number + i) % 5), PAD) for i, _ in enumerate(ranks)]
        if model.config.is_encoder_decoder:
            rows = [Encoded(a, (True,) * len(a), asked) for a in answers]
        else:
            rows = [Encoded(asked + a, (False,) * prompt + (True,) * len(a)) for a in answers]
        found.append(Compared(tuple(rows), ranks, f"f:{number}"))
    return found


def batch_of(model, rows, reference=True, share=True) -> Pairs:
    """One batch, with a reference that no model gave: −1.5, −2.5, … in the order of the documents."""
    documents = [each for row in rows for each in row.rows]
    made = paired(collate(model, documents, PAD, range(len(rows)), share=share), rows)
    if not reference:
        return made
    values = [known(row, i) for row in rows for i in range(len(row.rows))]
    return Pairs(**{**vars(made), "reference": torch.tensor(values, dtype=torch.float64)})


def known(row: Compared, i: int) -> float:
    """The reference of one completion, a function of its ids."""
    return -3.0 - (sum(row.rows[i].ids) % 17) / 4


def logprobs_of(model, row: Encoded) -> list[float]:
    """log p of every scored token."""
    return slow_logprobs(model, row).tolist()
