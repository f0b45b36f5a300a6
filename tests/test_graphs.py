"""Decoding in frames of fixed shapes: on the CPU the step that a GPU would record is run, and gives what `extend` gives."""

import gc
from weakref import ref

import pytest
import torch
from torch import nn

from acclimate.generation.decode import generate, stream
from acclimate.generation.samplers import Beam, Greedy, Sample
from acclimate.methods import LoRA
from acclimate.methods.delta import activate, adapt, merged, per_row, switches, using
from acclimate.models import cache, frame, graphs, recording
from acclimate.models.prefill import prefill
from tests import tiny

PROMPTS = [[3, 5, 7, 11, 13], [17, 19], [23, 29, 31, 37, 41, 43, 47], [53]]
BUILDS = ("llama", "gpt2", "qwen2", "qwen3", "gemma", "opt", "pythia")
ENDS = frozenset(range(2, 12))  # one id in ten, so that rows of random ids end soon


@pytest.fixture
def framed(monkeypatch) -> list[recording.Recording]:
    """As on CUDA, of small frames; the recordings that were made, in order."""
    made: list[recording.Recording] = []
    plain = recording.Recording.record
    monkeypatch.setattr(
        graphs, "serves", lambda ids, past: past.encoded is None and "position_ids" in past.reader.accepted
    )
    monkeypatch.setattr(recording.Recording, "record", lambda self, *given: (made.append(self), plain(self, *given))[1])
    monkeypatch.setattr(frame, "LEAST", 16)
    monkeypatch.setattr(frame, "SPARE", 2)
    return made


def written(model: nn.Module, sampler=None, prompts=PROMPTS, new: int = 20, ends=frozenset((2, 9, 30))):
    found = generate(model, prompts, sampler or Greedy(), terminators=ends, max_new=new, pad=0)
    return [row.ids for row in found], [row.logprobs for row in found]


def same(found, wanted) -> None:
    assert found[0] == wanted[0]
    for one, other in zip(found[1], wanted[1], strict=True):
        assert torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-9)


@pytest.mark.parametrize("build", BUILDS)
def test_rows_are_written_as_plainly(monkeypatch, framed, build):
    model = tiny.build(build)
    found = written(model, Sample(temperature=2.0), ends=ENDS)
    assert len({len(ids) for ids in found[0]}) > 1  # rows end at other times, and leave their batch
    assert len(framed) < 4
    assert {made.frame.size[1] for made in framed} == {16, 32}  # and outgrow their frame
    monkeypatch.undo()
    same(found, written(model, Sample(temperature=2.0), ends=ENDS))


def test_logits_step_by_step(framed):
    model, steps = tiny.build("llama"), torch.tensor([[5, 8, 13], [21, 34, 55], [4, 6, 8], [60, 70, 80]]).T
    logits, past = prefill(model, PROMPTS, 0)
    plain_logits, plain = prefill(model, PROMPTS, 0)
    for ids in steps:
        logits, past = cache.extend(model, ids, past)
        plain_logits, plain = cache._forward(
            model, ids[:, None], cache.replace(plain, mask=torch.cat([plain.mask, plain.mask.new_ones(4, 1)], 1))
        )
        assert isinstance(past.cache, recording.Running)
        assert torch.equal(past.mask, plain.mask)
        assert (logits - plain_logits).abs().max() < 1e-9
    for rows in ([2, 0], [1, 1, 0, 0, 1, 0]):  # fewer, and more than the frame holds
        past, plain = cache.select(past, rows), cache.select(plain, rows)
        ids = torch.arange(50, 50 + len(rows))
        logits, past = cache.extend(model, ids, past)
        plain_logits, plain = cache._forward(
            model,
            ids[:, None],
            cache.replace(plain, mask=torch.cat([plain.mask, plain.mask.new_ones(len(rows), 1)], 1)),
        )
        assert (logits - plain_logits).abs().max() < 1e-9


def test_beams_are_written_as_plainly(monkeypatch, framed):
    model = tiny.build("llama")
    found = written(model, Beam(3), PROMPTS[:2], 9)
    assert framed
    monkeypatch.undo()
    same(found, written(model, Beam(3), PROMPTS[:2], 9))


def test_a_recording_serves_the_next_batch_whatever_was_in_it(framed):
    model = tiny.build("llama")
    first = written(model)
    count = len(framed)
    for made in framed:
        for layer in made.frame.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
    same(written(model), first)
    assert len(framed) == count


def test_two_batches_at_once_have_frames_of_their_own(framed):
    model = tiny.build("llama")
    how = {"terminators": frozenset({2}), "max_new": 12}
    alone = [list(stream(model, prompt, Greedy(), **how)) for prompt in PROMPTS[:2]]
    beside = zip(*(stream(model, prompt, Greedy(), **how) for prompt in PROMPTS[:2]), strict=True)
    assert [list(ids) for ids in zip(*beside, strict=True)] == alone


def test_a_model_that_changed_is_recorded_anew(monkeypatch, framed):
    model = tiny.build("llama")
    for name in ("a", "b"):
        adapt(model, LoRA(2), name=name)
        for switch in switches(model):
            nn.init.normal_(switch[name].b, std=0.5)

    def all_ways():
        found = []
        for name in ("a", "b", None):
            activate(model, name)
            found.append(written(model))
        with merged(model, "a"):
            found.append(written(model))
        found.append(written(model))
        return found

    found = all_ways()
    assert len({tuple(map(tuple, ids)) for ids, _ in found}) >= 3
    monkeypatch.undo()
    for one, other in zip(found, all_ways(), strict=True):
        same(one, other)


def test_weights_that_move_where_they_lie_are_the_next_batchs(monkeypatch, framed):
    model = tiny.build("llama")
    before = written(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    after = written(model)
    assert after[0] != before[0]
    monkeypatch.undo()
    same(after, written(model))


def test_strangers_hooks_are_called_at_every_step(framed):
    model, calls = tiny.build("llama"), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    generate(model, PROMPTS[:1], Greedy(), terminators=frozenset(), max_new=6, pad=0)
    assert framed == []
    assert len(calls) >= 6


def test_rows_for_several_adapters_are_written_plainly(framed):
    model = tiny.build("llama")
    for name in ("a", "b"):
        adapt(model, LoRA(2), name=name)
    written(model, new=4)
    framed.clear()
    with using(model, per_row(["a", "b", None, "a"])):
        written(model, new=4, ends=frozenset())
    assert framed == []


def test_weights_that_are_rounded_on_their_way_are_not_recorded(framed):
    model = tiny.build("llama", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        written(model, new=4)
    assert framed == []


def test_a_frame_that_computes_something_else_is_left(monkeypatch, framed):
    model, give = tiny.build("llama"), frame.Frame.give
    monkeypatch.setattr(frame.Frame, "give", lambda self, ids, mask: (give(self, ids, mask), self.positions.add_(1)))
    found = written(model)
    assert framed == []
    monkeypatch.undo()
    same(found, written(model))


@pytest.mark.parametrize("build", ["mistral", "gemma3", "t5", "bart"])
def test_other_memories_grow_as_they_did(framed, build):
    written(tiny.build(build), new=4)
    assert framed == []


def test_recordings_end_with_their_model(framed):
    model = tiny.build("llama")
    written(model, new=3)
    told = [ref(made) for made in framed]
    assert told
    framed.clear()
    del model
    gc.collect()
    assert all(made() is None for made in told)


def test_there_are_few_at_a_time(monkeypatch, framed):
    monkeypatch.setattr(graphs, "KEPT", 0)
    model = tiny.build("llama")
    for length in (10, 80, 10, 80):
        written(model, prompts=[[*range(3, 3 + length)]], new=2)
    assert len(graphs._recorded[model]) == 1
    assert [made.frame.size for made in framed] == [(1, 16), (1, 128), (1, 16), (1, 128)]


def test_nothing_is_recorded_on_a_cpu():
    model = tiny.build("llama")
    _, past = prefill(model, PROMPTS, 0)
    assert not graphs.serves(torch.tensor([1, 2, 3, 4]), past)


@pytest.mark.gpu
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_rows_are_written_as_on_a_cpu(build, dtype):
    model = tiny.build(build)
    wanted = written(model)
    model = model.to("cuda", dtype)
    for _ in range(2):  # recorded, and played again
        found = written(model)
        if dtype == torch.float32:
            assert found[0] == wanted[0]
            for one, other in zip(found[1], wanted[1], strict=True):
                assert torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-3)
    assert all(made.graph is not None for made in graphs._recorded[model])


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_asks_the_host_is_not_recorded():
    model = tiny.build("llama").float().cuda()
    wanted = written(model)

    class Asking(nn.Module):
        def forward(self, x):
            return x * bool(x.isfinite().all())

    model.model.norm = nn.Sequential(model.model.norm, Asking())
    graphs._recorded.pop(model, None)
    assert written(model)[0] == wanted[0]
    assert not graphs._recorded.get(model)


@pytest.mark.gpu
def test_on_a_gpu_playing_gives_the_logits_of_running():
    model = tiny.build("llama").float().cuda()
    logits, past = prefill(model, PROMPTS, 0)
    known = past.reader
    for step in range(30):
        ids = logits.argmax(-1)
        logits, past = cache.extend(model, ids, past)
        made = past.cache.recording
        assert made.graph is not None
        plain = recording.Recording(made.state, made.frame)  # without a graph, over the same tensors
        kept = made.frame.logits
        run = plain.step(lambda inputs: cache._answer(model, known, inputs), known)
        made.frame.logits = kept
        assert (run[:4] - logits).abs().max() < 1e-5, step
