"""Norms and gates for CUDA: their formulas are checked on the CPU, not compiled; that they are what runs, on a GPU."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from acclimate.methods import LoRA
from acclimate.methods.delta import adapt
from acclimate.models import compiled, gated, rows
from acclimate.models.collate import collate
from acclimate.models.kernels import using
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from tests import tiny
from tests.test_rows import NEAR, apart, norm


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [(3 * torch.randn(shape)).to(dtype) for _ in range(3)]


def test_a_norm_is_the_modules_own():
    x, slope, _ = drawn(7, 48)
    module = norm(LlamaRMSNorm, torch.float64)
    asked = x.clone().requires_grad_()
    wanted = module.weight * asked * torch.rsqrt(asked.pow(2).mean(-1, keepdim=True) + 1e-5)
    wanted.backward(slope)
    found, scale = compiled.norm(x, module.weight, 1e-5)
    assert (found - wanted).abs().max() < 1e-12
    assert (compiled.norm_back(x, slope, module.weight, scale) - asked.grad).abs().max() < 1e-12


def test_a_gate_is_the_activations_own():
    x, up, slope = drawn(70)
    x = torch.cat([x, torch.tensor([-1e4, -90.0, -0.0, 0, 90, 1e4]).double()])
    up, slope = torch.cat([up, up[:6]]), torch.cat([slope, slope[:6]])
    both = [part.clone().requires_grad_() for part in (x, up)]
    wanted = nn.functional.silu(both[0]) * both[1]
    wanted.backward(slope)
    assert torch.equal(compiled.gate(x, up), wanted)
    for found, part in zip(compiled.gate_back(x, up, slope), both, strict=True):
        assert (found - part.grad).abs().max() < 1e-9 * part.grad.abs().max()


@pytest.mark.parametrize("dtype", NEAR)
def test_they_round_where_the_modules_do(dtype):
    x, up, slope = drawn(64, 48, dtype=dtype)
    module = norm(LlamaRMSNorm, dtype)
    found, scale = compiled.norm(x, module.weight, 1e-5)
    assert torch.equal(found, module(x))
    assert (found.dtype, scale.dtype) == (dtype, torch.float32)
    flat = (x.flatten(), up.flatten(), slope.flatten())
    assert torch.equal(compiled.gate(*flat[:2]), nn.functional.silu(flat[0]) * flat[1])
    assert [
        part.dtype for part in (compiled.norm_back(x, slope, module.weight, scale), *compiled.gate_back(*flat))
    ] == [dtype] * 3


def test_nothing_is_compiled_without_a_gpu():
    x = torch.ones(2, 16)
    assert not compiled.serves(x, x)
    assert compiled.offered() == torch.cuda.is_available()
    with FakeTensorMode():  # while memory is forecast the formula itself answers
        assert compiled.run("gate", torch.ones(4), torch.ones(4)).shape == (4,)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 700, 48), (5, 48)])
def test_on_a_gpu_they_compute_what_the_cpu_does(dtype, shape):
    if not compiled.offered():
        pytest.skip("PyTorch compiles nothing here")
    x, up, slope = drawn(*shape, dtype=dtype)
    module = norm(LlamaRMSNorm, torch.float64)
    wide = [part.double().requires_grad_() for part in (x, up)]
    scale = torch.rsqrt(wide[0].pow(2).mean(-1, keepdim=True) + 1e-5)
    wanted = [module.weight * wide[0] * scale, nn.functional.silu(wide[0]) * wide[1]]
    slopes = [torch.autograd.grad(y, wide[: n + 1], slope.double()) for n, y in enumerate(wanted)]
    there = [part.cuda().requires_grad_() for part in (x, up)]
    with using(rows.norms([module.to("cuda", dtype)])):
        found = [module(there[0]), gated._Gate.apply(nn.SiLU(), *there)]
    assert "_Norm" in type(found[0].grad_fn).__name__
    for n, y in enumerate(found):
        assert apart(y.detach().cpu(), wanted[n].detach()) < NEAR[dtype]
        for one, other in zip(torch.autograd.grad(y, there[: n + 1], slope.cuda()), slopes[n], strict=True):
            assert apart(one.cpu(), other) < NEAR[dtype]


@pytest.mark.gpu
def test_on_a_gpu_a_model_that_trains_runs_them(monkeypatch):
    names, plain = [], compiled.run
    monkeypatch.setattr(compiled, "run", lambda name, *given: (names.append(name), plain(name, *given))[1])
    model = tiny.llama()
    adapt(model, LoRA(2))
    batch = collate(model, [Encoded(tuple(range(3, 40)), (False,) * 4 + (True,) * 33)], 2)
    wanted = logprobs(model.double(), batch).detach()
    with gated.lean(model.float().cuda()):
        names.clear()
        found = logprobs(model, batch.to(torch.device("cuda")))
        found.sum().backward()
    layers = model.config.num_hidden_layers
    counts = {"norm": 2 * layers + 1, "gate": layers, "gate_back": layers, "norm_back": 2 * layers}
    assert {name: names.count(name) for name in names} == (counts if compiled.offered() else {})
    assert (found.cpu().double() - wanted).abs().max() < 1e-3
