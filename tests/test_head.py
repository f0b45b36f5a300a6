"""Head, by hand."""

import pytest
import torch
from torch import nn

from acclimate.errors import ModelError
from acclimate.methods import Head
from acclimate.methods.delta import adapt, attach, carriers, disabled, merge, trainable
from acclimate.methods.head import Copy
from tests import tiny


def test_head_by_hand() -> None:
    """w = (1, 2), b = 3, x = (1, 1): 6. One step of rate 0.1 on the loss y: w = (0.9, 1.9), b = 2.9, so 5.7."""
    layer = nn.Linear(2, 1, dtype=torch.float64)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([3.0]).double()
    x = torch.ones(1, 2, dtype=torch.float64)
    attach(layer, Copy(layer))
    layer.requires_grad_(False)
    layer.delta.requires_grad_(True)
    assert layer(x).item() == 6
    layer(x).sum().backward()
    torch.optim.SGD(trainable(layer).values(), lr=0.1).step()
    assert layer(x).item() == pytest.approx(5.7, abs=1e-12)
    with disabled(layer):
        assert layer(x).item() == 6
    merge(layer)
    assert layer.weight.tolist() == [[0.9, 1.9]]
    assert layer.bias.tolist() == [2.9]


def test_head_needs_an_output_layer() -> None:
    for build in tiny.BUILDS:
        model = tiny.build(build)
        trunk = getattr(model, model.base_model_prefix, None)
        if trunk is not None:
            with pytest.raises(ModelError, match=r"Model has no output layer outside its trunk; train another part"):
                adapt(trunk, Head())


def test_head_carries_all_of_a_deep_head_and_only_that() -> None:
    model = adapt(tiny.build("bert"), Head())
    assert list(carriers(model)) == ["cls.predictions.transform.dense", "cls.predictions.decoder"]
