"""Full, by hand."""

import pytest
import torch
from torch import nn

from acclimate.errors import ModelError
from acclimate.methods import Full, LoRA
from acclimate.methods.delta import adapt, disabled, snapshot
from tests import tiny
from tests.adapted import bits, changed, train


def test_full_by_hand() -> None:
    """y = w x = 6 with w = 2, x = 3: the loss y² / 2 has the slope y x = 18; a rate of 0.1 makes w = 0.2."""
    layer = adapt(nn.Linear(1, 1, bias=False, dtype=torch.float64), Full())
    layer.weight.data.fill_(2.0)
    (layer(torch.full((1, 1), 3.0, dtype=torch.float64)) ** 2 / 2).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert layer.weight.item() == pytest.approx(0.2, abs=1e-12)


def test_full_wants_the_model_for_itself() -> None:
    model = adapt(tiny.build("llama"), LoRA(), name="a")
    with pytest.raises(ModelError, match=r"carries adapters \(a\); merge or detach them"):
        adapt(model, Full())


def test_disabled_gives_the_policy_back_after_an_error() -> None:
    model = adapt(tiny.build("llama"), Full())
    originals = snapshot(model)
    train(model)
    before = bits(model)
    with pytest.raises(KeyError), disabled(model, originals):
        raise KeyError("stop")
    assert not changed(before, bits(model))
