"""A batch is a set of examples; packing is invisible; losses equal slow loops written from the definition (G9–G14)."""

import copy
from itertools import pairwise

import pytest
import torch

from acclimate.generation.score import score
from acclimate.methods import METHODS, LoRA
from acclimate.methods.delta import adapt, trainable
from acclimate.models.collate import collate
from acclimate.models.logprobs import ROWS_AT_ONCE, logprobs
from acclimate.models.outline import outline
from acclimate.objectives import OBJECTIVES
from acclimate.tokens.batch import pack, pad
from acclimate.tokens.codec import Encoded
from acclimate.tokens.schedule import PADDING, even_passes, passes, plan
from acclimate.training.fit import fit
from tests import tiny
from tests.hand import slow_logprobs

WRITERS = ["llama", "gpt2", "t5", "bart"]
STREAMS = ["llama", "gpt2"]
PAD = 2  # also the end-of-text id of the tiny models


def rows_for(model, seed=0, lengths=(5, 9, 4, 7, 12, 6)):
    """Rows of ids among which the pad id occurs inside prompts as well."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, tiny.VOCAB, (length,), generator=draw).tolist()
        ids[1] = PAD
        source = torch.randint(3, tiny.VOCAB, (length + number % 3,), generator=draw).tolist()
        reads = model.config.is_encoder_decoder
        scored = (True,) * length if reads else (False,) * 2 + (True,) * (length - 2)
        found.append(Encoded(tuple(ids), scored, tuple(source) if reads else (), f"f:{number}"))
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_log_probabilities_equal_the_slow_loop(name):
    model = tiny.build(name)
    rows = rows_for(model)
    expected = torch.cat([slow_logprobs(model, row) for row in rows])
    torch.testing.assert_close(logprobs(model, collate(model, rows, PAD)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("build", [pack, pad])
def test_an_end_that_is_the_pad_id_is_learned(name, build):
    """Most tokenizers pad with the end of text; what the loss counts is told by the row, never by the id."""
    model = tiny.build(name)
    rows = [row._replace(ids=(*row.ids[:-1], PAD)) for row in rows_for(model)]
    batch = pack(rows) if build is pack else pad(rows, PAD)
    if model.config.is_encoder_decoder:
        batch = collate(model, rows, PAD)
    last = [int(batch.targets[batch.owner == number][-1]) for number in range(len(rows))]
    assert last == [PAD] * len(rows)
    expected = torch.cat([slow_logprobs(model, row) for row in rows])
    torch.testing.assert_close(logprobs(model, batch), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("build", [pack, lambda rows: pad(rows, PAD)], ids=["pack", "pad"])
def test_the_first_token_of_a_document_is_asked_of_nobody(build):
    """Of running text all is scored, but nothing comes before its first token, least of all the document before."""
    model = tiny.build("gpt2")
    rows = [row._replace(scored=(True,) * len(row.ids)) for row in rows_for(model)]
    batch = build(rows)
    for number, row in enumerate(rows):
        assert batch.targets[batch.owner == number].tolist() == list(row.ids[1:])
    after = [row._replace(scored=(False, *row.scored[1:])) for row in rows]
    expected = torch.cat([slow_logprobs(model, row) for row in after])
    torch.testing.assert_close(logprobs(model, batch), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", STREAMS)
def test_packed_equals_padded_and_a_document_cannot_move_its_neighbour(name):
    model = tiny.build(name)
    rows = rows_for(model)
    assert outline(model).packs
    packed, padded = logprobs(model, pack(rows)), logprobs(model, pad(rows, PAD))
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-9)
    other = [rows[0]._replace(ids=tuple(reversed(rows[0].ids))), *rows[1:]]
    moved = logprobs(model, pack(other))
    first = pack(rows).owner == 0
    assert torch.equal(moved[~first], packed[~first])
    assert not torch.allclose(moved[first], packed[first])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("objective", ["lm", "sequence_lm"])  # of comparisons: test_preference_objectives.py
@pytest.mark.parametrize("cut", [[6], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1], [5, 1]])
def test_every_cut_into_batches_gives_the_same_step(name, objective, cut):
    base = adapt(tiny.build(name), LoRA(rank=2), seed=1)
    for parameter in trainable(base).values():
        torch.nn.init.normal_(parameter, std=0.1)
    rows = rows_for(base)

    def step(sizes):
        model = copy.deepcopy(base)
        parts, at = [], 0
        for size in sizes:
            parts.append(collate(model, rows[at : at + size], PAD))
            at += size
        sgd = torch.optim.SGD(trainable(model).values(), 1.0)
        (done,) = fit(model, [parts], OBJECTIVES[objective](), sgd, rate=lambda i: 1.0, max_norm=1e9)
        return done, trainable(model)

    whole, weights = step([6])
    same, others = step(cut)
    assert same.loss == pytest.approx(whole.loss, abs=1e-9)
    assert same.norm == pytest.approx(whole.norm, abs=1e-9)
    assert (same.scored, same.tokens) == (whole.scored, whole.tokens)
    for path, weight in weights.items():
        torch.testing.assert_close(others[path], weight, rtol=0, atol=1e-9)


def test_token_mean_and_sequence_mean_by_hand():
    lp, owner = torch.tensor([-1.0, -2.0, -3.0, -10.0]), torch.tensor([0, 0, 0, 1])
    from acclimate.objectives.lm import by_row, by_token

    token, row = by_token(lp), by_row(lp, owner, 3)
    assert float(token.total / token.count) == pytest.approx(4.0)  # (1 + 2 + 3 + 10) / 4
    assert float(row.total / row.count) == pytest.approx(6.0)  # (2 + 10) / 2


def test_shapes_in_signatures_are_checked_in_every_test():
    from jaxtyping import TypeCheckError

    from acclimate.objectives.lm import by_row

    with pytest.raises(TypeCheckError):
        by_row(torch.zeros(3), torch.zeros(4, dtype=torch.long), 1)


def test_the_loss_is_in_nats_and_counts_scored_tokens_only():
    model = tiny.build("llama")
    rows = rows_for(model)
    expected = -torch.cat([slow_logprobs(model, row) for row in rows]).mean()
    adapt(model, METHODS["lora"]())
    (done,) = fit(
        model,
        [[collate(model, rows, PAD)]],
        OBJECTIVES["lm"](),
        torch.optim.SGD(trainable(model).values(), 0.0),
        rate=lambda i: 0.0,
    )
    assert done.loss == pytest.approx(float(expected), abs=1e-9)
    assert done.scored == sum(sum(row.scored) for row in rows)
    assert done.tokens == sum(len(row.ids) for row in rows)


def test_chunked_loss_equals_the_naive_one_and_never_holds_tokens_times_vocabulary():
    model = adapt(tiny.build("llama"), METHODS["full"]())
    length = ROWS_AT_ONCE + 40
    model.config.max_position_embeddings = 2 * length
    ids = tuple(torch.randint(3, tiny.VOCAB, (length,), generator=torch.Generator().manual_seed(3)).tolist())
    row = Encoded(ids, (False, *[True] * (length - 1)))
    batch = pack([row])
    sizes = []
    handle = model.lm_head.register_forward_hook(lambda m, x, y: sizes.append(y.shape[0]))
    loss = -logprobs(model, batch).sum()
    loss.backward()
    handle.remove()
    chunked = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert max(sizes) <= ROWS_AT_ONCE
    model.zero_grad()
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    naive = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(chunked[name], parameter.grad, rtol=0, atol=1e-9)


def test_unscored_rows_never_reach_the_head():
    model = tiny.build("llama")
    rows = rows_for(model)
    outline(model)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[0]))
    logprobs(model, pack(rows))
    handle.remove()
    assert sum(seen) == sum(sum(row.scored) for row in rows)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("budget", [1, 16, 10_000])
def test_scores_do_not_depend_on_batch_order_or_budget(name, budget):
    model = tiny.build(name)
    rows = rows_for(model)
    rows.append(rows[1]._replace(ids=(*rows[1].ids[:-1], 7)))  # shares its input with rows[1]
    rows.append(rows[4]._replace(ids=rows[4].ids[:6], scored=rows[4].scored[:6]))  # begins the input of rows[4]
    alone = [float(slow_logprobs(model, row).sum()) for row in rows]
    assert score(model, rows, PAD, budget=budget) == pytest.approx(alone, abs=1e-9)
    assert score(model, rows[::-1], PAD, budget=budget) == pytest.approx(alone[::-1], abs=1e-9)


def test_shared_inputs_are_computed_once():
    model = tiny.build("llama")
    row = rows_for(model)[4]
    labels = [row._replace(ids=(*row.ids[:-1], i)) for i in (5, 6, 7, 8)]
    tokens = []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, x, y: tokens.append(x[0].numel()))
    outline(model)
    tokens.clear()
    score(model, labels, PAD)
    handle.remove()
    assert sum(tokens) == len(row.ids)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_lower_precision_stays_near(dtype, bound):
    exact = tiny.build("llama")
    rows = rows_for(exact)
    wanted = logprobs(exact, pack(rows))
    found = logprobs(exact.to(dtype), pack(rows))
    assert found.dtype == torch.float32
    assert (found.double() - wanted).abs().mean().item() < bound


def test_a_long_stream_is_rounded_and_nobody_sees_it():
    model = tiny.build("llama")
    rows = rows_for(model, lengths=(90, 70, 60, 55, 50))
    batch = pack(rows)
    assert (batch.ids.shape[1], batch.tokens, batch.pieces[-1]) == (384, 325, (325, 59, -1))
    assert len(batch.targets) > 64
    alone = torch.cat([logprobs(model, pack([row])) for row in rows])
    torch.testing.assert_close(logprobs(model, batch), alone, rtol=0, atol=1e-9)
    logprobs(model, batch).sum().backward()
    together = model.lm_head.weight.grad.clone()
    model.zero_grad()
    for row in rows:
        logprobs(model, pack([row])).sum().backward()
    torch.testing.assert_close(together, model.lm_head.weight.grad, rtol=0, atol=1e-9)


def windowed(window):
    """A Mistral whose tokens see no farther back than `window`."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=tiny.VOCAB, num_key_value_heads=2, sliding_window=window, **shape)
    return MistralForCausalLM(config).double().eval()


@pytest.mark.parametrize("window", [4, 8])
def test_a_document_longer_than_the_sliding_window_packs_all_the_same(window):
    model = windowed(window)
    rows = rows_for(model)
    expected = torch.cat([slow_logprobs(model, row) for row in rows])
    assert outline(model).packs
    torch.testing.assert_close(logprobs(model, pack(rows)), expected, rtol=0, atol=1e-9)


PREAMBLE = tuple(range(3, 3 + 9))


def with_a_preamble(model):
    """Rows that begin alike; of one everything but its last id is what all begin with, of two a part of it is scored."""
    begin = PREAMBLE
    rows = [row._replace(ids=begin + row.ids, scored=(False,) * 9 + row.scored) for row in rows_for(model)]
    rows.append(Encoded((*begin, 7), (False,) * 9 + (True,)))
    return [
        *rows[:3],
        *(row._replace(scored=(False,) * 5 + (True,) * (len(row.ids) - 5)) for row in rows[3:5]),
        *rows[5:],
    ]


@pytest.mark.parametrize("name", STREAMS)
def test_what_rows_begin_with_is_read_once_and_changes_nothing(name):
    model = tiny.build(name)
    rows = with_a_preamble(model)
    whole, once = pack(rows), pack(rows, least=5)
    assert (once.tokens, once.ids.shape[1]) == (whole.tokens, whole.ids.shape[1] - 9 * (len(rows) - 1))
    assert torch.equal(once.targets, whole.targets)
    torch.testing.assert_close(
        logprobs(model, once), torch.cat([slow_logprobs(model, row) for row in rows]), rtol=0, atol=1e-9
    )
    weight = next(p for n, p in model.named_parameters() if "embed_tokens" in n or "wte" in n)
    gradients = []
    for batch in (whole, once):
        weight.grad = None
        (logprobs(model, batch) * torch.arange(1.0, 1 + len(batch.targets))).sum().backward()
        gradients.append(weight.grad.clone())
    bound = {"llama": 1e-4, "gpt2": 1e-9}[name]  # Llama's norm is float32 in any model, and sums are rounded before it
    torch.testing.assert_close(gradients[1], gradients[0], rtol=bound, atol=bound)


@pytest.mark.parametrize("window", [4, 8, 12])
def test_a_window_reaches_back_into_what_is_shared(window):
    model = windowed(window)
    rows = with_a_preamble(model)
    expected = torch.cat([slow_logprobs(model, row) for row in rows])
    torch.testing.assert_close(logprobs(model, pack(rows, least=5)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_scores_do_not_depend_on_what_is_shared(name, budget):
    model = tiny.build(name)
    rows = with_a_preamble(model)
    alone = [float(slow_logprobs(model, row).sum()) for row in rows]
    assert score(model, rows, PAD, budget=budget) == pytest.approx(alone, abs=1e-9)


def test_evaluation_reads_the_preamble_once():
    model = tiny.build("llama")
    rows = with_a_preamble(model)
    outline(model)
    read = []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, x, y: read.append(x[0].numel()))
    score(model, rows, PAD)
    handle.remove()
    assert read == [9 + sum(len(row.ids) - 9 for row in rows[:-1])]  # the last one's input is what all begin with


def test_dropout_is_never_shared():
    model = tiny.llama(tied=True, dropout=0.1).double()
    rows = with_a_preamble(model)
    whole = sum(len(row.ids) for row in rows)
    assert collate(model.eval(), rows, PAD, share=True).streamed == whole - 9 * (len(rows) - 1)
    assert collate(model.train(), rows, PAD, share=True).streamed == whole
    plain = adapt(tiny.build("llama"), LoRA(2, dropout=0.1))
    assert collate(plain.train(), rows, PAD, share=True).streamed == whole
    assert collate(plain.eval(), rows, PAD, share=True).streamed == whole - 9 * (len(rows) - 1)


def test_a_reader_that_looks_ahead_shares_nothing():
    model = tiny.build("bert")
    assert not outline(model).shares
    assert all(piece.parent < 0 for piece in collate(model, with_a_preamble(model), PAD, share=True).pieces)


def test_attention_in_chunks_is_never_packed():
    model = tiny.build("llama")
    model.config.attention_chunk_size = 8
    assert not outline(model).packs


class TestPlan:
    lengths = (5, 9, 4, 7, 12, 6, 3, 8)

    def test_is_a_pure_function_of_its_arguments(self):
        assert plan(self.lengths, 16, 30, seed=3) == plan(self.lengths, 16, 30, seed=3)
        assert plan(self.lengths, 16, 30, seed=3) != plan(self.lengths, 16, 30, seed=4)

    def test_every_row_comes_once_a_pass_and_none_is_cut(self):
        steps = plan(self.lengths, 16, 60, seed=0)
        assert len(steps) == 60
        assert all(sum(self.lengths[r] for r in rows) <= 16 for rows in steps)
        counts = [sum(rows.count(r) for rows in steps) for r in range(8)]
        assert max(counts) - min(counts) <= 1

    def test_a_row_above_the_budget_is_a_step_of_its_own(self):
        assert (0,) in plan((50, 3, 4), 10, 6, seed=0)

    def test_the_heaviest_step_is_first(self):
        steps = plan(self.lengths, 20, 12, seed=1)
        weight = [sum(self.lengths[r] for r in rows) for rows in steps]
        assert weight[0] == max(weight)

    def test_passes_cut_a_step_without_losing_rows(self):
        assert passes((0, 1, 2, 3), self.lengths, 14) == [(0, 1), (2, 3)]
        assert passes((4, 0), self.lengths, 3) == [(4,), (0,)]

    @pytest.mark.parametrize("most", [60, 400, 4000])
    def test_rows_that_are_padded_lie_beside_rows_of_their_length(self, most):
        lengths = [7 * n % 60 + 1 for n in range(40)]
        cut = even_passes(range(40), lengths, most)
        sizes = [[lengths[row] for row in part] for part in cut]
        assert sorted(row for part in cut for row in part) == list(range(40))
        assert [size for part in sizes for size in part] == sorted(lengths)
        assert all(max(part) * len(part) <= most for part in sizes)
        assert all(max(part) * len(part) - sum(part) <= PADDING for part in sizes)
        assert len(cut) < 40
        if most == 4000:  # a pass ends only where its padding makes it
            ends = [[*part, following[0]] for part, following in pairwise(sizes)]
            assert all(max(part) * len(part) - sum(part) > PADDING for part in ends)
