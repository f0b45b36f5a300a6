"""Houlsby's, Pfeiffer's and He's adapters, by hand and against loops written from the papers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError
from acclimate.methods import Houlsby, Parallel, Pfeiffer, ScaledParallel
from acclimate.methods.adapters import Adapter, Bottleneck, NormChange
from acclimate.methods.delta import Method, adapt, attach, carriers, merge, names, trainable
from acclimate.methods.parallel import ParallelAdapter
from tests import tiny
from tests.adapted import adapted, answers, close, refusal, some_ids

KINDS: dict[str, Any] = {
    "houlsby": Houlsby,
    "pfeiffer": Pfeiffer,
    "parallel": Parallel,
    "scaled_parallel": ScaledParallel,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def stirred(model: nn.Module) -> nn.Module:
    """Every number of the change is of a real size, as after training."""
    torch.manual_seed(1)
    for parameter in trainable(model).values():
        parameter.data.normal_(std=0.3)
    return model


def relu(value: float) -> float:
    return max(0.0, value)


def gelu(value: float) -> float:
    return value * (1 + math.erf(value / math.sqrt(2))) / 2


def slow(inner: Bottleneck, h: Sequence[float], nonlinear: Callable[[float], float]) -> Tensor:
    """U f(D h + d) + u, one number at a time."""
    down, d, up, u = (p.tolist() for p in (inner.down, inner.down_bias, inner.up, inner.up_bias))
    inside = [nonlinear(sum(w * x for w, x in zip(row, h, strict=True)) + b) for row, b in zip(down, d, strict=True)]
    outside = [sum(w * x for w, x in zip(row, inside, strict=True)) + b for row, b in zip(up, u, strict=True)]
    return torch.tensor(outside, dtype=torch.float64)


def each(h: Tensor, change: Callable[[list[float]], Tensor]) -> Tensor:
    """`change` of every position of (batch, time, d)."""
    return torch.stack([torch.stack([change(x.tolist()) for x in row]) for row in h])


def riding(module: Any) -> Any:
    return module.delta["default"] if hasattr(module, "delta") else None


def normed(module: Any, h: Tensor) -> Tensor:
    """LayerNorm with the weight w (1 + g) and the bias b (1 + g) + c, written out."""
    weight, bias, change = module.weight, module.bias, riding(module)
    if change is not None:
        weight, bias = weight * (1 + change.g), bias * (1 + change.g) + change.b
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + module.eps).sqrt() * weight + bias


def matrix(module: Any, h: Tensor) -> Tensor:
    return h @ module.weight.T + module.bias


@torch.no_grad()
def slow_bert(model: Any, ids: Tensor, nonlinear: Callable[[float], float], scale: float = 0.0) -> Tensor:
    """BERT layer by layer, as figure 2 of Houlsby et al. draws it: sublayer, adapter, residual, norm. scale: that of an
    adapter beside the feed-forward sublayer, fed with its input, where it is not in series with it."""

    def after(module: Any, h: Tensor) -> Tensor:
        return h if riding(module) is None else h + each(h, lambda x: slow(riding(module).inner, x, nonlinear))

    x = model.bert.embeddings(ids)
    for layer in model.bert.encoder.layer:
        attention, inner, down = layer.attention, layer.intermediate.dense, layer.output.dense
        seen = matrix(attention.output.dense, attention.self(x)[0])
        x = normed(attention.output.LayerNorm, after(attention.output.dense, seen) + x)
        fed = matrix(down, nn.functional.gelu(matrix(inner, x)))
        beside = scale * each(x, lambda row, d=down: slow(riding(d).inner, row, nonlinear))
        x = normed(layer.output.LayerNorm, (fed + beside if scale else after(down, fed)) + x)
    return model.cls(x)


@pytest.mark.parametrize(
    ("spec", "nonlinear", "scale"),
    [
        (Houlsby(3), gelu, 0.0),
        (Pfeiffer(3), relu, 0.0),
        (Parallel(3), relu, 1.0),
        (ScaledParallel(3), relu, 4.0),
        (ScaledParallel(3, scale=0.5), relu, 0.5),
    ],
)
def test_the_figure_of_the_paper(spec: Method, nonlinear: Callable[[float], float], scale: float) -> None:
    model = stirred(adapt(tiny.build("bert"), spec))
    for layer in model.bert.encoder.layer:  # norms that are not 1 and 0 already
        layer.output.LayerNorm.weight.data.uniform_(0.5, 2.0)
        layer.output.LayerNorm.bias.data.normal_()
    ids = some_ids(2, 5)
    assert close(answers(model, ids), slow_bert(model, ids, nonlinear, scale))
    assert not close(answers(model, ids), answers(tiny.build("bert"), ids), 0.1)


@torch.no_grad()
def slow_gpt2(model: Any, ids: Tensor, change: Callable[[Any, Tensor, Tensor], Tensor]) -> Tensor:
    """GPT-2, which norms first: h + A(attention(norm h)), then h + change(down, its input, its output)."""
    h = model.transformer.wte(ids) + model.transformer.wpe.weight[: ids.shape[1]]
    for block in model.transformer.h:
        seen = block.attn(normed(block.ln_1, h))[0]
        h = h + seen
        x = normed(block.ln_2, h)
        up, down = block.mlp.c_fc, block.mlp.c_proj
        inside = nn.functional.gelu(x @ up.weight + up.bias, approximate="tanh")
        h = h + change(riding(down).inner, x, inside @ down.weight + down.bias)
    return model.lm_head(normed(model.transformer.ln_f, h))


@pytest.mark.parametrize(
    ("spec", "change"),
    [
        (Pfeiffer(3), lambda inner, x, y: y + each(y, lambda row: slow(inner, row, relu))),
        (ScaledParallel(3), lambda inner, x, y: y + 4 * each(x, lambda row: slow(inner, row, relu))),
    ],
)
def test_before_the_residual_where_norms_come_first(spec: Method, change: Callable[..., Tensor]) -> None:
    model = stirred(adapt(tiny.build("gpt2"), spec))
    ids = some_ids(2, 5)
    assert close(answers(model, ids), slow_gpt2(model, ids, change))


def test_an_adapter_by_hand() -> None:
    """h = (1, −2). D = [[1, 1]], d = 3: D h + d = 2, relu 2. U = [[1], [10]], u = (0, 1): (2, 21). So (3, 19).
    Beside a layer that makes (5, 5) of h, at s = 4: (5 + 8, 5 + 84) = (13, 89)."""
    h = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    layer = nn.Linear(2, 2, dtype=torch.float64)
    for kind, weight, bias, expected in (
        (Adapter(2, 1, nn.functional.relu), torch.eye(2), [0.0, 0.0], [[3.0, 19.0]]),
        (ParallelAdapter(2, 2, 1, 4.0), torch.zeros(2, 2), [5.0, 5.0], [[13.0, 89.0]]),
    ):
        layer.weight.data, layer.bias.data = weight.double(), torch.tensor(bias).double()
        kind.inner.down.data = torch.tensor([[1.0, 1.0]])
        kind.inner.down_bias.data = torch.tensor([3.0])
        kind.inner.up.data = torch.tensor([[1.0], [10.0]])
        kind.inner.up_bias.data = torch.tensor([0.0, 1.0])
        attach(layer, kind, name := f"a{len(expected)}{int(bias[0])}")
        layer.delta.active = name
        assert layer(h).tolist() == expected


def test_a_norm_by_hand() -> None:
    """(1, 3) normed is (−1, 1); w = 2, b = 1: (−1, 3). g = 0.5: w (1 + g) = 3, b (1 + g) + c = 1.5 + 0.25."""
    norm = nn.LayerNorm(2, eps=0.0, dtype=torch.float64)
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(1.0)
    attach(norm, NormChange(norm))
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    assert norm(x).tolist() == [[-1.0, 3.0]]
    norm.delta["default"].g.data.fill_(0.5)
    norm.delta["default"].b.data.fill_(0.25)
    assert norm(x).tolist() == [[-3 + 1.75, 3 + 1.75]]


def test_so_many_numbers_an_adapter() -> None:
    """2 m d + d + m: BERT-base with m = 64 has 2·64·768 + 768 + 64 = 99,136, of which Houlsby wants 24."""
    assert sum(p.numel() for p in Bottleneck(768, 768, 64, nn.functional.relu).parameters()) == 99136


@pytest.mark.parametrize(
    ("kind", "build", "expected"),
    [
        ("houlsby", "llama", 4 * 292 + 5 * 32),
        ("houlsby", "bert", 4 * 292 + 4 * 64),
        ("houlsby", "gpt2", 4 * 292 + 5 * 64),
        ("houlsby", "t5", (4 + 6) * 292 + (2 * 2 + 1 + 2 * 3 + 1) * 32),
        ("pfeiffer", "llama", 2 * 292),
        ("pfeiffer", "t5", 4 * 292),
        ("parallel", "bert", 2 * 292),
        ("scaled_parallel", "bart", 4 * 292),
    ],
)
def test_so_many_numbers_a_model(kind: str, build: str, expected: int) -> None:
    """An adapter of m = 4 on d = 32: 2·4·32 + 32 + 4 = 292. T5's and BART's decoders attend twice a layer."""
    model = adapt(tiny.build(build), KINDS[kind](4))
    assert sum(p.numel() for p in trainable(model).values()) == expected


@every_kind
@pytest.mark.parametrize("build", sorted(tiny.MORE))
def test_every_architecture(kind: str, build: str) -> None:
    """Starts at the base, then moves it; comes off without a trace."""
    model = tiny.build(build)
    base = answers(model)
    assert torch.equal(answers(adapt(model, KINDS[kind](2))), base)
    moved = answers(stirred(model))
    assert moved.isfinite().all()
    assert not close(moved, base, 1e-2)


def test_the_starts() -> None:
    """Houlsby: std 0.01, none beyond two of them, for which 0.0088 is left. He: LoRA's A, uniform within 1 / √d_in."""
    torch.manual_seed(0)
    series, beside = Adapter(300, 200, nn.functional.relu).inner, ParallelAdapter(300, 300, 200, 4.0).inner
    assert series.down.abs().max() <= 0.02
    assert series.down.std().item() == pytest.approx(0.0088, rel=0.02)
    assert beside.down.abs().max() <= 1 / math.sqrt(300)
    assert beside.down.std().item() == pytest.approx(1 / math.sqrt(900), rel=0.02)
    for inner in (series, beside):
        assert not any(p.any() for p in (inner.down_bias, inner.up, inner.up_bias))


@every_kind
def test_adapters_are_not_merged(kind: str) -> None:
    for build in tiny.BUILDS:
        model = adapted(build, kind)
        before = answers(model)
        assert "cannot be merged: no single weight computes" in str(refusal(model))
        with pytest.raises(ModelError, match=r"cannot be merged: no single weight computes .*\. Keep"):
            merge(model)
        assert torch.equal(answers(model), before)


def test_pfeiffer_leaves_norms_alone() -> None:
    norm = ("LayerNorm", "norm", "ln_1", "ln_2", "ln_f")
    assert not any(path.endswith(norm) for path in carriers(adapt(tiny.build("bert"), Pfeiffer(2))))
    assert any(path.endswith(norm) for path in carriers(adapt(tiny.build("bert"), Houlsby(2))))


@every_kind
@pytest.mark.parametrize("size", [0, -3])
def test_a_bottleneck_needs_room(kind: str, size: int) -> None:
    model = tiny.build("llama")
    with pytest.raises(RecipeError, match=f"{kind} has bottleneck {size}; it is at least 1"):
        adapt(model, KINDS[kind](size))
    assert names(model) == ()
