"""Gated layers that hold less: the same bits there, the same gradients back, and nothing changed afterwards."""

import copy

import pytest
import torch
from torch import nn

from acclimate.methods import METHODS
from acclimate.methods.delta import adapt, trainable
from acclimate.models import rows
from acclimate.models.collate import collate
from acclimate.models.gated import PARTS, _Gate, lean
from acclimate.objectives import LM
from acclimate.training import optim
from acclimate.training.fit import fit
from tests import tiny
from tests.test_batches import PAD, rows_for

GATED = ("llama", "qwen2", "qwen3", "gemma", "mistral")


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    """Without a compiler; what is compiled is near (test_rows.py), and not of the same bits."""
    monkeypatch.setattr(rows, "_function", lambda name, dtype: None)


def held(work):
    """Numbers that autograd keeps for the way back, each tensor once, and what `work` returns."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = work()
    return sum(kept.values()), found


@pytest.mark.parametrize("act", [nn.SiLU(), nn.functional.relu, lambda x: nn.functional.gelu(x, approximate="tanh")])
def test_the_gradient_by_numbers(act):
    gate, up = (torch.randn(3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda g, u: _Gate.apply(act, g, u), (gate, up))


@pytest.mark.parametrize("method", ["lora", "full", "scaled_parallel", "ia3"])
@pytest.mark.parametrize("name", GATED)
def test_a_model_computes_the_same_bits_and_holds_less(name, method):
    model = adapt(tiny.build(name, torch.float32), METHODS[method]())
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    batch = collate(model.train(), rows_for(model), PAD)
    plain, loss = held(lambda: LM()(model, batch).total)
    loss.backward()
    expected = {path: p.grad.clone() for path, p in trainable(model).items()}
    model.zero_grad()
    with lean(model):
        less, again = held(lambda: LM()(model, batch).total)
        again.backward()
    assert torch.equal(loss, again)
    for path, parameter in trainable(model).items():
        assert torch.allclose(parameter.grad, expected[path], rtol=1e-5, atol=1e-6)
    width = next(m.gate_proj.out_features for m in model.modules() if hasattr(m, "gate_proj"))
    assert plain - less >= width * batch.ids.numel()


def test_only_inside_the_with():
    model = tiny.build("llama", torch.float32)
    with lean(model):
        assert sum("forward" in vars(module) for module in model.modules()) == model.config.num_hidden_layers
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(KeyError), lean(model):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_between_two_steps_can_be_copied():
    model = adapt(tiny.build("llama", torch.float32), METHODS["lora"]())
    batch = collate(model, rows_for(model), PAD)
    steps = fit(model, [[batch]] * 2, LM(), optim.adamw(trainable(model), 0.1), rate=lambda i: 0.1)
    next(steps)
    copied = copy.deepcopy(model)
    before = copied(input_ids=torch.arange(8)[None]).logits
    next(steps)
    assert torch.equal(copied(input_ids=torch.arange(8)[None]).logits, before)


def test_layers_that_do_something_else_are_left_alone():
    class Other(nn.Module):
        """Has the same parts and puts them together otherwise."""

        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (nn.Linear(4, 4) for _ in PARTS)

        def forward(self, x):
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    class Asking(Other):
        """Asks for what is not there."""

        def forward(self, x):
            return self.nothing(x)

    for kind in (Other, Asking):
        layer = kind()
        with lean(layer):
            assert "forward" not in vars(layer)


@pytest.mark.parametrize("name", ["gpt2", "opt", "t5", "bart", "bert"])
def test_models_without_gated_layers_are_as_they_were(name):
    model = tiny.build(name, torch.float32)
    with lean(model):
        assert not any("forward" in vars(module) for module in model.modules())
