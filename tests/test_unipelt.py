"""Gated combinations: UniPELT (Mao et al. 2022) and MAM (He et al. 2022), against their formulas."""

import math

import pytest
import torch
from torch import nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods import MAM, UniPELT
from acclimate.methods.delta import adapt, carriers, merge, switch_of, trainable
from acclimate.methods.soft import soft_of
from acclimate.methods.unipelt import Gate, GatedAdapter, GatedLowRank, GatedRows, watched_gates
from tests import tiny
from tests.adapted import adapted, answers, some_ids, train

SMALL = {"bottleneck": 4, "length": 3, "rank": 2}


def sigma(gate: Gate, h: torch.Tensor) -> float:
    """σ(w h + b) of one token, number by number."""
    weight, bias = gate.linear.weight[0].tolist(), gate.linear.bias.item()
    return 1 / (1 + math.exp(-bias - sum(w * x for w, x in zip(weight, h.tolist(), strict=True))))


def parts_of(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    found = {path: switch_of(module)["default"] for path, module in carriers(model).items()}
    return {path: delta for path, delta in found.items() if type(delta) is kind}


def test_every_variant_has_its_submodules() -> None:
    kinds = {"A": GatedAdapter, "P": GatedRows, "L": GatedLowRank}
    for parts in ("APL", "AP", "AL", "PL"):
        model = adapt(tiny.build("llama"), UniPELT(parts, **SMALL))
        present = {letter for letter, kind in kinds.items() if any(isinstance(m, kind) for m in model.modules())}
        assert present == {*parts}
        assert len(soft_of(model).front) == (3 if "P" in parts else 0)


def test_llama_opens_so_many_numbers() -> None:
    """A layer: adapter 2·4·32 + 4 + 32 and gate 33; prefix 3 (16 + 16) and gates 17 + 17; LoRA 2 (64 + 48), gate 33."""
    model = adapt(tiny.build("llama"), UniPELT(**SMALL))
    assert sum(p.numel() for p in trainable(model).values()) == 2 * (292 + 33 + 96 + 34 + 224 + 33)


def test_query_and_value_of_a_layer_share_their_gate() -> None:
    model = adapt(tiny.build("llama"), UniPELT("AL", **SMALL))
    gates = [delta.gate for delta in parts_of(model, GatedLowRank).values()]
    assert len(gates) == 4
    assert len({id(gate) for gate in gates}) == 2
    assert len([n for n in trainable(model) if "q_proj" in n and "gate" in n]) == 4
    assert not [n for n in trainable(model) if "v_proj" in n and "gate" in n]


def test_lora_behind_its_gate() -> None:
    model = adapted("llama", "unipelt")
    delta = next(iter(parts_of(model, GatedLowRank).values()))
    x, y = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    got = delta(x, y)
    for r in range(2):
        for t in range(5):
            wanted = y[r, t] + sigma(delta.gate, x[r, t]) * (delta.b @ (delta.a @ x[r, t]))
            assert torch.allclose(got[r, t], wanted, rtol=1e-9)


def test_the_adapter_behind_its_gate() -> None:
    delta = next(iter(parts_of(adapted("llama", "unipelt"), GatedAdapter).values()))
    y = torch.randn(7, 32, dtype=torch.float64)
    for got, h in zip(delta(y, y), y, strict=True):
        inner = delta.inner
        wanted = h + sigma(delta.gate, h) * (inner.up @ (inner.down @ h + inner.down_bias).relu() + inner.up_bias)
        assert torch.allclose(got, wanted, rtol=1e-9)


def test_keys_and_values_behind_their_gates() -> None:
    delta = next(
        d for m in adapted("llama", "unipelt").modules() if hasattr(m, "values") for d in [m] if type(d) is GatedRows
    )
    ids = torch.tensor([[delta.first + 1, 4, delta.first]])
    y = torch.randn(1, 3, 16, dtype=torch.float64)
    got = delta(ids, y)
    assert torch.equal(got[0, 1], y[0, 1])
    for place, row in ((0, 1), (2, 0)):
        assert torch.allclose(got[0, place], sigma(delta.gate, y[0, place]) * delta.rows[row], rtol=1e-9)


def test_closed_gates_are_the_base_bit_for_bit() -> None:
    model = tiny.build("llama")
    base = answers(model)
    adapt(model, UniPELT("AL", **SMALL))
    train(model)
    assert not torch.equal(answers(model), base)
    for gate in (m for m in model.modules() if isinstance(m, Gate)):
        nn.init.constant_(gate.linear.bias, -1e9)
    assert torch.equal(answers(model), base)


def test_mean_gates_of_each_layer_are_shown() -> None:
    model = adapted("llama", "unipelt")
    gates = {path: gate for path, gate in model.named_modules() if isinstance(gate, Gate)}
    for path, gate in gates.items():
        value = {GatedLowRank: 0.1, GatedAdapter: 0.2, GatedRows: 0.3}[type(model.get_submodule(path[:-5]))]
        nn.init.zeros_(gate.linear.weight)
        nn.init.constant_(gate.linear.bias, math.log(value / (1 - value)))
    ((_, rows),) = UniPELT().learned(model, lambda: answers(model), str).items()
    assert list(rows) == ["model.layers.0", "model.layers.1"]
    for row in rows.values():
        assert row == pytest.approx({"LoRA": 0.1, "adapter": 0.2, "prefix": 0.3})


def test_gate_values_are_reported_while_they_are_watched() -> None:
    model = adapted("llama", "unipelt")
    with watched_gates(model) as seen:
        answers(model)
        answers(model, some_ids(1))
    assert len(seen) == 2 * 4  # adapter, LoRA, keys, values of two layers
    assert all(0 < value < 1 for values in seen.values() for value in values)
    assert {path.split(".delta.")[0].rpartition(".")[2] for path in seen} == {"q_proj", "k_proj", "v_proj", "down_proj"}
    before = {path: len(values) for path, values in seen.items()}
    answers(model)
    assert {path: len(values) for path, values in seen.items()} == before


def test_gates_cannot_be_merged() -> None:
    with pytest.raises(ModelError, match="GatedLowRank cannot be merged"):
        merge(adapt(tiny.build("llama"), UniPELT("AL", **SMALL)))


def test_mam_is_a_prefix_and_scaled_parallel_adapters() -> None:
    """Two layers: prefix without reparameterisation 3 (16 + 16), adapter 2·4·32 + 4 + 32."""
    model = adapt(tiny.build("llama"), MAM(3, 0, 4))
    assert sum(p.numel() for p in trainable(model).values()) == 2 * (96 + 292)
    assert {path.rpartition(".")[2] for path in carriers(model)} == {"embed_tokens", "k_proj", "v_proj", "down_proj"}
    with pytest.raises(RecipeError, match="bottleneck 0"):
        adapt(tiny.build("llama"), MAM(3, 0, 0))
