"""(IA)³, by hand, against what the attention is given, and against PEFT (G27)."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate.errors import ModelError, RecipeError, SourceError
from acclimate.interchange.adapter import load_adapter
from acclimate.interchange.peft import CONFIG, WEIGHTS, expresses, read, write
from acclimate.methods import IA3
from acclimate.methods.delta import adapt, attach, merge, merged, trainable
from acclimate.methods.ia3 import InputScale, OutputScale
from acclimate.methods.nf4 import NF4Linear
from tests import tiny
from tests.adapted import adapted, answers, close, refusal, some_ids

pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in some/base:UserWarning"),
]


def stirred(model: nn.Module, ending: str = ".l") -> nn.Module:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(ending):
            parameter.data.uniform_(0.5, 2.0)
    return model


def test_ia3_by_hand() -> None:
    """W = [[1, 2], [3, 4]], bias (1, −1), x = (1, 1): (4, 6). l = (2, 10) on the output: (8, 60); on the input:
    W (2, 10) + bias = (2 + 20 + 1, 6 + 40 − 1) = (23, 45). Merged: rows, or columns, times l."""
    scales = {
        OutputScale: ([8.0, 60.0], [[2.0, 4.0], [30.0, 40.0]]),
        InputScale: ([23.0, 45.0], [[2.0, 20.0], [6.0, 40.0]]),
    }
    for kind, (expected, weight) in scales.items():
        layer = nn.Linear(2, 2)
        layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, -1.0])
        attach(layer, kind(2))
        assert layer(torch.ones(1, 2)).tolist() == [[4.0, 6.0]]
        layer.delta["default"].l.data = torch.tensor([2.0, 10.0])
        assert layer(torch.ones(1, 2)).tolist() == [expected]
        merge(layer)
        assert layer.weight.tolist() == weight
        assert layer(torch.ones(1, 2)).tolist() == [expected]


def heard(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The queries, keys and values that attention is given, layer by layer."""
    plain, found = nn.functional.scaled_dot_product_attention, []

    def listening(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        found.append((query, key, value))
        return plain(query, key, value, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", listening)
        answers(model)
    return found


@pytest.mark.parametrize("build", ["llama", "gpt2", "pythia", "bert", "opt"])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_part_of_the_attention_is_that_part_alone(build: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubled keys are doubled keys, queries and values the same bits, also where one matrix makes all three."""
    model = tiny.build(build)
    before = heard(model, monkeypatch)[0]
    adapt(model, IA3((part,), ()))
    for parameter in trainable(model).values():
        parameter.data.fill_(2.0)
    after = heard(model, monkeypatch)[0]
    for name, one, two in zip(("query", "key", "value"), before, after, strict=True):
        assert torch.equal(two, 2 * one if name == part else one)


@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_ia3_is_the_formula_of_the_paper(build: str) -> None:
    """softmax(q (l_k ⊙ k)ᵀ) (l_v ⊙ v) and W_down (l_ff ⊙ h): the model whose rows and columns were scaled one by one."""
    model, plain = stirred(adapt(tiny.build(build), IA3())), tiny.build(build)
    for name, parameter in trainable(model).items():
        layer = plain.get_submodule(name.partition(".delta.")[0])
        rows = layer.weight.data.T if build == "gpt2" else layer.weight.data  # (d_out, d_in)
        for i, factor in enumerate(parameter.tolist()):
            if name.split(".delta.")[0].endswith(("down_proj", "mlp.c_proj")):
                rows[:, i] *= factor
            else:
                place = 32 + i if build == "gpt2" else i  # GPT-2: after 32 queries
                rows[place] *= factor
                if layer.bias is not None:
                    layer.bias.data[place] *= factor
    assert close(answers(model), answers(plain))
    assert not close(answers(model), answers(tiny.build(build)), 1e-2)
    with merged(model):
        assert close(answers(model), answers(plain))


def test_numbers_of_a_layer() -> None:
    """d_k + d_v + d_ff: Llama with 2 of 4 heads for keys 16 + 16 + 64, GPT-2 32 + 32 + 128; 2 layers each."""
    counted = {b: sum(p.numel() for p in trainable(adapted(b, "ia3")).values()) for b in ("llama", "gpt2")}
    assert counted == {"llama": 2 * 96, "gpt2": 2 * 192}


def test_it_merges_into_every_build() -> None:
    assert [refusal(adapted(build, "ia3")) for build in tiny.BUILDS] == [None] * len(tiny.BUILDS)


def test_small_changes_are_kept_on_a_bfloat16_base() -> None:
    """255 · (1 + 1/256) is 256 in bfloat16, where 1 + 1/256 itself is 1."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    layer.weight.data.fill_(255.0)
    attach(layer, OutputScale(1))
    layer.delta["default"].l.data.fill_(1 + 1 / 256)
    assert layer(torch.ones(1, 1, dtype=torch.bfloat16)).item() == 256.0


def test_what_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"scale both the input and the output of .*down_proj; choose one"):
        adapt(tiny.build("llama"), IA3(("linear",), ("down",)))
    with pytest.raises(ModelError, match="part or layer of this model"):
        adapt(tiny.build("llama"), IA3(("keys",)))
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"c_attn": nn.Linear(4, 12)})])})
    model.layers[0]["o"] = nn.Linear(12, 4)  # 12 queries would leave nothing for keys and values
    model.config = tiny.build("gpt2").config
    with pytest.raises(ModelError, match=r"layers\.0\.c_attn holds query, key and value in an order that is not known"):
        adapt(model, IA3(("key",), ()))
    packed = NF4Linear(torch.randn(4, 64))
    attach(packed, InputScale(64))
    with pytest.raises(ModelError, match="holds its weight in four bits"):
        merge(packed)


def test_the_whole_of_a_shared_matrix_by_pattern() -> None:
    model = adapt(tiny.build("gpt2"), IA3(("*.c_attn",), ()))
    assert [tuple(p.shape) for p in trainable(model).values()] == [(96,), (96,)]


THEIRS = {
    "llama": ({"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
    "gpt2": ({"c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),
    "bert": ({"key", "value", "output.dense"}, {"output.dense"}),
    "t5": ({"k", "v", "wo"}, {"wo"}),
}


@pytest.mark.parametrize("build", THEIRS)
def test_written_by_peft_read_here(build: str, tmp_path: Path) -> None:
    """BERT's output.dense is that of the attention as well."""
    targets, inputs = THEIRS[build]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=inputs, fan_in_fan_out=build == "gpt2")
    there = stirred(peft.get_peft_model(tiny.build(build, torch.float32), config), "ia3_l.default").eval()
    there.save_pretrained(tmp_path)
    model = tiny.build(build, torch.float32)
    base = answers(model)
    spec, _ = load_adapter(model, tmp_path)
    assert isinstance(spec, IA3)
    assert close(answers(model), answers(there), 1e-5)
    assert not close(answers(model), base, 1e-2)


CONV1D = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"
)


@CONV1D
@pytest.mark.parametrize("targets", [None, ["attn.c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]])
def test_gpt2_is_the_same_on_both_sides_merged_and_not(targets: list[str] | None, tmp_path: Path) -> None:
    """GPT-2's Conv1D holds W (d_in, d_out): by PEFT's own choice of modules, and with every one, two by their inputs."""
    inputs = None if targets is None else ["attn.c_proj", "mlp.c_proj"]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=inputs)
    there = stirred(peft.get_peft_model(tiny.build("gpt2", torch.float32), config), "ia3_l.default").eval()
    there.save_pretrained(tmp_path)
    model = tiny.build("gpt2", torch.float32)
    spec, _ = load_adapter(model, tmp_path)
    shapes = {len(p) for p in trainable(adapt(tiny.build("gpt2", torch.float32), spec)).values()}
    assert shapes == ({96, 128} if targets is None else {96, 32, 128})
    assert close(answers(model), answers(there), 1e-5)
    write(model, spec, tmp_path, "some/base")
    back = peft.PeftModel.from_pretrained(tiny.build("gpt2", torch.float32), tmp_path).eval()
    assert torch.equal(answers(back), answers(there))
    merge(model)
    alone = there.merge_and_unload()
    assert close(answers(model), answers(alone), 1e-5)
    weights = dict(alone.named_parameters())
    assert all(torch.allclose(p, weights[name], atol=1e-6) for name, p in model.named_parameters())


@pytest.mark.parametrize("build", tiny.BUILDS)
@pytest.mark.parametrize(
    "spec",
    [
        IA3(),
        IA3(("value",), ()),
        IA3((), ("down",)),
        IA3(("query", "up"), ("output", "down")),
        IA3(("down",), ("output",)),
    ],
)
def test_written_here_read_by_peft_and_back(build: str, spec: IA3, tmp_path: Path) -> None:
    model = stirred(adapt(tiny.build(build, torch.float32), spec))
    assert expresses(model, spec)
    write(model, spec, tmp_path, "some/base")
    there = peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path).eval()
    assert close(answers(there), answers(model), 1e-5)
    assert not close(answers(there), answers(tiny.build(build, torch.float32)), 1e-2)
    again = tiny.build(build, torch.float32)
    load_adapter(again, tmp_path)
    assert torch.equal(answers(again), answers(model))
    there.save_pretrained(tmp_path / "there")
    first, second = load_file(tmp_path / WEIGHTS), load_file(tmp_path / "there" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    ("build", "targets", "inputs"),
    [
        ("llama", ["down_proj", "k_proj", "v_proj"], ["down_proj"]),
        ("gpt2", ["attn.c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
        ("t5", ["k", "v", "wo"], ["wo"]),
    ],
)
def test_the_config_that_is_written(build: str, targets: list[str], inputs: list[str], tmp_path: Path) -> None:
    write(adapt(tiny.build(build, torch.float32), IA3()), IA3(), tmp_path, "some/base")
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert (config["peft_type"], config["target_modules"], config["feedforward_modules"]) == ("IA3", targets, inputs)
    assert config["fan_in_fan_out"] == (build == "gpt2")


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        ("model.layers.0.mlp.up_proj.lora_A.weight", (4, 32), "only ia3_l rows and columns can be read"),
        ("model.layers.0.mlp.up_proj.ia3_l", (2, 32), "only ia3_l rows and columns can be read"),
        ("model.layers.0.mlp.up_proj.ia3_l", (32,), "only ia3_l rows and columns can be read"),
    ],
)
def test_what_is_no_ia3_is_refused(key: str, shape: tuple[int, ...], sentence: str, tmp_path: Path) -> None:
    write(adapt(tiny.build("llama", torch.float32), IA3()), IA3(), tmp_path, "some/base")
    save_file(load_file(tmp_path / WEIGHTS) | {f"base_model.model.{key}": torch.zeros(shape)}, tmp_path / WEIGHTS)
    with pytest.raises(SourceError, match=sentence):
        read(tmp_path)
    (tmp_path / CONFIG).write_text('{"peft_type": "IA3", "modules_to_save": ["score"]}')
    with pytest.raises(SourceError, match=r'modules_to_save is \["score"\], which our IA3 cannot express'):
        read(tmp_path)


def test_it_works_on_ids_of_any_shape() -> None:
    model = stirred(adapt(tiny.build("opt"), IA3()))  # its feed-forward layers see (batch · time, d)
    assert close(answers(model, some_ids(2))[:1], answers(model, some_ids(2)[:1]))
