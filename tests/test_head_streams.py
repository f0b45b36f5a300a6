"""Task heads on packed streams answer, and learn, what they do on padded rectangles."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from acclimate.data.examples import Example
from acclimate.methods import Head, LoRA
from acclimate.methods.delta import adapt
from acclimate.models import flash
from acclimate.models.collate import collate_readings, streams
from acclimate.models.heads import TaskModel
from acclimate.tokens.reading import Reader, sheet
from tests.spies import called
from tests.test_heads import OBJECTIVES, SENTENCE, SHAPES, gradient, model_of, rows_of

EACH = 2  # choices of a question
PACKED = ("bert", "gpt2", "llama")


def readings(reader: Reader, rows: list) -> list:
    return [read for row in rows for read in reader(row)]


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("build", PACKED)
def test_a_stream_has_the_answers_and_gradients_of_a_rectangle(build: str, kind: str, pool: str):
    shape = replace(SHAPES[kind], pool=pool)
    model, reader = model_of(build, shape)
    rows = readings(reader, rows_of(kind))
    packed, padded = collate_readings(model, rows, reader.codec.pad), sheet(rows, shape, reader.codec.pad)
    assert packed.packed
    assert not padded.packed
    assert packed.tokens == padded.tokens
    assert torch.equal(packed.owner, padded.owner)
    assert torch.equal(packed.starts, padded.starts)
    with torch.no_grad():
        torch.testing.assert_close(model(packed), model(padded), rtol=0, atol=1e-6)  # Llama's norms are in float32
    there, plain = (gradient(model, OBJECTIVES[kind], [batch]) for batch in (packed, padded))
    assert (there - plain).norm() < 1e-6 * plain.norm() + 1e-12  # 0 where choices begin alike


def test_token_types_follow_their_ids_into_a_stream():
    model, reader = model_of("bert", SHAPES["regress"])
    reader = replace(reader, columns=("one", "other"))
    cut = [{"one": SENTENCE[:n], "other": SENTENCE[n:]} for n in (9, 30, 43)]
    rows = readings(reader, [Example("", "1", fields=fields) for fields in cut])
    packed, padded = collate_readings(model, rows, reader.codec.pad), sheet(rows, SHAPES["regress"], reader.codec.pad)
    assert int(packed.types.sum()) == int(padded.types.sum()) > 0
    with torch.no_grad():
        torch.testing.assert_close(model(packed), model(padded), rtol=0, atol=1e-10)
        blind = model(replace(packed, types=torch.zeros_like(packed.types)))
    assert (blind - model(padded)).abs().max() > 1e-4


def choosing(build: str, pool: str = "last") -> tuple[TaskModel, list, Reader]:
    shape = replace(SHAPES["choose"], pool=pool)
    model, reader = model_of(build, shape)
    offered = [("good", "bad film"), ("a dog", "the fox jumps")]
    rows = [Example(SENTENCE, c[0], fields={"choices": c}) for c in offered]
    return model, readings(reader, rows), reader


@pytest.mark.parametrize(
    ("build", "pool", "once"), [("llama", "last", True), ("llama", "mean", False), ("bert", "first", False)]
)
def test_what_sequences_begin_with_is_read_once_where_nothing_looks_ahead(build: str, pool: str, once: bool):
    model, rows, reader = choosing(build, pool)
    packed = collate_readings(model, rows, reader.codec.pad)
    whole = sum(row.size for row in rows)
    assert (packed.streamed < whole / EACH) if once else (packed.streamed == whole)


def test_nothing_is_shared_while_dropout_is_on():
    model, rows, reader = choosing("llama")
    model.heads["default"].dropout.p = 0.5
    assert collate_readings(model.train(), rows, reader.codec.pad).streamed == sum(row.size for row in rows)
    assert collate_readings(model.eval(), rows, reader.codec.pad).streamed < sum(row.size for row in rows)


def test_the_encoder_of_an_encoder_decoder_still_reads_rectangles():
    model, reader = model_of("t5", SHAPES["classify"])
    assert not streams(model)
    assert not collate_readings(model, readings(reader, rows_of("classify")), reader.codec.pad).packed


@pytest.mark.skipif(not flash.built(torch.bfloat16), reason="no kernels for bfloat16 here")
def test_a_head_on_a_decoder_learns_through_the_compiled_attention(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flash, "there", flash.built)
    calls = called(monkeypatch, flash)
    model, rows, reader = choosing("llama")
    config = LlamaConfig(**{**model.config.to_dict(), "head_dim": flash.WIDTHS[torch.bfloat16]})
    wide = TaskModel(LlamaForCausalLM(config).model.to(torch.bfloat16))
    wide.add(model.shape())
    adapt(wide, LoRA(rank=2), beside=Head()).train()
    OBJECTIVES["choose"](wide, collate_readings(wide, rows, reader.codec.pad)).total.backward()
    assert calls.count("attention_backward") == config.num_hidden_layers
    assert calls.count("attention_forward") >= config.num_hidden_layers
