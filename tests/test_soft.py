"""Soft tokens wherever ids go: batches, streams, caches, text, and rows of several adapters (G10, G11, G24, G25)."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from acclimate.errors import ModelError
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Greedy
from acclimate.methods import Head, LoRA, PreEmbed, Prefix, PreLayer, PromptTuning
from acclimate.methods.delta import Method, activate, adapt, detach, disabled, merge, merged, per_row, trainable, using
from acclimate.methods.soft import Soft, add_soft, observed, placed, soft_of
from acclimate.models.heads import TaskModel
from acclimate.models.logprobs import logprobs
from acclimate.models.outline import outline
from acclimate.tokens.batch import pack, pad, pad_pairs
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.adapted import SOFT, SPECS, adapted, answers, bits, changed, checkpoint_layers, close, some_ids, train

ALONE = ("preembed", "prefix", "prelayer", "prompt")  # others change more than what is heard at soft tokens
soft_method = pytest.mark.parametrize("method", SOFT)
ROWS = ((5, 6, 7), (8, 9, 10, 11, 12), (13,), (14, 15, 16, 17))


def with_soft(model: nn.Module, rows: Sequence[Sequence[int]] = ROWS) -> list[tuple[int, ...]]:
    soft = soft_of(model)
    assert soft.front
    return [(*soft.front, *row, *soft.back) for row in rows]


def encoded(model: nn.Module) -> list[Encoded]:
    """Each row with its soft tokens, and an answer of two tokens that is scored."""
    rows = with_soft(model)
    return [Encoded((*row, 20, 21), (False,) * len(row) + (True, True)) for row in rows]


def test_rows_stand_at_their_ids() -> None:
    ids = torch.tensor([[9, 4, 10, 11, 12]])
    y, rows = torch.zeros(1, 5, 3), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    whole = placed(ids, y[..., :2], rows, 10)
    assert whole.tolist() == [[[0, 0], [0, 0], [1, 2], [3, 4], [0, 0]]]
    parts = placed(ids, y + 7, rows, 10, torch.tensor([2, 0]))
    assert parts.tolist() == [[[7, 7, 7], [7, 7, 7], [2, 7, 1], [4, 7, 3], [7, 7, 7]]]


@soft_method
@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_a_packed_stream_equals_each_row_alone(build: str, method: str) -> None:
    model = adapted(build, method)
    assert outline(model).packs
    rows = encoded(model)
    together = logprobs(model, pack(rows))
    alone = torch.cat([logprobs(model, pack([row])) for row in rows])
    padded = logprobs(model, pad(rows, fill=0))
    assert close(together, alone)
    assert close(padded, alone)


@soft_method
@pytest.mark.parametrize("build", ["t5", "bart"])
def test_what_an_encoder_reads_may_be_padded(build: str, method: str) -> None:
    model = adapted(build, method)
    rows = [Encoded((20, 21), (True, True), source=row) for row in with_soft(model)]
    alone = torch.cat([logprobs(model, pad_pairs([row], 0, 0)) for row in rows])
    assert close(logprobs(model, pad_pairs(rows, 0, 0)), alone)


@pytest.mark.parametrize("method", ALONE)
@pytest.mark.parametrize("build", ["llama", "gpt2", "t5"])
def test_text_does_not_depend_on_padding_or_on_the_cache(build: str, method: str) -> None:
    model = adapted(build, method)
    prompts = with_soft(model)
    asked = {"terminators": frozenset({2}), "max_new": 4, "pad": 0}
    together = generate(model, prompts, Greedy(), **asked)
    alone = [generate(model, [prompt], Greedy(), **asked)[0] for prompt in prompts]
    assert [g.ids for g in together] == [g.ids for g in alone]
    for prompt, written in zip(prompts, alone, strict=True):
        assert list(written.ids) == _uncached(model, prompt, len(written.ids))


@torch.no_grad()
def _uncached(model: nn.Module, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest ids, each found by reading everything from the start."""
    two, ids = model.config.is_encoder_decoder, []
    for _ in range(count):
        read = torch.tensor([[*prompt, *(() if two else ids)]])
        start = {"decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id, *ids]])} if two else {}
        ids.append(int(model(input_ids=read, **start).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("method", ALONE)
def test_without_its_soft_tokens_an_adapter_is_not_heard(method: str) -> None:
    for build in tiny.BUILDS:
        model = adapted(build, method)
        with torch.no_grad():
            plain = tiny.logits(model, some_ids())
        assert torch.equal(plain, answers(tiny.build(build)))
        assert not close(answers(model), plain, 0.01)


MIXED: dict[str, Method] = {
    "a": PromptTuning(3),
    "b": PromptTuning(5),
    "c": Prefix(2, 0, "random"),
    "d": PreLayer(1, 1),
    "e": LoRA(2),
}


@pytest.mark.parametrize("build", ["llama", "gpt2", "bert", "t5"])
def test_prompts_of_several_tasks_in_one_batch(build: str) -> None:
    model = tiny.build(build)
    for seed, (name, method) in enumerate(MIXED.items()):
        adapt(model, method, name=name, seed=seed)
        train(model)
    assert [soft_of(model, name) for name in "abcd"] == [
        ((96, 97, 98), ()),
        ((99, 100, 101, 102, 103), ()),
        ((104, 105), ()),
        ((106,), (107,)),
    ]
    assert soft_of(model, "e") == Soft()
    chosen = ("b", "a", None, "c", "a", "d", "e")
    ids = some_ids(len(chosen))
    separate = []
    for row, name in enumerate(chosen):
        with using(model, name):
            separate.append(answers(model, ids[row : row + 1])[0])
    with using(model, per_row(chosen)):
        mixed = answers(model, ids)
    assert all(close(got, wanted) for got, wanted in zip(mixed, separate, strict=True))
    assert not close(mixed[0], separate[1], 0.01)


def test_documents_of_a_stream_may_have_their_own_soft_tokens() -> None:
    model = tiny.build("llama")
    for seed, name in enumerate("abcd"):
        adapt(model, MIXED[name], name=name, seed=seed)
    assert outline(model).packs
    chosen = ("b", "d", None, "c")
    rows = []
    for name, words in zip(chosen, ROWS, strict=True):
        soft = Soft() if name is None else soft_of(model, name)
        rows.append(
            Encoded(
                (*soft.front, *words, *soft.back, 20), (False,) * (len(words) + len(soft.front + soft.back)) + (True,)
            )
        )
    batch = pack(rows)
    with using(model, per_row(chosen, batch.lengths)):
        together = logprobs(model, batch)
    for got, row, name in zip(together, rows, chosen, strict=True):
        with using(model, name):
            assert close(got, logprobs(model, pack([row]))[0])


def test_soft_tokens_of_another_adapter_are_refused() -> None:
    model = tiny.build("llama")
    adapt(model, PromptTuning(2), name="a")
    adapt(model, Prefix(3, 0), name="b")
    ours, theirs = torch.tensor([[98, 99, 100, 5]]), torch.tensor([[96, 97, 5, 6]])
    model(ours)
    with pytest.raises(
        ModelError, match="Id 96 is a soft token of another adapter; the one that answers knows 98 to 100"
    ):
        model(theirs)
    activate(model, "a")
    model(theirs)
    with pytest.raises(ModelError, match="Id 98 is a soft token of another adapter"):
        model(ours)
    with using(model, per_row(["b", "a"])):
        model(torch.cat([ours, theirs]))
    with using(model, per_row(["a", "b"])), pytest.raises(ModelError, match="soft token of another adapter"):
        model(torch.cat([ours, theirs]))
    with disabled(model), pytest.raises(ModelError, match="without soft tokens"):
        model(theirs)


@pytest.mark.parametrize("method", ALONE)
def test_no_weight_answers_for_a_soft_token(method: str) -> None:
    model = adapted("llama", method)
    before, answer = bits(model), answers(model)
    for merging in (merge, lambda m: merged(m).__enter__()):
        with pytest.raises(ModelError, match="cannot be merged: no single weight computes it"):
            merging(model)
    assert not changed(before, bits(model))
    assert torch.equal(answers(model), answer)


def test_a_freed_id_is_given_again() -> None:
    model = tiny.build("llama")
    adapt(model, PromptTuning(2), name="a")
    adapt(model, PreEmbed(1, 1), name="b")
    detach(model, "b")
    assert soft_of(adapt(model, Prefix(1, 0), name="c"), "c") == ((98,), ())
    detach(model, "a")
    assert add_soft(model.get_input_embeddings(), 2, "d") == 99


def test_whichever_answers_has_its_soft_tokens() -> None:
    model = adapt(tiny.build("llama"), PromptTuning(2), name="a")
    adapt(model, LoRA(2), name="b")
    assert soft_of(model) == soft_of(model, "b") == Soft()
    activate(model, "a")
    assert soft_of(model) == ((96, 97), ())
    activate(model, None)
    assert soft_of(model) == Soft()
    activate(model, per_row(["a"]))
    assert soft_of(model) == Soft()
    assert soft_of(tiny.build("llama")) == Soft()


def test_a_head_may_train_beside_them() -> None:
    model = adapt(tiny.build("bert_classifier"), PromptTuning(2), beside=Head())
    before = bits(model)
    train(model)
    moved = changed(before, bits(model))
    assert moved == {n for n in before if ".delta.default." in n}
    assert any(n.startswith("classifier") for n in moved)
    assert any("word_embeddings" in n for n in moved)


def test_checkpointed_layers_hear_the_ids_of_their_own_batch() -> None:
    """Two batches of other lengths and one batch of the same length again, each gone back through before the next."""
    gradients = []
    for checkpointed in (False, True):
        model = adapt(tiny.build("llama"), Prefix(2, 0, "random")).train()
        if checkpointed:
            checkpoint_layers(model)
        for words in (ROWS[0], ROWS[1], ROWS[1][::-1]):
            model(torch.tensor(with_soft(model, [words]))).logits.square().sum().backward()
        gradients.append([p.grad for p in trainable(model).values()])
    assert all(close(again, plain) for plain, again in zip(*gradients, strict=True))


def test_only_the_base_is_observed() -> None:
    model, base, ids = adapted("t5", "lora").train(), tiny.build("t5"), torch.tensor([5, 6, 7])

    def look(at: nn.Module) -> list[list[torch.Tensor]]:
        layers = [at.encoder.block[0].layer[0].SelfAttention.k, at.decoder.block[0].layer[0].SelfAttention.k]
        return observed(at, layers, ids)

    (read,), (written,) = look(model)
    assert (read.shape, written.shape) == ((1, 3, 32), (1, 4, 32))
    assert torch.equal(read, look(base)[0][0])
    assert model.training
    assert not any(m._forward_hooks for m in base.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("build", "part"), [("bert", "bert"), ("t5", "encoder"), ("bart", "model.encoder"), ("gpt2", "transformer")]
)
def test_a_trunk_with_heads_hears_them(build: str, part: str) -> None:
    ids = torch.tensor([[5, 6, 7]])
    for method in (PromptTuning(2), PreLayer(2, 0), Prefix(2, 0, words=((5, 6),))):
        trunk = tiny.build(build).get_submodule(part)
        plain = trunk(input_ids=ids).last_hidden_state
        model = adapt(TaskModel(trunk), method)
        read = trunk(input_ids=torch.tensor(with_soft(model, ids.tolist()))).last_hidden_state
        assert not close(read[:, 2:], plain, 0.01)
        with using(model, None):
            assert torch.equal(trunk(input_ids=ids).last_hidden_state, plain)


def test_a_float16_table_has_float32_vectors() -> None:
    model = adapt(tiny.build("llama", torch.float16), SPECS["prompt"])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
