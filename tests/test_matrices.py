"""Products of many rows by tiles: nearer to the exact ones than a rounding, forth and back, and taken where they are chosen."""

import pytest
import torch
from torch import nn

from acclimate.methods import LoRA
from acclimate.methods.delta import attach
from acclimate.methods.lora import LowRank
from acclimate.models import kernels, matrices
from acclimate.models.gated import by_token, lean

tiled = pytest.mark.skipif(matrices._function() is None, reason="no tiles here")
SHAPES = [(128, 32, 32), (129, 64, 32), (160, 96, 64), (200, 576, 192), (1000, 1536, 576), (31, 32, 96), (1, 64, 64)]


def some(rows: int, columns: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (drawn / columns**0.5).bfloat16()


@pytest.fixture
def chosen(monkeypatch) -> list[tuple[int, bool]]:
    """Up to 96 columns; the columns of every product, and whether it was forth."""
    seen: list[tuple[int, bool]] = []
    plain = matrices.product

    def product(x: torch.Tensor, weight: torch.Tensor, across: bool) -> torch.Tensor:
        made = plain(x, weight, across)
        seen.append((made.shape[-1], across))
        return made

    monkeypatch.setattr(matrices, "limit", lambda: 96)
    monkeypatch.setattr(matrices, "product", product)
    return seen


@tiled
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_it_is_the_product_rounded_once(m, k, n, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = some(m, k, 0) * 3, some(n, k, 1)
        forth, back = matrices.product(x[None], weight, True), matrices.product(x, weight.t().contiguous(), False)
    finally:
        torch.set_num_threads(before)
    exact = x.double() @ weight.double().t()
    assert forth.shape == (1, m, n)
    assert torch.equal(forth[0], back)
    assert bool(((back.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all())


@tiled
def test_a_row_is_what_it_is_alone():
    x, weight = some(300, 64, 0), some(32, 64, 1)
    whole = matrices.product(x, weight, True)
    assert torch.equal(whole[130:290], matrices.product(x[130:290], weight, True))


@tiled
def test_what_is_no_number_stays_in_its_row():
    x = some(128, 32, 0)
    x[5, 3] = torch.nan
    found = matrices.product(x, some(32, 32, 1), True).isnan()
    assert bool(found[5].all())
    assert int(found.sum()) == 32


@tiled
@pytest.mark.parametrize(("k", "n", "taken"), [(64, 96, [True, False]), (64, 256, [False]), (256, 64, [True])])
def test_each_way_is_taken_by_whoever_is_quicker(k, n, taken, chosen):
    layer = nn.Linear(k, n, bias=False).bfloat16().requires_grad_(False)
    x = some(150, k, 0).requires_grad_()
    plain = layer(x)
    with kernels.using(by_token([layer])):
        found = layer(x)
    slope = some(150, n, 2)
    (wanted,) = torch.autograd.grad(plain, x, slope)
    (given,) = torch.autograd.grad(found, x, slope)
    assert [forth for _, forth in chosen] == taken
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.02)
    torch.testing.assert_close(given, wanted, rtol=0.02, atol=0.02)


@tiled
@pytest.mark.parametrize("how", ["float32", "few", "trains", "bias", "odd", "wide", "transposed"])
def test_pytorch_multiplies_where_the_kernel_does_not(how, chosen):
    k, n = {"odd": (48, 64), "wide": (128, 128)}.get(how, (64, 64))
    layer = nn.Linear(k, n, bias=how == "bias").bfloat16().requires_grad_(how == "trains")
    layer = layer.float() if how == "float32" else layer
    x = some(16 if how == "few" else 150, k, 0).to(layer.weight.dtype)
    x = some(k, 150, 0).t() if how == "transposed" else x
    plain = layer(x)
    with kernels.using(by_token([layer])):
        assert torch.equal(layer(x), plain)
    assert chosen == []


@tiled
def test_training_and_reading_take_it_with_a_lora_on_top(chosen):
    layer = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    layer.requires_grad_(False)
    attach(layer[0], LowRank(64, 64, LoRA(2)))
    x = some(150, 64, 0).requires_grad_()
    with lean(layer):
        layer(x).sum().backward()
    assert [forth for _, forth in chosen] == [True, False]
    assert layer[0].delta["default"].b.grad is not None


def test_without_tiles_nothing_is_chosen(monkeypatch):
    monkeypatch.setattr(matrices, "_function", lambda: None)
    matrices.limit.cache_clear()
    try:
        assert matrices.limit() == 0
        assert matrices.describe() == "PyTorch's"
        assert matrices.products([nn.Linear(64, 64, bias=False).bfloat16()]) == {}
    finally:
        matrices.limit.cache_clear()
