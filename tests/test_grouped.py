"""One batch for several LoRAs by grouped products: what adapter by adapter gives, forth and back."""

import pytest
import torch
from torch import Tensor, nn

from acclimate.methods import DoRA, LoRA, UniPELT, grouped
from acclimate.methods.delta import Delta, adapt, attach, per_row, switch_of, switches, using
from acclimate.methods.lora import LowRank
from acclimate.models.collate import collate
from acclimate.models.logprobs import logprobs
from acclimate.tokens.codec import Encoded
from tests import tiny

NAMES = ("a", "b", "c")
CHOICES = {
    "rows, neighbours apart": (["a", "b", None, "a", "c", "b"], None, (6, 5)),
    "rows, one adapter unused": (["c", "a", "c"], None, (3, 7)),
    "rows that a layer flattens": (["b", None, "a"], None, (12,)),
    "documents": (["b", "a", None, "b"], (3, 1, 2, 5), (1, 11)),
    "nobody": ([None, None], None, (2, 3)),
    "everybody": (["a", "b", "c"], None, (3, 4)),
}


def layer(dtype: torch.dtype = torch.float32, d_in: int = 24, d_out: int = 16) -> nn.Linear:
    """With three LoRAs of other ranks and scales, none at its start."""
    torch.manual_seed(0)
    module = nn.Linear(d_in, d_out).to(dtype)
    for name, rank, alpha in zip(NAMES, (2, 8, 11), (4.0, 8.0, 5.0), strict=True):
        delta = LowRank(d_in, d_out, LoRA(rank, alpha))
        nn.init.normal_(delta.b, std=0.3)
        attach(module, delta, name)
    return module


def both_ways(module: nn.Module, x: Tensor, choice) -> list[Tensor]:
    """The output, and the gradients of the input and of every tensor that rides on the layer."""
    asked = x.detach().requires_grad_()
    with using(module, choice):
        y = module(asked)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    switch = switch_of(module)
    assert switch is not None
    found = torch.autograd.grad(y, [asked, *switch.parameters()], slope, materialize_grads=True)
    return [y.detach(), *found]


@pytest.mark.parametrize("name", CHOICES)
def test_it_is_adapter_by_adapter(monkeypatch, name):
    given, lengths, shape = CHOICES[name]
    module, x, choice = layer(), torch.randn(*shape, 24), per_row([*given], lengths)
    choice = type(choice)(NAMES, torch.where(choice.index < 0, -1, _renamed(choice.names)[choice.index]))
    wanted = both_ways(module, x, choice)
    monkeypatch.setattr(grouped, "serves", lambda *_: True)
    calls, plain = [], grouped.changed
    monkeypatch.setattr(grouped, "changed", lambda *given: (calls.append(1), plain(*given))[1])
    found = both_ways(module, x, choice)
    assert calls == [1]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, atol=2e-6, rtol=1e-5)


def _renamed(names: tuple[str, ...]) -> Tensor:
    """The place in NAMES of each of `names`; one more, for −1 to point at."""
    return torch.tensor([*(NAMES.index(name) for name in names), 0])


def test_ranks_are_filled_up_with_nothing():
    each = [(torch.ones(3, 5), torch.ones(7, 3)), (torch.ones(9, 5), torch.ones(7, 9))]
    a, b = grouped.stacked(each)
    assert (a.shape, b.shape) == ((2, 16, 5), (2, 7, 16))
    assert (a.sum((1, 2)).tolist(), b.sum((1, 2)).tolist()) == ([15, 45], [21, 63])


def test_the_order_is_made_once_for_all_layers():
    choice = per_row(["b", None, "a", "b"])
    order, ends = grouped._order(choice.index, torch.Size((4, 2)), 2, torch.device("cpu"))
    assert (order.tolist(), ends.tolist()) == ([0, 1, 6, 7, 4, 5], [4, 6])
    assert grouped._order(choice.index, torch.Size((4, 2)), 2, torch.device("cpu"))[0] is order


def test_what_is_no_plain_lora_has_no_factors():
    model = tiny.llama()
    for number, method in enumerate((LoRA(2, dropout=0.1), LoRA(2), DoRA(2), UniPELT())):
        adapt(model, method, name=f"m{number}")
    deltas = {f"m{i}": [s[f"m{i}"] for s in switches(model) if f"m{i}" in s] for i in range(4)}
    model.train()
    assert all(delta.factors() is None for name in ("m0", "m2", "m3") for delta in deltas[name])
    assert all(delta.factors() is not None for delta in deltas["m1"])
    model.eval()
    assert all(delta.factors() is not None for delta in deltas["m0"])


def test_an_adapter_that_is_missing_or_different_is_asked_by_itself(monkeypatch):
    class Plus(Delta):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return y + 1

    monkeypatch.setattr(grouped, "serves", lambda *_: True)
    monkeypatch.setattr(grouped, "changed", lambda *_: pytest.fail("these are no grouped products"))
    module = layer()
    attach(module, Plus(), "d")
    with using(module, None):
        plain = module(torch.ones(2, 24))
    with using(module, per_row(["d", None])):
        assert (module(torch.ones(2, 24)) - plain)[:, 0].tolist() == [1.0, 0.0]
    switch = switch_of(module)
    assert switch is not None
    del switch["b"]
    switch.active = per_row(["a", "b"])
    assert torch.equal(module(torch.ones(2, 24))[1], plain[1])


def test_the_cpu_goes_adapter_by_adapter():
    x = torch.randn(3, 24).bfloat16()
    assert not grouped.serves(x, x)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHOICES)
def test_on_a_gpu_it_is_adapter_by_adapter(name):
    given, lengths, shape = CHOICES[name]
    module, x, choice = layer(torch.bfloat16).cuda(), torch.randn(*shape, 24).cuda().bfloat16(), per_row(given, lengths)
    with using(module, None):
        y = module(x)
    assert grouped.serves(x, y) == (grouped.offered(y.device))
    found = both_ways(module, x, choice)
    wanted = both_ways(module.cpu().double(), x.cpu().double(), choice)
    for one, other in zip(found, wanted, strict=True):
        assert (one.cpu().double() - other).norm() <= 2e-2 * other.norm()


@pytest.mark.gpu
def test_on_a_gpu_a_model_answers_for_several_adapters_at_once():
    model = tiny.llama().double()
    for name in NAMES:
        adapt(model, LoRA(3), name=name)
    for switch in switches(model):
        for delta in switch.values():
            nn.init.normal_(delta.b, std=0.05)
    rows = [Encoded(tuple(range(3, 3 + n)), (False,) * 4 + (True,) * (n - 4)) for n in (9, 12, 20)]
    batch = collate(model, rows, 2)
    documents = [piece.length for piece in batch.pieces]
    choice = per_row([*NAMES, *[None] * (len(documents) - 3)], documents)
    with using(model, choice):
        wanted = logprobs(model, batch).detach()
    model.cuda().bfloat16()
    with using(model, choice):
        found = logprobs(model, batch.to(torch.device("cuda")))
    assert (found.cpu().double() - wanted).abs().max() < 0.05
