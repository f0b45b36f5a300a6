"""LoRA, by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from acclimate.errors import RecipeError
from acclimate.methods import LoRA, artifact
from acclimate.methods.delta import adapt, attach, merge, trainable
from acclimate.methods.lora import LowRank
from tests import tiny
from tests.adapted import SPECS, adapted, answers, bits, changed, train


def test_a_of_lora_waits_for_b() -> None:
    model = adapt(tiny.build("llama"), SPECS["lora"])
    before = bits(model)
    train(model, steps=1)
    assert changed(before, bits(model)) == {n for n in trainable(model) if n.endswith(".b")}
    train(model, steps=1)
    assert changed(before, bits(model)) == set(trainable(model))


def test_merge_into_bfloat16_rounds_once() -> None:
    model = adapted("gpt2", "lora", torch.bfloat16)
    layer = model.get_submodule("transformer.h.0.mlp.c_fc")
    delta, weight = layer.delta["default"], layer.weight.detach().clone()
    change = (delta.b.double() @ delta.a.double()).T * (16.0 / 2)
    merge(model)
    assert layer.weight.dtype == torch.bfloat16
    exact = (weight.double() + change).bfloat16()
    assert (layer.weight != exact).sum() <= 1  # float32 and float64 may round one tie apart
    assert (layer.weight != weight + change.bfloat16()).sum() > 10  # what rounding twice would give


def test_dropout_only_while_training() -> None:
    spec = LoRA(4, dropout=0.5)
    model = adapt(tiny.build("llama"), spec)  # built in evaluation mode
    train(model)
    still = answers(model)
    assert torch.equal(answers(model), still)
    model.train()
    assert not torch.equal(answers(model), still)
    other = adapt(tiny.build("llama").train(), spec)
    train(other)
    assert not torch.equal(answers(other), answers(other))
    plain = adapt(tiny.build("llama"), LoRA(4))
    artifact.fill(plain, artifact.tensors(model))
    assert torch.equal(answers(plain), still)


def test_the_start_depends_on_the_seed_alone() -> None:
    """Not on the global generator, which it leaves alone, nor on the default dtype or the adapter's name."""
    torch.manual_seed(1)
    one = artifact.tensors(adapt(tiny.build("bert"), LoRA(4), seed=5))
    model = tiny.build("bert", seed=2)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        two = artifact.tensors(adapt(model, LoRA(4), name="two", seed=5), "two")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert not changed(one, two)
    other = artifact.tensors(adapt(tiny.build("bert"), LoRA(4), seed=6))
    assert changed(one, other) == {n for n in one if n.endswith(".a")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lora_by_hand(dtype: torch.dtype) -> None:
    """W = [[1, 2], [3, 4]], A = [[1, 1]], B = [[1], [-1]], alpha / rank = 2, x = (1, 2):
    W x = (5, 11), A x = 3, 2 B A x = (6, −6), so (11, 5); merged W = [[3, 4], [1, 2]]."""
    linear = nn.Linear(2, 2, bias=False, dtype=dtype)
    linear.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    model = nn.ModuleDict({"layer": linear})
    attach(linear, LowRank(2, 2, LoRA(rank=1, alpha=2.0)))
    linear.delta["default"].a.data[:] = torch.tensor([[1.0, 1.0]])
    linear.delta["default"].b.data[:] = torch.tensor([[1.0], [-1.0]])
    x = torch.tensor([[1.0, 2.0]], dtype=dtype)
    assert linear(x).tolist() == [[11.0, 5.0]]
    assert linear(input=x).tolist() == [[11.0, 5.0]]
    merge(model)
    assert linear.weight.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert linear(x).tolist() == [[11.0, 5.0]]


def test_lora_of_gpt2_changes_the_transposed_weight() -> None:
    layer = tiny.build("gpt2").get_submodule("transformer.h.0.mlp.c_fc")
    layer.weight.data.zero_()
    attach(layer, LowRank(32, 128, LoRA(rank=1, alpha=1.0)))
    layer.delta["default"].a.data[:] = 1.0
    layer.delta["default"].b.data[:] = torch.arange(128.0)[:, None]
    merge(nn.ModuleDict({"layer": layer}))
    assert torch.equal(layer.weight, torch.arange(128.0, dtype=torch.float64).expand(32, 128))


def test_lora_has_r_times_d_plus_k_parameters() -> None:
    """8 · (512 + 64) = 4,608, of 32,768 in the weight."""
    assert sum(p.numel() for p in LowRank(512, 64, LoRA(rank=8)).parameters()) == 4608


@pytest.mark.parametrize("odd", [{"rank": 0}, {"rank": -2}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_lora_refuses_what_makes_no_sense(odd: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="the rank is at least 1, the dropout at least 0 and below 1"):
        LoRA(**odd)
