"""The reference never moves, is no second copy, and is the same however it is asked (G15)."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from acclimate.methods import Full, Head, LoRA
from acclimate.methods.delta import adapt, base, trainable
from acclimate.models.collate import collate
from acclimate.models.gated import lean
from acclimate.objectives import DPO
from acclimate.run.train import recompute
from acclimate.training.fit import fit
from acclimate.training.reference import base_logprobs, referenced, stands_still, undropped
from tests import tiny
from tests.compared import PAD, batch_of, logprobs_of, rows_for


def alone(model, rows):
    """Σ log p of every completion of the model as it stands."""
    return torch.tensor([sum(logprobs_of(model, each)) for row in rows for each in row.rows], dtype=torch.float64)


def documents(rows):
    return [each for row in rows for each in row.rows]


def trained(model, rows, steps=4):
    """A few steps of DPO."""
    batch = batch_of(model, rows)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    for _ in fit(model, [[batch]] * steps, DPO(), optimizer, rate=lambda i: 0.1):
        pass
    return model


@pytest.mark.parametrize("build", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.5), Head()], ids=["lora", "head"])
def test_the_reference_is_the_model_without_its_deltas_whatever_trains(build, method):
    bare = tiny.build(build)
    rows = rows_for(bare)
    expected = alone(bare, rows)
    before = {name: p.detach().clone() for name, p in bare.named_parameters()}
    model = trained(adapt(copy.deepcopy(bare), method, seed=0), rows).train()
    assert stands_still(model)
    batch = collate(model, documents(rows), PAD)
    torch.testing.assert_close(base_logprobs(model, batch, len(expected)), expected, rtol=0, atol=1e-9)
    assert not torch.allclose(alone(model.eval(), rows), expected)
    assert all(torch.equal(p, before[name]) for name, p in base(model).items())


def test_it_is_no_second_copy():
    model = adapt(tiny.build("llama"), LoRA(rank=2), seed=0)
    rows = rows_for(model)
    own = {p.data_ptr() for p in model.parameters()}
    used = set()

    def look(module: nn.Module, given: object) -> None:
        used.update(p.data_ptr() for p in module.parameters(recurse=False))

    hooks = [module.register_forward_pre_hook(look) for module in model.modules()]
    base_logprobs(model, collate(model, documents(rows), PAD), 13)
    for hook in hooks:
        hook.remove()
    assert used <= own
    assert len(used) > 10
    assert {p.data_ptr() for p in model.parameters()} == own


def test_dropout_is_off_and_every_mode_is_as_it_was():
    model = adapt(tiny.llama(dropout=0.5).double(), LoRA(rank=2, dropout=0.5), seed=0).train()
    rows = rows_for(model)
    batch = collate(model, documents(rows), PAD)
    one, other = (base_logprobs(model, batch, 13) for _ in range(2))
    assert torch.equal(one, other)
    assert all(module.training for module in model.modules())


def test_what_is_kept_is_what_the_model_said_before_it_moved(tmp_path):
    bare = tiny.build("gpt2")
    rows = rows_for(bare)
    expected = alone(bare, rows)
    model = adapt(copy.deepcopy(bare), Full(), seed=0)
    assert not stands_still(model)
    kept = tmp_path / "reference.json"
    found = referenced(rows, model, PAD, kept, "base")
    live = base_logprobs(adapt(bare, LoRA(rank=2), seed=0), collate(bare, documents(rows), PAD), len(expected))
    values = torch.tensor([value for row in found for value in row.reference], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(values, live, rtol=0, atol=1e-9)
    trained(model, rows)
    again = referenced(rows, model, PAD, kept, "base")
    assert [row.reference for row in again] == [row.reference for row in found]


def test_another_base_or_another_row_is_asked_anew(tmp_path):
    model, other = tiny.build("gpt2"), tiny.build("gpt2", seed=1)
    rows, kept = rows_for(model), tmp_path / "reference.json"
    first = referenced(rows[:2], model, PAD, kept, "one")
    assert referenced(rows[:2], other, PAD, kept, "one") == first
    more = referenced(rows[:3], other, PAD, kept, "one")
    assert more[:2] == first
    torch.testing.assert_close(
        torch.tensor(more[2].reference, dtype=torch.float64), alone(other, rows[2:3]), rtol=0, atol=1e-9
    )
    anew = referenced(rows[:2], other, PAD, kept, "two")
    assert all(a.reference != b.reference for a, b in zip(anew, first, strict=True))


def test_dpo_starts_at_log_two_to_the_bit():
    model = adapt(tiny.build("llama", torch.float32), LoRA(rank=2), seed=0)
    rows = rows_for(model, sizes=((1, 2),))
    batch = batch_of(model, rows, reference=False)
    with lean(model):  # as every update is
        found = DPO()(model, replace(batch, reference=base_logprobs(model, batch, 2)))
    assert found.total.item() == torch.tensor(2.0).log().item()


def dropping(build):
    """A model and an adapter that drop something wherever they can while they train."""
    model = adapt(tiny.build(build), LoRA(rank=2, dropout=0.5), seed=0)
    for module in model.modules():
        for name in [name for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)]:
            setattr(module, name, 0.2)
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return model.train()


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("build", ["llama", "gpt2", "opt", "bart"])
def test_a_policy_drops_nothing_forwards_or_backwards(build, recomputes):
    model = dropping(build)
    rows = rows_for(model, sizes=((1, 2), (2, 1)))
    batch = batch_of(model, rows)

    def step():
        model.zero_grad()
        loss = DPO()(model, batch)
        loss.total.backward()
        return loss.total.item(), {name: p.grad for name, p in trainable(model).items()}

    assert DPO()(model, batch).total.item() != DPO()(model, batch).total.item()
    model.eval()
    value, gradients = step()
    model.train()
    if recomputes:
        recompute(model)
    undropped(model)
    assert any(module.training for module in model.modules()) == recomputes
    again, others = step()
    assert again == pytest.approx(value, abs=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-9)
