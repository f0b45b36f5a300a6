"""rsLoRA and DoRA, by hand, against loops written from the papers, and against PEFT (G27)."""

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError
from acclimate.interchange.adapter import load_adapter
from acclimate.interchange.peft import CONFIG, WEIGHTS, expresses, read, write
from acclimate.methods import DoRA, Head, LoRA, RsLoRA, artifact
from acclimate.methods.delta import adapt, attach, install, merge, merged
from acclimate.methods.dora import Decomposed
from acclimate.methods.nf4 import NF4Linear
from acclimate.methods.targets import linears, width
from tests import tiny
from tests.adapted import adapted, answers, close, refusal, train

pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in some/base:UserWarning"),
]
every_shape = pytest.mark.parametrize("build", ["llama", "gpt2", "bert"])


def stirred(model: nn.Module) -> nn.Module:
    """B and m of a real size, as after training."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".delta." in name and name.endswith(".b"):
            parameter.data.normal_(std=0.2)
        if ".delta." in name and name.endswith(".m"):
            parameter.data.mul_(1 + 0.5 * torch.rand_like(parameter))
    return model


def ridden(layer: nn.Module, spec: DoRA) -> Decomposed:
    attach(layer, Decomposed(layer, spec))
    layer.requires_grad_(False)
    layer.delta.requires_grad_(True)
    stirred(nn.ModuleDict({"layer": layer}))
    return layer.delta["default"]


def slow_dora(weight: Tensor, bias: Tensor, delta: Decomposed, scale: float, x: Tensor) -> list[float]:
    """Eq. 5 one number at a time: y_i = m_i / ‖v_i‖ · Σ_j v_ij x_j + bias_i, v_ij = w_ij + s Σ_k b_ik a_kj."""
    a, b, m = delta.a.tolist(), delta.b.tolist(), delta.m.tolist()
    answer = []
    for i, row in enumerate(weight.tolist()):
        v = [w + scale * sum(b[i][k] * a[k][j] for k in range(len(a))) for j, w in enumerate(row)]
        length = math.sqrt(sum(each * each for each in v))
        answer.append(m[i] / length * sum(each * x[j].item() for j, each in enumerate(v)) + bias[i].item())
    return answer


def test_rslora_by_hand() -> None:
    """W = 0, A = four rows (1, 1), B = (1, 1, 1, 1), alpha = 6, rank = 4: 6 / √4 · 4 · (1 + 2) = 36; LoRA gives 18."""
    got = {}
    for spec in (RsLoRA(4, 6.0, targets=("q",)), LoRA(4, 6.0, targets=("q",))):
        model = nn.ModuleDict({"q": nn.Linear(2, 1, bias=False, dtype=torch.float64)})
        model.q.weight.data.zero_()
        adapt(model, spec)
        for parameter in model.q.delta.parameters():
            parameter.data.fill_(1.0)
        got[type(spec)] = model.q(torch.tensor([[1.0, 2.0]]).double()).item()
    assert got == {RsLoRA: 36.0, LoRA: 18.0}


def test_rslora_starts_as_lora_does() -> None:
    one, two = (adapt(tiny.build("llama"), spec, seed=3) for spec in (RsLoRA(9, 2.0), LoRA(9, 2.0)))
    ours, plain = artifact.tensors(one), artifact.tensors(two)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[n], plain[n]) for n in ours)
    train(one)
    train(adapt(three := tiny.build("llama"), LoRA(9, 6.0), seed=3))
    assert close(answers(one), answers(three))


def test_dora_by_hand() -> None:
    """W = [[3, 4], [0, 2]], B A = [[-3, 0], [0, 0]]: V = [[0, 4], [0, 2]], ‖V‖ = (4, 2); m = (10, 2) where it began
    as (5, 2); so W' = [[0, 10], [0, 2]], and x = (1, 2) with the bias (1, 1) gives (21, 5)."""
    layer = nn.Linear(2, 2, dtype=torch.float64)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).double(), torch.ones(2).double()
    attach(layer, Decomposed(layer, DoRA(rank=1, alpha=1.0)))
    delta = layer.delta["default"]
    assert delta.m.tolist() == [5.0, 2.0]
    delta.a.data[:], delta.b.data[:] = torch.tensor([[1.0, 0.0]]), torch.tensor([[-3.0], [0.0]])
    delta.m.data[0] = 10.0
    x = torch.tensor([[1.0, 2.0]]).double()
    assert layer(x).tolist() == [[21.0, 5.0]]
    merge(layer)
    assert layer.weight.tolist() == [[0.0, 10.0], [0.0, 2.0]]
    assert layer(x).tolist() == [[21.0, 5.0]]


@pytest.mark.parametrize("path", ["llama:model.layers.0.mlp.up_proj", "gpt2:transformer.h.1.attn.c_attn"])
def test_dora_is_the_loop_of_the_paper(path: str) -> None:
    build, _, name = path.partition(":")
    layer = tiny.build(build).get_submodule(name)
    if layer.bias is not None:
        layer.bias.data.normal_()
    shape = width(layer)
    bias = torch.zeros(shape.d_out) if layer.bias is None else layer.bias
    delta = ridden(layer, DoRA(rank=3, alpha=2.0))
    x = torch.randn(2, shape.d_in, dtype=torch.float64)
    weight = layer.weight.T if shape.transposed else layer.weight
    slow = torch.tensor([slow_dora(weight, bias, delta, 2 / 3, row) for row in x], dtype=torch.float64)
    assert close(layer(x).detach(), slow)
    assert not close(layer.forward(x).detach(), slow, 0.1)


def test_the_length_gets_no_gradient() -> None:
    """Section 4.3, eq. 11: with C = ‖V‖ held constant, ∇V = m / C ∇W', so ∇B = s ∇V Aᵀ, ∇A = s Bᵀ ∇V; and eq. 7:
    ∇m = Σ ∇W' ⊙ V / C over the inputs."""
    layer = nn.Linear(5, 4, dtype=torch.float64)
    delta = ridden(layer, DoRA(rank=2, alpha=6.0))
    x, g = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    a, b, m = delta.a.detach(), delta.b.detach(), delta.m.detach()
    v = layer.weight.detach() + 3 * b @ a
    c = (v * v).sum(1).sqrt()
    to_merged = g.T @ x
    to_v = (m / c)[:, None] * to_merged
    assert close(delta.a.grad, 3 * b.T @ to_v)
    assert close(delta.b.grad, 3 * to_v @ a.T)
    assert close(delta.m.grad, (to_merged * v).sum(1) / c)


def test_dora_opens_d_out_numbers_more_than_lora() -> None:
    """8 · (512 + 64) + 64 = 4,672."""
    assert sum(p.numel() for p in Decomposed(nn.Linear(512, 64), DoRA(rank=8)).parameters()) == 4672


def test_a_row_of_zeros_stays_finite() -> None:
    layer = nn.Linear(3, 2, dtype=torch.float64)
    layer.weight.data[0] = 0
    x = torch.randn(4, 3, dtype=torch.float64)
    base = layer(x)
    attach(layer, Decomposed(layer, DoRA(rank=1)))
    assert torch.equal(layer(x), base)
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.delta.parameters())


def test_dora_starts_at_the_base_under_autocast() -> None:
    model = tiny.build("gpt2", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        base = answers(model)
        assert torch.equal(answers(adapt(model, DoRA(targets=("linear",)))), base)


def test_dora_on_a_bfloat16_base_keeps_small_changes_of_length() -> None:
    """A change of 1/512 is less than bfloat16 can add to 1, but not less than it can add to an output near 0."""
    layer = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    layer.weight.data = torch.tensor([[1.0, 1.0]]).bfloat16()
    attach(layer, Decomposed(layer, DoRA(rank=1)))
    layer.delta["default"].m.data.mul_(1 + 1 / 128 + 1 / 512)
    x = torch.tensor([[1.0, -0.5]]).bfloat16()
    assert layer(x).item() == pytest.approx(0.5 * (1 + 1 / 128 + 1 / 512), abs=0.5 / 256)
    assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_rides_on_a_quantised_layer_and_will_not_be_merged_into_it(transposed: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64, dtype=torch.float64)
    packed = NF4Linear(weight, nn.Parameter(torch.randn(8).double()), transposed=transposed)
    plain = nn.Linear(64, 8, dtype=torch.float64)
    plain.weight.data = packed.weight.T.clone() if transposed else packed.weight
    plain.bias.data = packed.bias.data
    x = torch.randn(3, 64, dtype=torch.float64)
    base = packed(x)
    attach(packed, Decomposed(packed, DoRA(rank=2)))
    assert torch.equal(packed(x), base)
    packed.delta["default"].m.data.mul_(1.5)
    attach(plain, Decomposed(plain, DoRA(rank=2)))
    plain.delta["default"].load_state_dict(packed.delta["default"].state_dict())
    assert close(packed(x), plain(x))
    with pytest.raises(ModelError, match="holds its weight in four bits"):
        merge(packed)


def test_dropout_only_while_training() -> None:
    model = stirred(adapt(tiny.build("llama"), DoRA(4, dropout=0.5)))
    still = answers(model)
    assert torch.equal(answers(model), still)
    model.train()
    assert not torch.equal(answers(model), still)
    rs = stirred(adapt(tiny.build("llama").train(), RsLoRA(4, dropout=0.5)))
    assert not torch.equal(answers(rs), answers(rs))


@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_they_merge_into_every_build(method: str) -> None:
    assert [refusal(adapted(build, method)) for build in tiny.BUILDS] == [None] * len(tiny.BUILDS)


@pytest.mark.parametrize("kind", [RsLoRA, DoRA])
@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": -2}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_what_makes_no_sense_is_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="the rank is at least 1, the dropout at least 0 and below 1"):
        adapt(tiny.build("llama"), kind(**options))


@every_shape
@pytest.mark.parametrize("spec", [RsLoRA(4, 3.0, 0.25, ("linear",)), DoRA(4, 3.0, 0.25, ("linear",))])
def test_written_here_read_by_peft_and_back(build: str, spec: Any, tmp_path: Path) -> None:
    model = stirred(adapt(tiny.build(build, torch.float32), spec))
    write(model, spec, tmp_path, "some/base")
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert (config["use_rslora"], config["use_dora"]) == (isinstance(spec, RsLoRA), isinstance(spec, DoRA))
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 3, 0.25)
    there = peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path).eval()
    assert close(answers(there), answers(model), 1e-5)
    assert not close(answers(there), answers(tiny.build(build, torch.float32)), 1e-2)
    with merged(model):
        assert close(answers(there.merge_and_unload()), answers(model), 1e-5)
    peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path).save_pretrained(tmp_path / "there")
    again = tiny.build(build, torch.float32)
    back, _ = load_adapter(again, tmp_path / "there")
    assert (type(back), back.rank, back.alpha, back.dropout) == (type(spec), 4, 3.0, 0.25)
    assert torch.equal(answers(again), answers(model))


@every_shape
@pytest.mark.parametrize(
    ("options", "method", "alpha"),
    [
        ({"use_rslora": True}, RsLoRA, 3.0),
        ({"use_dora": True}, DoRA, 3.0),
        ({"use_dora": True, "use_rslora": True}, DoRA, 6.0),
    ],
)
def test_written_by_peft_read_here(
    build: str, options: dict[str, Any], method: type, alpha: float, tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules="all-linear", fan_in_fan_out=build == "gpt2", **options)
    there = peft.get_peft_model(tiny.build(build, torch.float32), config).eval()
    torch.manual_seed(1)
    for name, parameter in there.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.5 * torch.rand_like(parameter))
    there.save_pretrained(tmp_path)
    model = tiny.build(build, torch.float32)
    base = answers(model)
    spec, _ = load_adapter(model, tmp_path)
    assert type(spec) is method
    assert (spec.rank, spec.alpha) == (4, alpha)
    assert close(answers(model), answers(there), 1e-5)
    assert not close(answers(model), base, 1e-2)


def test_the_tensors_that_are_written(tmp_path: Path) -> None:
    spec = DoRA(4, targets=("lm_head",))
    write(adapt(tiny.build("llama", torch.float32), spec), spec, tmp_path, "some/base")
    assert {n: tuple(t.shape) for n, t in load_file(tmp_path / WEIGHTS).items()} == {
        "base_model.model.lm_head.lora_A.weight": (4, 32),
        "base_model.model.lm_head.lora_B.weight": (96, 4),
        "base_model.model.lm_head.lora_magnitude_vector": (96,),
    }
    assert read(tmp_path)[0] == DoRA(4, targets=("lm_head",))


def test_what_peft_has_a_word_for() -> None:
    model = tiny.build("llama")
    for name, spec in {"a": LoRA(2), "b": RsLoRA(2), "c": DoRA(2)}.items():
        install(model, spec, name)
        assert expresses(model, spec, name)
    assert not expresses(model, LoRA(2), "c")
    install(model, DoRA(2), "d", beside=Head())
    assert not expresses(model, DoRA(2), "d")
    assert len(linears(model)) == 15
