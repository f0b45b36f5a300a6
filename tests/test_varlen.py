"""Attention of streams on CUDA: what it is given is checked on the CPU, what it computes against float64 on a GPU."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models import attention, varlen
from acclimate.models.collate import collate
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from acclimate.tokens.tree import Piece
from tests import tiny
from tests.test_flash import CASES, SHARED, apart, both_ways, documents, drawn, plainly

CPU = torch.device("cpu")


def segment_by_segment(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """PyTorch's function of the same arguments in words of SDPA: the last query beside the last key."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) == (max_q, max_k)
    cut = (torch.split(x, n.diff().tolist()) for x, n in ((query, cu_seq_q), (key, cu_seq_k), (value, cu_seq_k)))
    parts = []
    for q, k, v in zip(*cut, strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool)
        mask = mask.tril(len(k) - len(q)) if window_size == (-1, 0) else mask
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        found = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(found[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def emulated(monkeypatch) -> list[int]:
    """As on a GPU, in any dtype, with PyTorch's function emulated; how many pieces each call has."""
    calls: list[int] = []

    def emulate(*given, **named):
        calls.append(len(given[3]) - 1)
        return segment_by_segment(*given, **named)

    monkeypatch.setattr(varlen, "varlen_attn", emulate)
    monkeypatch.setattr(varlen, "serves", lambda *_: True)
    return calls


def test_the_arguments_are_the_functions_own():
    offered, asked = (inspect.signature(function).parameters for function in (varlen_attn, segment_by_segment))
    assert list(asked)[:7] == list(offered)[:7]
    assert asked.keys() <= offered.keys()
    assert {*list(asked)[7:]} == varlen.ASKED | {"enable_gqa"}


@pytest.mark.parametrize("name", CASES)
def test_it_is_plain_attention(emulated, name):
    pieces, heads, groups, d, causal = CASES[name]
    given = drawn(pieces, heads, groups, d)
    wanted = both_ways(lambda *x: plainly(*x, pieces, causal, d**-0.5), given, torch.float64)
    found = both_ways(lambda *x: varlen.attend(*x, pieces, causal, d**-0.5), given, torch.float64)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-9


def test_a_model_computes_the_same_by_it(emulated):
    model = tiny.llama().double()
    adapt(model, LoRA(2))
    attention.register()
    model.set_attn_implementation(attention.NAME)
    same = tuple(range(3, 40))
    rows = [Encoded((*same, *range(50, 50 + n)), (False,) * 37 + (True,) * n) for n in (5, 9, 30)]
    batch = collate(model, rows, 2, share=True)
    assert any(piece.parent >= 0 for piece in batch.pieces)
    emulated.clear()
    found = []
    for serves in (lambda *_: True, lambda *_: False):
        varlen.serves = serves  # put back by the fixture
        values = logprobs(model, batch)
        weights = [p for p in model.parameters() if p.requires_grad]
        found.append([values.detach(), *torch.autograd.grad(values.sum(), weights)])
    assert emulated == [len(batch.pieces)] * model.config.num_hidden_layers
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-9


def test_a_layout_is_made_once_for_all_layers():
    assert varlen.layout(SHARED, CPU) is varlen.layout(tuple(Piece(*piece) for piece in SHARED), CPU)
    assert varlen.layout(documents(3, 4), CPU).places is None


def test_what_is_forecast_has_the_kernels_shapes_and_leaves_nothing_behind():
    given = drawn(SHARED, 6, 2, 64)
    varlen.layout.cache_clear()
    with FakeTensorMode() as mode:
        there = tuple(mode.from_tensor(x) for x in given)
        found = both_ways(lambda *x: varlen.attend(*x, SHARED, True, 0.125), there, torch.bfloat16)
    assert [x.shape for x in found] == [x.shape for x in (given[3], *given[:3])]
    assert not isinstance(varlen.layout(SHARED, CPU).queries, FakeTensor)


def test_what_comes_back_to_a_row_is_added_up_wide():
    x = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    varlen.gathered(x, torch.zeros(1024, dtype=torch.long)).sum().backward()
    assert x.grad.item() == 1024  # in bfloat16, 256 + 1 is 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_cpu_has_kernels_of_its_own(dtype):
    query, key, value, _ = (x.to(dtype) for x in drawn(SHARED, 2, 1, 64))
    assert not varlen.serves(query, key, value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", varlen.DTYPES)
def test_on_a_gpu_it_is_plain_attention(name, dtype):
    pieces, heads, groups, d, causal = CASES[name]
    given = drawn(pieces, heads, groups, d)
    wanted = both_ways(lambda *x: plainly(*x, pieces, causal, d**-0.5), given, torch.float64)
    there = tuple(x.cuda().to(dtype) for x in given)
    assert varlen.serves(*there[:3])
    found = both_ways(lambda *x: varlen.attend(*x, pieces, causal, d**-0.5), there, dtype)
    for what, one, other in zip(("output", "query", "key", "value"), found, wanted, strict=True):
        assert one.dtype == dtype
        if other.norm() > 1e-6:  # a document of one token: nothing moves its query or key
            assert apart(one.cpu(), other) < 1e-2, what
        else:
            assert one.abs().max() < 1e-2, what


@pytest.mark.gpu
def test_on_a_gpu_a_model_runs_it(monkeypatch):
    seen, plain = [], varlen.varlen_attn
    monkeypatch.setattr(varlen, "varlen_attn", lambda *given, **named: (seen.append(1), plain(*given, **named))[1])
    model = tiny.llama().double()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    rows = [Encoded((*range(3, 40), *range(50, 50 + n)), (False,) * 37 + (True,) * n) for n in (5, 9, 30)]
    batch = collate(model, rows, 2, share=True)
    wanted = logprobs(model, batch).detach()
    model, batch = model.cuda().bfloat16(), batch.to(torch.device("cuda"))
    seen.clear()  # of the trials that say what the model is
    found = logprobs(model, batch)
    found.sum().backward()
    assert seen == [1] * model.config.num_hidden_layers
    assert (found.cpu().double() - wanted).abs().max() < 0.05
