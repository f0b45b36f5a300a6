"""The compiled turn of queries and keys: what transformers' own function computes, forth and back, and that it is what runs."""

import pytest
import torch
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models import kernels, rotary
from acclimate.models.collate import collate
from acclimate.models.gated import lean
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.spies import called

compiled = pytest.mark.skipif(isinstance(kernels.library(), str), reason=f"no kernels here: {kernels.library()}")
NEAR = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
SHAPES = {"a stream": (1, 3, 700, 64, 1), "rows": (3, 2, 5, 32, 1), "rows with places of their own": (3, 2, 5, 32, 3)}


def given(rows: int, heads: int, time: int, d: int, places: int) -> list[torch.Tensor]:
    """Query and key as a model lays them out, cosines and sines whose halves differ, and a slope of another layout."""
    torch.manual_seed(0)
    query, key = (torch.randn(rows, time, n, d).transpose(1, 2) for n in (2 * heads, heads))
    angles = 9 * torch.rand(places, time, d)
    return [query, key, angles.cos(), angles.sin(), torch.randn(rows, 2 * heads, time, d)]


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@compiled
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_transformers_own(shape, dtype):
    asked = [x.to(dtype) for x in given(*SHAPES[shape])]
    wide, narrow = [x.double() for x in asked], [x.clone() for x in asked]
    for each in (wide, narrow):
        each[0].requires_grad_()
    wanted = modeling_llama.apply_rotary_pos_emb(*wide[:4])
    assert rotary.serves(*narrow[:4])
    found = [rotary.turn(x, *narrow[2:4]) for x in narrow[:2]]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        assert apart(one.detach(), other.detach()) < NEAR[dtype]
    wanted[0].backward(wide[4])
    found[0].backward(narrow[4])
    assert apart(narrow[0].grad, wide[0].grad) < NEAR[dtype]


@compiled
def test_mixed_precision_turns_by_cosines_of_float32_and_rounds_once():
    query, key, cos, sin, slope = given(1, 2, 40, 64, 1)
    query, key = query.bfloat16(), key.bfloat16()
    assert not rotary.serves(query, key, cos, sin)
    query.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert rotary.serves(query, key, cos, sin)
        found = rotary.turn(query, cos, sin)
        wanted = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin)[0].bfloat16()
    assert (found == wanted).double().mean() > 0.99  # and the others by one unit of the last place
    assert apart(found.detach(), wanted.detach().double()) < 1e-3
    (mine,), (other,) = (torch.autograd.grad(y, query, slope.bfloat16()) for y in (found, wanted))
    assert apart(mine, other.double()) < NEAR[torch.bfloat16]


@compiled
def test_a_turn_back_undoes_it():
    query, _, cos, sin, _ = given(1, 1, 40, 64, 1)
    cos[..., 32:], sin[..., 32:] = cos[..., :32], sin[..., :32]
    query = query.clone().requires_grad_()
    turned = rotary.turn(query, cos, sin)
    turned.backward(turned.detach())
    torch.testing.assert_close(query.grad, query.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))


@compiled
@pytest.mark.parametrize("file", [modeling_llama, modeling_mistral, modeling_qwen2, modeling_qwen3])
def test_files_that_turn_so_are_known(file):
    assert rotary._known(file.apply_rotary_pos_emb)


def test_one_that_turns_neighbours_is_not_known():
    assert not rotary._known(modeling_cohere.apply_rotary_pos_emb)
    assert not rotary._known(None)
    assert not rotary._known(lambda q, k, cos, sin, ids: (q, k))


def turned_by(model: torch.nn.Module) -> torch.Tensor:
    """Σ log p of a packed stream, and its gradients."""
    rows = [Encoded(tuple(range(3, 3 + n)), (False,) * 4 + (True,) * (n - 4)) for n in (9, 30, 70)]
    model.zero_grad()
    found = logprobs(model, collate(model, rows, 2))
    found.sum().backward()
    return torch.cat([found.detach(), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])


def wide(dtype: torch.dtype) -> torch.nn.Module:
    model = tiny.llama()
    torch.manual_seed(0)
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "head_dim": 32})).to(dtype)
    adapt(model, LoRA(2, targets=("linear",)), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith(".delta.default.b"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


@compiled
@pytest.mark.parametrize("dtype", NEAR)
def test_a_model_that_trains_runs_it_forth_and_back(monkeypatch, dtype):
    model, calls = wide(dtype), called(monkeypatch, rotary)
    plain, file = turned_by(model), modeling_llama.apply_rotary_pos_emb
    rotary._known(file)  # which tries it, once
    calls.clear()
    with lean(model):
        found = turned_by(model)
        layers = model.config.num_hidden_layers
        assert [calls.count(way) for way in ("forth", "back")] == [2 * layers, 2 * layers]
        with lean(model):  # once more changes nothing, nor does its end
            pass
        assert modeling_llama.apply_rotary_pos_emb is not file
    assert modeling_llama.apply_rotary_pos_emb is file
    said = 5 + 26 + 66  # of bfloat16 the gradients of so small a model are mostly rounding
    assert (
        apart(found, plain.double()) < 1e-5
        if dtype == torch.float32
        else apart(found[:said], plain[:said].double()) < 0.02
    )


@compiled
def test_it_ends_where_what_it_is_used_for_fails():
    model, file = wide(torch.float32), modeling_llama.apply_rotary_pos_emb
    with pytest.raises(RuntimeError), lean(model):
        raise RuntimeError
    assert modeling_llama.apply_rotary_pos_emb is file


@compiled
@pytest.mark.parametrize("reason", ["float64", "narrow", "another dtype", "part of a head", "asked otherwise"])
def test_transformers_does_it_where_the_kernel_does_not(monkeypatch, reason):
    calls = called(monkeypatch, rotary)
    query, key, cos, sin, _ = given(2, 1, 5, 32, 1)
    if reason == "float64":
        query, key, cos, sin = (x.double() for x in (query, key, cos, sin))
    if reason == "narrow":
        query, key, cos, sin = (x[..., :16] for x in (query, key, cos, sin))
    if reason == "another dtype":
        query, key = query.bfloat16(), key.bfloat16()
    if reason == "part of a head":
        query, key = (torch.cat([x, x], -1) for x in (query, key))
        plain = lambda q, k, cos, sin, *rest: (q, k)  # noqa: E731
        assert rotary._turned(plain, query, key, cos, sin) == (query, key)
    else:
        if reason == "asked otherwise":
            query, key = (x.transpose(1, 2) for x in (query, key))
        axis = 2 if reason == "asked otherwise" else 1
        found = rotary._turned(modeling_llama.apply_rotary_pos_emb, query, key, cos, sin, axis)
        wanted = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin, axis)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert calls == []
