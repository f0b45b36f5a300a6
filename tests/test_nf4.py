"""NF4 by hand, against brute force, against the quantiles it stands for, and against bitsandbytes where it is installed."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import ModelError
from acclimate.methods import nf4
from acclimate.methods.nf4 import LEVELS, NF4Linear, Packed, dequantise, quantise

both = pytest.mark.parametrize("double", [True, False])


def some(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def held_bytes(held: Packed) -> int:
    return sum(t.numel() * t.element_size() for t in held if t is not None)


def test_the_levels_are_the_quantiles_of_a_normal_weight() -> None:
    """Appendix E: δ = ½ (1/32 + 1/30); 8 even steps of probability from δ to ½, 9 from ½ to 1 − δ, over the largest."""
    offset = (1 / 32 + 1 / 30) / 2
    below = [NormalDist().inv_cdf(offset + (0.5 - offset) * i / 7) for i in range(8)]
    above = [NormalDist().inv_cdf(0.5 + (0.5 - offset) * i / 8) for i in range(9)]
    levels = [*(x / -below[0] for x in below[:-1]), 0.0, *(x / above[-1] for x in above[1:])]
    assert len(LEVELS) == 16
    assert list(LEVELS) == pytest.approx(levels, abs=1e-6)


def test_a_block_by_hand() -> None:
    """(2, −1, 0, ½) over 2 is (1, −½, 0, ¼), nearest to the levels 15 (1), 2 (−0.5251), 7 (0) and 10 (0.2461)."""
    held = quantise(torch.tensor([[2.0, -1.0], [0.0, 0.5]]), double=False)
    assert held.codes.tolist() == [15 * 16 + 2, 7 * 16 + 10]
    assert held.constants.tolist() == [2.0]
    back = dequantise(held, (2, 2), torch.float64)
    assert back.tolist() == [[2.0, pytest.approx(-1.0501461)], [0.0, pytest.approx(0.4922246)]]


def test_double_quantisation_by_hand() -> None:
    """Constants 3 and 1 are 2 ± 1, so scale 1; the steps end at 1 but begin at −0.99297 = −(0.9859375 + 1) / 2."""
    weight = torch.zeros(2, 64)
    weight[0, 5], weight[1, 6] = 3.0, -1.0
    held = quantise(weight)
    assert (held.mean, held.scales, held.constants.tolist()) == (2.0, torch.tensor([1.0]), [255, 0])
    back = dequantise(held, (2, 64), torch.float32)
    assert back[0, 5] == 3.0
    assert back[1, 6].item() == pytest.approx(-(2 - 0.99296875))
    assert back.count_nonzero() == 2


def nearest(value: float, levels: list[float]) -> int:
    return min(range(len(levels)), key=lambda i: abs(value - levels[i]))


def slow(weight: Tensor, double: bool) -> list[float]:
    """What the weight becomes, one number at a time; steps of eight bits from their definition (arXiv:1511.04561)."""
    numbers = weight.flatten().tolist()
    constants = [max(abs(x) for x in numbers[i : i + 64]) for i in range(0, len(numbers), 64)]
    codes = [nearest(x / constants[i // 64], list(LEVELS)) for i, x in enumerate(numbers)]
    if double:
        sizes = [10.0 ** (i - 6) * (0.1 + 0.9 * (k + 0.5) / 2**i) for i in range(7) for k in range(2**i)]
        steps = [0.0, 1.0, *sizes, *(-s for s in sizes)]
        mean = sum(constants) / len(constants)
        centred = [c - mean for c in constants]
        for start in range(0, len(centred), 256):
            scale = max(abs(c) for c in centred[start : start + 256])
            for i, c in enumerate(centred[start : start + 256], start):
                constants[i] = mean + scale * steps[nearest(c / scale, steps)]
    return [LEVELS[code] * constants[i // 64] for i, code in enumerate(codes)]


@both
@pytest.mark.parametrize("shape", [(13, 37), (8, 64), (271, 65)])
def test_every_number_is_what_brute_force_gives(shape: tuple[int, int], double: bool) -> None:
    """481 numbers (short last block, odd), 8 whole blocks, 17,615 (276 constants: two scales)."""
    weight = some(*shape)
    back = dequantise(quantise(weight, double), shape, torch.float64)
    slowly = torch.tensor(slow(weight, double), dtype=torch.float64).view(shape)
    assert torch.allclose(back, slowly, rtol=1e-6, atol=0)
    error, expected = (back - weight).square().mean().sqrt(), (slowly - weight).square().mean().sqrt()
    assert error.item() == pytest.approx(expected.item(), rel=1e-6)
    assert 0.07 < error < 0.12  # of a standard deviation


def test_double_quantisation_costs_little() -> None:
    weight = some(512, 512)
    single, double = (
        (dequantise(quantise(weight, double), (512, 512), torch.float32) - weight).square().mean()
        for double in (False, True)
    )
    assert single < double < 1.01 * single


def test_bits_per_number() -> None:
    """4 + 8/64 + 32/(64 · 256) = 4.127, and 0.373 less than 4 + 32/64; the mean is 32 bits for the whole weight."""
    weight = some(1024, 768)
    double, single = (8 * held_bytes(quantise(weight, kind)) / weight.numel() for kind in (True, False))
    assert single == 4.5
    assert double == 4 + 8 / 64 + 32 / (64 * 256) + 32 / weight.numel()
    assert round(double, 3) == 4.127
    assert round(single - double, 3) == 0.373


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_once(double: bool, dtype: torch.dtype) -> None:
    held = quantise(some(96, 50, dtype=dtype), double)
    exact = dequantise(held, (96, 50), torch.float32)
    assert torch.equal(dequantise(held, (96, 50), dtype), exact.to(dtype))
    assert not torch.equal(exact.to(dtype).float(), exact)


@both
def test_zeros_stay_zeros(double: bool) -> None:
    weight = some(5, 64)
    weight[2] = 0.0
    back = dequantise(quantise(weight, double), (5, 64), torch.float32)
    assert back[2].tolist() == [0.0] * 64
    assert back[1].abs().max().item() == pytest.approx(weight[1].abs().max().item(), rel=0.01)
    assert dequantise(quantise(torch.zeros(3, 3), double), (3, 3), torch.float32).tolist() == [[0.0] * 3] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    weight = some(4, 4)
    weight[1, 2] = bad
    with pytest.raises(ModelError, match="A weight holds NaN or infinity"):
        quantise(weight)


def layer(
    d_out: int = 48, d_in: int = 40, dtype: torch.dtype = torch.float64, double: bool = True, transposed: bool = False
) -> NF4Linear:
    bias = nn.Parameter(some(d_out, dtype=dtype, seed=2))
    return NF4Linear(some(d_out, d_in, dtype=dtype, seed=1), bias, double=double, transposed=transposed)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40)])
def test_the_layer_is_a_linear_layer_with_the_dequantised_weight(
    shape: tuple[int, ...], dtype: torch.dtype, double: bool
) -> None:
    ours = layer(dtype=dtype, double=double)
    matrix, bias = ours.weight, ours.bias.detach().clone().requires_grad_()
    assert matrix.dtype == dtype
    x, y = (some(*shape, dtype=dtype).requires_grad_() for _ in range(2))
    here, there = ours(x), nn.functional.linear(y, matrix, bias)
    assert torch.equal(here, there)
    (here * here).sum().backward()
    (there * there).sum().backward()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert (x.grad - y.grad).abs().max() <= tolerance * y.grad.abs().max()
    assert (ours.bias.grad - bias.grad).abs().max() <= tolerance * bias.grad.abs().max()


def test_the_gradient_is_that_of_finite_differences() -> None:
    ours = layer(5, 7)
    assert torch.autograd.gradcheck(ours, (some(3, 7, dtype=torch.float64).requires_grad_(),))


def test_a_conv1d_keeps_its_layout() -> None:
    plain, turned = layer(), layer(transposed=True)
    assert torch.equal(turned.weight, plain.weight.T)
    assert torch.equal(turned(some(3, 40).double()), plain(some(3, 40).double()))


def saved_bytes(run: Any) -> int:
    """Bytes of floating-point tensors that the graph of `run()` keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run().sum().backward()
    return sum(kept.values())


def test_no_wider_copy_is_kept_for_the_backward_pass() -> None:
    ours = layer(256, 256, torch.float32)
    x = some(2, 256).requires_grad_()
    assert saved_bytes(lambda: nn.functional.linear(x, ours.weight, ours.bias)) >= 4 * 256 * 256
    assert saved_bytes(lambda: ours(x)) < 256  # one scale and the mean
    assert x.grad is not None


def test_only_the_bias_can_train() -> None:
    ours = layer()
    assert [name for name, _ in ours.named_parameters()] == ["bias"]
    assert not ours.weight.requires_grad
    assert not NF4Linear(some(4, 4)).forward(some(2, 4)).requires_grad


@both
def test_what_is_held_survives_a_change_of_dtype(double: bool) -> None:
    ours = layer(dtype=torch.float32, double=double)
    before, matrix = ours.packed, ours.weight
    ours.to(torch.bfloat16)
    assert (ours.weight.dtype, ours.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(ours.weight, matrix.bfloat16())
    ours.double()
    for old, new in zip(before, ours.packed, strict=True):
        assert (old is None) == (new is None)
        assert old is None or (new.dtype == old.dtype and torch.equal(new, old))
    assert torch.equal(ours.weight, matrix.double())


@both
def test_a_state_dict_there_and_back(double: bool) -> None:
    one, other = layer(dtype=torch.float32, double=double), NF4Linear(some(48, 40, seed=9), layer().bias, double=double)
    x = some(3, 40)
    assert not torch.equal(other(x), one(x))
    state = one.state_dict()
    assert set(state) == {"codes", "constants", "bias", *(("scales", "mean") if double else ())}
    other.load_state_dict(state)
    other.float()
    assert torch.equal(other(x), one(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(nn.Linear(40, 48).state_dict())


def test_autocast_sets_the_dtype_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """W is made no wider than that."""
    asked: list[torch.dtype] = []
    monkeypatch.setattr(
        nf4, "dequantise", lambda held, shape, dtype: asked.append(dtype) or dequantise(held, shape, dtype)
    )
    ours = layer(dtype=torch.float32)
    x = some(3, 40).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ours(x)
        wide = ours(x.double())
    assert asked == [torch.bfloat16, torch.float64]
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, nn.functional.linear(x.bfloat16(), ours.weight.bfloat16(), ours.bias.bfloat16()))
    mixed.sum().backward()
    assert x.grad.dtype == torch.float32
    assert wide.dtype == torch.float64


def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes")


def test_the_steps_of_eight_bits_are_those_of_bitsandbytes() -> None:
    theirs = bitsandbytes().functional.create_dynamic_map()
    assert torch.equal(nf4._STEPS, theirs)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_makes_the_same_bytes(dtype: torch.dtype, double: bool) -> None:
    """Its quantiser for the CPU takes the second nearest step here and there; what it reads from our bytes is ours."""
    theirs, weight = bitsandbytes().functional, some(512, 256, dtype=dtype)
    codes, state = theirs.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    ours = quantise(weight, double)
    assert (codes.flatten() != ours.codes).float().mean() < 1e-4
    assert (state.absmax != ours.constants).float().mean() < 0.01
    state.absmax = ours.constants
    there = theirs.dequantize_4bit(ours.codes[:, None], state)
    assert torch.equal(there, dequantise(ours, (512, 256), dtype))


def agree(device: str) -> None:
    bitsandbytes()
    for double in (True, False):
        for dtype, bound in ((torch.float32, 1e-3 if device == "cuda" else 1e-5), (torch.bfloat16, 0.02)):
            ours = layer(128, 192, dtype, double).to(device)
            x, y = (some(5, 192, dtype=dtype).to(device).requires_grad_() for _ in range(2))
            here = nn.functional.linear(x, ours.weight, ours.bias)
            there = nf4.bitsandbytes_linear(y, ours, ours.bias.detach())
            here.square().sum().backward()
            there.square().sum().backward()
            assert (here - there).abs().max() <= bound * here.abs().max()
            assert (x.grad - y.grad).abs().max() <= bound * x.grad.abs().max()
            if device == "cuda":
                assert torch.equal(ours(y), there)


def test_bitsandbytes_multiplies_to_the_same() -> None:
    agree("cpu")


@pytest.mark.gpu
def test_bitsandbytes_on_a_gpu_multiplies_to_the_same() -> None:
    agree("cuda")
