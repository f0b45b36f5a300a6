"""Compiled attention: what plain attention in float64 finds, forth and back, and that it is what runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models import attention, building, flash, kernels
from acclimate.models.collate import collate
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from acclimate.tokens.tree import Piece
from tests import tiny
from tests.spies import called

BOTH = {torch.float32: 2e-6, torch.bfloat16: 4e-3}  # half a unit of the last place of bfloat16 is 2e-3
BUILT = [
    pytest.param(dtype, marks=pytest.mark.skipif(not flash.built(dtype), reason="not compiled here"), id=str(dtype)[6:])
    for dtype in BOTH
]
each = pytest.mark.parametrize("dtype", BUILT)


def documents(*lengths: int) -> tuple[Piece, ...]:
    return tuple(Piece(sum(lengths[:i]), length, -1) for i, length in enumerate(lengths))


SHARED = (Piece(0, 70, -1), Piece(70, 33, 0), Piece(103, 64, 0), Piece(167, 5, 1), Piece(172, 9, -1))
CASES = {
    "one document": (documents(100), 4, 2, 64, True),
    "one token": (documents(1), 2, 1, 64, True),
    "lengths around a block": (documents(63, 64, 65, 1, 128, 129), 2, 2, 64, True),
    "beginnings that are shared": (SHARED, 6, 2, 64, True),
    "a tree beside documents": ((*SHARED, Piece(181, 77, 4)), 3, 1, 64, True),
    "both ways": (documents(100, 30, 1, 64), 3, 3, 64, False),
    "wide heads": (documents(90, 20), 2, 1, 128, True),
    "wide heads and shared beginnings": (SHARED, 2, 2, 128, True),
}


def drawn(pieces: tuple[Piece, ...], heads: int, groups: int, d: int, loud: float = 1.0) -> tuple[Tensor, ...]:
    """Query, key, value as a model lays them out, and a slope; numbers of bfloat16."""
    torch.manual_seed(0)
    time = sum(piece.length for piece in pieces)
    query, key, value, slope = (torch.randn(1, time, n, d) for n in (heads, groups, groups, heads))
    query, key, value, slope = (x.bfloat16().float() for x in (loud * query, key, value, slope))
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), slope


def plainly(query: Tensor, key: Tensor, value: Tensor, pieces: tuple[Piece, ...], causal: bool, scale: float) -> Tensor:
    """Every query of a piece with its ancestors' keys and its own, written out; (1, time, heads, d)."""
    share = query.shape[1] // key.shape[1]
    output = torch.zeros_like(query)
    for piece in pieces:
        places, parent = list(range(piece.start, piece.start + piece.length)), piece.parent
        before: list[int] = []
        while parent >= 0:
            before = [*range(pieces[parent].start, pieces[parent].start + pieces[parent].length), *before]
            parent = pieces[parent].parent
        for h in range(query.shape[1]):
            for n, place in enumerate(places):
                seen = before + (places[: n + 1] if causal else places)
                scores = key[0, h // share, seen] @ query[0, h, place] * scale
                output[0, h, place] = scores.softmax(0) @ value[0, h // share, seen]
    return output.transpose(1, 2)


def both_ways(function, given: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    asked = [x.detach().to(dtype).requires_grad_() for x in given[:3]]
    output = function(*asked)
    return [output.detach(), *torch.autograd.grad(output, asked, given[3].to(dtype))]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-9))


@each
@pytest.mark.parametrize("name", CASES)
def test_it_is_plain_attention(name, dtype):
    pieces, heads, groups, d, causal = CASES[name]
    given = drawn(pieces, heads, groups, d)
    wanted = both_ways(lambda *x: plainly(*x, pieces, causal, d**-0.5), given, torch.float64)
    found = both_ways(lambda *x: flash.attend(*x, pieces, causal, d**-0.5), given, dtype)
    for what, one, other in zip(("output", "query", "key", "value"), found, wanted, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        if other.norm() > 1e-6:  # a document of one token: nothing moves its query or key
            assert apart(one, other) < BOTH[dtype], what
        else:
            assert one.abs().max() < 1e-2, what


@pytest.mark.skipif(not flash.built(torch.bfloat16), reason="not compiled here")
def test_it_is_nearer_than_pytorch():
    pieces, causal, d = documents(200, 120), True, 64
    given = drawn(pieces, 3, 3, d)
    wanted = both_ways(lambda *x: plainly(*x, pieces, causal, d**-0.5), given, torch.float64)
    found = both_ways(lambda *x: flash.attend(*x, pieces, causal, d**-0.5), given, torch.bfloat16)

    def one_by_one(*x: Tensor) -> Tensor:
        cut = zip(*(torch.split(t, [piece.length for piece in pieces], dim=2) for t in x), strict=True)
        return torch.cat([attention._one(*part, causal, {}) for part in cut], dim=2).transpose(1, 2)

    pytorchs = both_ways(one_by_one, given, torch.bfloat16)
    for one, other, true in zip(found, pytorchs, wanted, strict=True):
        assert apart(one, true) < 1.1 * apart(other, true)


@each
@pytest.mark.parametrize("loud", [1e-3, 30.0, 1e4])
def test_scores_of_any_size(loud, dtype):
    given = drawn(SHARED, 2, 1, 64, loud)
    wanted = both_ways(lambda *x: plainly(*x, SHARED, True, 0.125), given, torch.float64)
    found = both_ways(lambda *x: flash.attend(*x, SHARED, True, 0.125), given, dtype)
    assert all(x.isfinite().all() for x in found)
    assert apart(found[0], wanted[0]) < 1e-2


@each
@pytest.mark.parametrize("which", range(3))
def test_a_sick_number_is_not_lost(which, dtype):
    given = [x.to(dtype, copy=True) for x in drawn(SHARED, 2, 1, 64)]
    given[which][0, 0, 20, 3] = torch.nan
    found = flash.attend(*given[:3], SHARED, True, 0.125)
    assert found[0, 20, 0].isnan().any()
    if which < 2:  # of values, what has no share is multiplied by 0 all the same, as everywhere
        assert not found[0, :20].isnan().any()


@each
def test_what_is_not_seen_may_be_anything(dtype):
    pieces = documents(70, 70)
    query, key, value, slope = drawn(pieces, 2, 1, 64)
    before = both_ways(lambda *x: flash.attend(*x, pieces, True, 0.125), (query, key, value, slope), dtype)
    key, value = key.clone(), value.clone()
    key[:, :, 100:], value[:, :, 100:] = 1e4, -1e4
    after = both_ways(lambda *x: flash.attend(*x, pieces, True, 0.125), (query, key, value, slope), dtype)
    assert torch.equal(before[0][:, :100], after[0][:, :100])
    for one, other in zip(before[1:], after[1:], strict=True):
        assert torch.equal(one[:, :, :70], other[:, :, :70])


@each
def test_the_same_bits_of_any_layout_and_for_any_number_of_threads(dtype):
    query, key, value, slope = drawn(SHARED, 6, 2, 64)
    whole = [query.contiguous(), key.contiguous(), value.transpose(2, 3).contiguous().transpose(2, 3), slope]
    attend = lambda *x: flash.attend(*x, SHARED, True, 0.125)  # noqa: E731
    once = both_ways(attend, (query, key, value, slope), dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = both_ways(attend, tuple(whole), dtype)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def wide_llama(**more: object) -> nn.Module:
    """Two layers with heads of 64."""
    model = tiny.llama()
    config = type(model.config)(**{**model.config.to_dict(), "head_dim": 64, **more})
    torch.manual_seed(0)
    return type(model)(config)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Every call of the kernels, which go on to answer, whatever a trial said."""
    monkeypatch.setattr(flash, "there", flash.built)
    return called(monkeypatch, flash)


def packed(model: nn.Module):
    attention.register()
    model.set_attn_implementation(attention.NAME)
    rows = [Encoded(tuple(range(3, 3 + n)), (False,) * 4 + (True,) * (n - 4)) for n in (9, 30, 70)]
    return collate(model, rows, 2)


@each
@pytest.mark.parametrize("mixed", [False, True])
def test_a_model_that_trains_runs_it_forth_and_back(calls, mixed, dtype):
    model = wide_llama()
    adapt(model, LoRA(2))
    wanted = logprobs(model.double(), packed(model)).detach()
    model = model.float() if mixed else model.to(dtype)
    batch = packed(model)
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed and dtype == torch.bfloat16):
        found = logprobs(model, batch)
    found.sum().backward()
    assert calls == ["attention_forward"] * 2 + ["attention_backward"] * 2
    assert (found.double() - wanted).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-5)


@each
@pytest.mark.parametrize("reason", ["float64", "dropout", "window", "narrow", "slower"])
def test_pytorch_does_it_where_the_kernels_do_not(calls, monkeypatch, reason, dtype):
    if reason == "slower":
        monkeypatch.setattr(flash, "there", lambda dtype: False)
    model = wide_llama(**{"dropout": {"attention_dropout": 0.5}, "narrow": {"head_dim": 8}}.get(reason, {}))
    model = (model.double() if reason == "float64" else model.to(dtype)).train()
    if reason == "window":
        query, key, value = (x.to(dtype) for x in drawn(documents(100), 2, 2, 64)[:3])
        attention.by_document(nn.Module(), query, key, value, None, document_pieces=documents(100), sliding_window=10)
    else:
        batch = packed(model)
        calls.clear()  # of the trials that say what the model is
        logprobs(model, batch).sum().backward()
    assert calls == []


@pytest.mark.parametrize("around", ["no graph", "inference", "mixed precision", "a forecast"])
def test_a_trial_is_the_same_whoever_asks(monkeypatch, tmp_path, around):
    """Of numbers, with a graph, in the dtype that is tried; and its answer is kept."""
    asked = []

    def tried():
        x = torch.ones(3, requires_grad=True)
        y = x @ torch.eye(3)
        y.sum().backward()
        asked.append((type(x.data), y.dtype, x.grad.tolist()))
        return 7

    monkeypatch.setattr(kernels, "library", lambda: SimpleNamespace(_name=str(tmp_path / "kernels.so")))
    inside = {
        "no graph": torch.no_grad,
        "inference": torch.inference_mode,
        "mixed precision": lambda: torch.autocast("cpu", torch.bfloat16),
        "a forecast": FakeTensorMode,
    }
    with inside[around]():
        assert kernels.kept("some", tried) == 7
    assert kernels.kept("some", tried) == 7
    assert asked == [(Tensor, torch.float32, [1.0, 1.0, 1.0])]


def test_env_says_what_was_decided():
    found = dict(part.split(" ", 1) for part in flash.describe().split("; "))
    chosen = {"float32": flash.there(torch.float32), "bfloat16": flash.there(torch.bfloat16)}
    assert {name: told.startswith("compiled") for name, told in found.items()} == chosen


@pytest.mark.skipif(isinstance(kernels.library(), str), reason="no compiler")
def test_a_processor_without_pairs_has_the_other_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "FLAGS", ("-O1", "-march=x86-64", "-fopenmp", "-shared", "-fPIC"))
    library = kernels.library.__wrapped__()
    assert not isinstance(library, str)
    monkeypatch.setattr(kernels, "library", lambda: library)
    found = {dtype: flash._function.__wrapped__("attention_forward", dtype) is not None for dtype in flash.WIDTHS}
    assert found == {torch.float32: True, torch.bfloat16: False}
