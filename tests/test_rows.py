"""Compiled norms and gates: what transformers' own modules compute, forth and back, and that they are what runs."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models import gated, kernels, rows
from acclimate.models.collate import collate
from acclimate.models.kernels import using
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.spies import called

compiled = pytest.mark.skipif(isinstance(kernels.library(), str), reason=f"no kernels here: {kernels.library()}")
NEAR = {torch.float32: 1e-6, torch.bfloat16: 6e-3}


def norm(kind: type, dtype: torch.dtype, d: int = 48) -> nn.Module:
    module = kind(d, eps=1e-5)
    module.weight = nn.Parameter(torch.linspace(0.2, 3, d), requires_grad=False)
    return module.to(dtype)


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@compiled
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm])
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 700, 48), (5, 48)])
def test_a_norm_is_the_modules_own(kind, dtype, shape):
    torch.manual_seed(0)
    module, x = norm(kind, dtype), (3 * torch.randn(shape)).to(dtype)
    slope = torch.randn(shape).to(dtype)
    wide = x.double().requires_grad_()
    y = module.weight.double() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    y.backward(slope.double())
    asked = x.clone().requires_grad_()
    with using(rows.norms([module])):
        found = module(asked)
    found.backward(slope)
    assert found.dtype == dtype
    assert apart(found.detach(), y.detach()) < NEAR[dtype]
    assert apart(asked.grad, wide.grad) < NEAR[dtype]
    if dtype == torch.bfloat16:  # rounded where the module rounds: nearly every bit is the same
        assert (found == module(x)).double().mean() > 0.99


@compiled
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 700, 48), (5, 320)])
def test_a_weight_that_trains_has_the_gradient_of_the_modules_own(dtype, shape):
    torch.manual_seed(0)
    module = norm(LlamaRMSNorm, dtype, shape[-1]).requires_grad_()
    x, slope = (torch.randn(shape).to(dtype) for _ in range(2))
    wide, weight = x.double().requires_grad_(), module.weight.detach().double().requires_grad_()
    y = weight * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    y.backward(slope.double())
    asked = x.clone().requires_grad_()
    with using(rows.norms([module])):
        module(asked).backward(slope)
    assert module.weight.grad.dtype == dtype
    assert apart(module.weight.grad, weight.grad) < NEAR[dtype]
    assert apart(asked.grad, wide.grad) < NEAR[dtype]


@compiled
def test_the_gradient_of_a_weight_has_the_same_bits_for_any_number_of_threads():
    torch.manual_seed(0)
    x, slope, scale, weight = torch.randn(900, 112), torch.randn(900, 112), torch.rand(900), torch.ones(112)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(rows.weight_slope(x, weight, slope, scale))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@compiled
@pytest.mark.parametrize("dtype", NEAR)
def test_a_gate_is_the_activations_own(dtype):
    torch.manual_seed(0)
    x, up, slope = (torch.randn(3, 70, 64).to(dtype) for _ in range(3))
    x = torch.cat([4 * x, torch.tensor([-1e4, -90, -20, -0.0, 0, 20, 90, 1e4]).to(dtype).repeat(24).view(3, 1, 64)], 1)
    up, slope = torch.cat([up, up[:, :1]], 1), torch.cat([slope, slope[:, :1]], 1)
    wide, wide_up = x.double().requires_grad_(), up.double().requires_grad_()
    y = nn.functional.silu(wide) * wide_up
    y.backward(slope.double())
    assert apart(rows.gate(x, up), y.detach()) < NEAR[dtype]
    for found, wanted in zip(rows.gate_slopes(x, up, slope), (wide.grad, wide_up.grad), strict=True):
        assert found.isfinite().all()
        assert apart(found, wanted) < NEAR[dtype]


@compiled
def test_what_cannot_be_served_answers_itself():
    trains = norm(LlamaRMSNorm, torch.float32)
    trains.weight.requires_grad_()
    x = torch.randn(2, 48, requires_grad=True)
    with using(rows.norms([trains])):
        trains(x).sum().backward()
    assert trains.weight.grad is not None  # a weight that trains has its gradient
    assert rows.norms([norm(GemmaRMSNorm, torch.float32), nn.LayerNorm(48), nn.Linear(48, 48)]) == {}
    odd = norm(LlamaRMSNorm, torch.float32, 40)
    for module, given in ((odd, torch.randn(2, 40)), (odd.double(), torch.randn(2, 40).double())):
        with using(rows.norms([module])):
            assert torch.equal(module(given), type(module).forward(module, given))


@compiled
@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_only_the_activation_that_is_known_is_compiled(monkeypatch, act):
    seen = []
    plain = rows.gate
    monkeypatch.setattr(rows, "gate", lambda *given: (seen.append(1), plain(*given))[1])
    x, up = torch.randn(2, 32), torch.randn(2, 32)
    found = gated._Gate.apply(ACT2FN[act], x, up)
    assert seen == [1] * (act == "silu")
    assert torch.allclose(found, ACT2FN[act](x) * up, atol=1e-6)


@compiled
def test_a_model_that_trains_runs_them_and_what_rides_on_them_answers(monkeypatch):
    model = tiny.llama()
    adapt(model, LoRA(2))
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".delta." in name)
    batch = collate(model, [Encoded(tuple(range(3, 40)), (False,) * 4 + (True,) * 33)], 2)
    wanted = logprobs(model.double(), batch).detach()
    names = called(monkeypatch, rows)
    ridden = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: ridden.append(1))
    with gated.lean(model.float()):
        found = logprobs(model, batch)
        found.sum().backward()
    layers = model.config.num_hidden_layers
    assert {name: names.count(name) for name in names} == {
        "norm": 2 * layers + 1, "gate": layers, "gate_back": layers, "norm_back": 2 * layers,
    }  # fmt: skip
    assert ridden == [1]
    assert (found.double() - wanted).abs().max() < 1e-5
