"""What rows begin with stands in a stream once: the tree against what it stands for, and the model against each row alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy
from acclimate.models import prefill as streams
from acclimate.models.cache import read
from acclimate.models.logprobs import logprobs
from acclimate.tokens.batch import pack
from acclimate.tokens.codec import Encoded
from acclimate.tokens.tree import tree
from tests import tiny

ids = st.lists(st.integers(3, 5), min_size=1, max_size=9).map(tuple)
A, B, C = (5, 9, 4, 11, 3, 8), (5, 9, 4, 12, 7, 7, 6), (10, 13, 9)
ENDS = ((6,), (7, 7, 8), (6, 9))
ROWS = [*((*A, *end) for end in ENDS), C, *((*B, 5, 5, 4, 4, *end) for end in ENDS), (*B, 3), (*A, *ENDS[0])]
ENCODED = [Encoded(row, (False, True, *(i % 3 > 0 for i in range(len(row) - 2)))) for row in ROWS]


def spelled(found, row):
    """The ids from the root to the leaf of a row."""
    parts, at = [], found.leaves[row]
    while at >= 0:
        piece = found.pieces[at]
        assert piece.length > 0
        assert piece.parent < at
        parts.append(found.ids[piece.start : piece.start + piece.length])
        at = piece.parent
    return tuple(i for part in reversed(parts) for i in part)


@given(st.lists(ids, min_size=1, max_size=10), st.integers(0, 4))
def test_every_row_is_the_way_to_its_leaf(rows, least):
    found = tree(rows, least)
    assert [spelled(found, row) for row in range(len(rows))] == rows
    assert len(set(found.leaves)) == len(rows)
    assert not {piece.parent for piece in found.pieces} & set(found.leaves)
    assert sum(piece.length for piece in found.pieces) == len(found.ids)
    shared = [found.pieces[piece.parent] for piece in found.pieces if piece.parent >= 0]
    assert all(piece.length >= least > 0 for piece in shared)


@given(st.lists(ids, min_size=1, max_size=10), st.integers(1, 4))
def test_what_two_rows_have_in_common_stands_there_once(rows, least):
    """No two pieces under one parent begin with `least` ids in common, but for the last id of a row, which is its own."""
    found = tree(rows, least)
    for one, other in (
        (p, q) for p in found.pieces for q in found.pieces if p.start < q.start and p.parent == q.parent
    ):
        begin, again = (found.ids[piece.start : piece.start + piece.length] for piece in (one, other))
        most = min(len(begin), len(again)) - 1
        assert most < least or begin[:least] != again[:least]


@given(st.lists(ids, min_size=1, max_size=6), st.integers(0, 3))
def test_a_place_in_a_document_is_found(rows, least):
    batch = pack([Encoded(row, (True,) * len(row)) for row in rows], least=least)
    for number, row in enumerate(rows):
        assert tuple(int(batch.ids[0, batch.place(number, t)]) for t in range(len(row))) == row
        assert [int(batch.positions[0, batch.place(number, t)]) for t in range(len(row))] == list(range(len(row)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("least", [1, 2, 4])
def test_branches_change_no_logprob_and_no_gradient(name, least):
    model = tiny.build(name)
    once, whole = pack(ENCODED, least=least), pack(ENCODED)
    assert whole.streamed == sum(map(len, ROWS))
    assert once.streamed < whole.streamed - 40
    weight = next(p for n, p in model.named_parameters() if "embed_tokens" in n or "wte" in n)
    found, gradients = [], []
    for batch in (whole, once):
        weight.grad = None
        found.append(logprobs(model, batch))
        (found[-1] * torch.arange(1.0, 1 + len(batch.targets))).sum().backward()
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9)
    bound = {"llama": 1e-4, "gpt2": 1e-9}[name]  # Llama's norm is float32 in any model, and sums are rounded before it
    torch.testing.assert_close(gradients[1], gradients[0], rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompts_are_read_once_and_remembered_as_if_alone(name, monkeypatch):
    """Logits, and what the next tokens see, of twice the same prompt, of prompts that begin alike and of another."""
    monkeypatch.setattr(streams, "WORTH", 3)
    model = tiny.build(name)
    tokens = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, out: tokens.append(given[0].numel()))
    streams.prefill(model, ROWS, 0)
    tokens.clear()
    logits, past = streams.prefill(model, ROWS, 0)
    assert tokens == [pack([Encoded(row, (False,) * len(row)) for row in ROWS[:-1]], least=3).streamed]
    for row, (prompt, said) in enumerate(zip(ROWS, logits, strict=True)):
        alone, memory = read(model, [prompt], 0)
        torch.testing.assert_close(said, alone[0], rtol=0, atol=1e-9)
        real = past.mask[row].bool()
        assert int(real.sum()) == len(prompt)
        for ours, theirs in zip(past.cache.layers, memory.cache.layers, strict=True):
            torch.testing.assert_close(ours.keys[row][:, real], theirs.keys[0], rtol=0, atol=1e-9)
            torch.testing.assert_close(ours.values[row][:, real], theirs.values[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_what_is_written_is_what_each_prompt_writes_alone(name):
    model = tiny.build(name)
    given = {"terminators": frozenset({1}), "max_new": 6, "pad": 0}
    together = generate(model, ROWS, Greedy(), **given)
    for prompt, found in zip(ROWS, together, strict=True):
        (alone,) = generate(model, [prompt], Greedy(), **given)
        assert found.ids == alone.ids
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-9)
