"""Adapters that PEFT reads and adapters that PEFT wrote, against PEFT itself (G27)."""

import ast
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import acclimate
from acclimate.errors import ModelError, SourceError
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.interchange.peft import CONFIG, WEIGHTS, read, target_modules, write
from acclimate.methods import LoRA, artifact
from acclimate.methods.delta import adapt, merged, names
from tests import tiny

pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in some/base:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
]
every_build = pytest.mark.parametrize("build", tiny.BUILDS)
LAST_QUERY = {
    "llama": "*.1.self_attn.q_proj",
    "gpt2": "*.1.attn.c_attn",
    "bert": "*.1.*.query",
    "bert_classifier": "*.1.*.query",
    "t5": "decoder.*.EncDecAttention.q",
    "bart": "model.decoder.*.self_attn.q_proj",
}


@torch.no_grad()
def answers(model: nn.Module) -> Tensor:
    ids = torch.randint(3, tiny.VOCAB, (3, 7), generator=torch.Generator().manual_seed(7))
    return tiny.logits(model, ids)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def stirred(model: nn.Module, letter: str) -> nn.Module:
    """A and B of a real size, as after training; `letter` is what B is called."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(letter):
            parameter.data.normal_(std=0.2)
    return model


def ours(build: str, spec: LoRA, dtype: torch.dtype = torch.float32) -> nn.Module:
    return stirred(adapt(tiny.build(build, dtype), spec), ".delta.default.b")


def theirs(build: str, options: dict[str, Any]) -> Any:
    usual = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "fan_in_fan_out": build == "gpt2"}
    config = peft.LoraConfig(**(usual | options))
    return stirred(peft.get_peft_model(tiny.build(build, torch.float32), config), "lora_B.default.weight").eval()


def their_folder(folder: Path, options: dict[str, Any] | None = None, build: str = "llama") -> Path:
    theirs(build, options or {}).save_pretrained(folder)
    return folder


@every_build
@pytest.mark.parametrize("targets", [("linear",), ("query", "value"), ("LAST",), ("LAST", "down")])
def test_written_here_read_by_peft(build: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    spec = LoRA(4, alpha=12.0, targets=tuple(LAST_QUERY[build] if t == "LAST" else t for t in targets))
    model = ours(build, spec)
    write(model, spec, tmp_path, "some/base")
    there = peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path).eval()
    assert close(answers(there), answers(model))
    assert not close(answers(there), answers(tiny.build(build, torch.float32)))
    carrying = {
        n.removesuffix(".lora_A").removeprefix("base_model.model.")
        for n, _ in there.named_modules()
        if n.endswith(".lora_A")
    }
    assert carrying == {n.partition(".delta.")[0] for n in artifact.tensors(model)}


@every_build
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": r".*\.(q|query|q_proj|c_attn|wo|fc2)"},
        {"target_modules": ["q", "query", "v_proj", "c_attn", "c_proj", "fc1"], "lora_dropout": 0.25},
        {"layers_to_transform": [1], "target_modules": ["query", "q_proj", "c_attn", "SelfAttention.q"]},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_written_by_peft_read_here(build: str, options: dict[str, Any], tmp_path: Path) -> None:
    if build == "t5" and "layers_to_transform" in options:
        options = {**options, "layers_pattern": "block"}
    there = theirs(build, options)
    there.save_pretrained(tmp_path)
    model = tiny.build(build, torch.float32)
    base = answers(model)
    spec, facts = load_adapter(model, tmp_path)
    assert isinstance(spec, LoRA)
    assert facts == {}
    assert (spec.rank, spec.dropout) == (4, options.get("lora_dropout", 0.0))
    assert spec.alpha == 12.0
    assert close(answers(model), answers(there))
    assert not close(answers(model), base)


@every_build
def test_there_and_back_is_the_same_bits(build: str, tmp_path: Path) -> None:
    spec = LoRA(4, alpha=12.0, dropout=0.25, targets=("linear",))
    model = ours(build, spec)
    write(model, spec, tmp_path, "some/base")
    peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path).save_pretrained(tmp_path / "there")
    back, found = read(tmp_path / "there")
    own = artifact.tensors(model)
    assert (back.rank, back.alpha, back.dropout) == (4, 12.0, 0.25)
    assert found.keys() == {n.replace(".delta.default.", ".delta.") for n in own}
    assert all(torch.equal(found[n], own[n]) for n in own)
    again = tiny.build(build, torch.float32)
    load_adapter(again, tmp_path / "there", "again")
    assert torch.equal(answers(again), answers(model))
    save_adapter(again, back, tmp_path / "here", {}, "again")
    first, second = load_file(tmp_path / WEIGHTS), load_file(tmp_path / "here" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    ("build", "spec", "expected"),
    [
        ("llama", LoRA(), {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "fan_in_fan_out": False}),
        ("gpt2", LoRA(), {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True}),
        ("gpt2", LoRA(targets=("output",)), {"target_modules": ["attn.c_proj"]}),
        ("t5", LoRA(), {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]}),
        ("bert", LoRA(targets=("down",)), {"task_type": None, "target_modules": [f"{i}.output.dense" for i in (0, 1)]}),
        ("bert_classifier", LoRA(), {"task_type": None, "target_modules": ["query", "value"]}),
        ("llama", LoRA(6, 9.0, 0.1), {"r": 6, "lora_alpha": 9, "lora_dropout": 0.1, "use_rslora": False}),
        ("llama", LoRA(alpha=0.5), {"lora_alpha": 0.5, "bias": "none", "peft_type": "LORA", "inference_mode": True}),
        ("llama", LoRA(), {"base_model_name_or_path": "some/base", "modules_to_save": None, "use_dora": False}),
    ],
)
def test_the_config_that_is_written(build: str, spec: LoRA, expected: dict[str, Any], tmp_path: Path) -> None:
    write(ours(build, spec), spec, tmp_path, "some/base")
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert {option: config[option] for option in expected} == expected
    assert isinstance(config["lora_alpha"], type(expected.get("lora_alpha", 16)))
    assert peft.LoraConfig.from_pretrained(tmp_path).r == spec.rank


def test_the_tensors_that_are_written(tmp_path: Path) -> None:
    spec = LoRA(4, targets=("lm_head",))
    model = ours("llama", spec)
    write(model, spec, tmp_path, "some/base")
    shapes = {n: tuple(t.shape) for n, t in load_file(tmp_path / WEIGHTS).items()}
    assert shapes == {
        "base_model.model.lm_head.lora_A.weight": (4, 32),
        "base_model.model.lm_head.lora_B.weight": (96, 4),
    }


def test_an_adapter_of_a_bfloat16_base_is_the_same_there(tmp_path: Path) -> None:
    spec = LoRA(4, targets=("linear",))
    model = ours("llama", spec, torch.bfloat16)
    write(model, spec, tmp_path, "some/base")
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    there = peft.PeftModel.from_pretrained(tiny.build("llama", torch.bfloat16), tmp_path).eval()
    assert answers(there).dtype == answers(model).dtype == torch.bfloat16
    assert (answers(there) - answers(model)).abs().max() <= 0.03 * answers(model).abs().max()


@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_merged_here_equals_merged_there(build: str, tmp_path: Path) -> None:
    spec = LoRA(4, targets=("linear",))
    model = ours(build, spec)
    write(model, spec, tmp_path, "some/base")
    there = peft.PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path).merge_and_unload()
    with merged(model):
        assert close(answers(model), answers(there))
        layer = model.get_submodule(spec_path := next(iter(names_of(model))))
        assert torch.allclose(layer.weight, there.get_submodule(spec_path).weight, atol=1e-6)


def names_of(model: nn.Module) -> list[str]:
    return [n.partition(".delta")[0] for n, _ in model.named_modules() if n.endswith(".delta")]


class Nested(nn.Module):
    """A name that ends another one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.inner = nn.Linear(4, 4), nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.v(self.inner.q(self.q(x)))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["q", "inner.q"], ["q"]),
        (["inner.q"], ["inner.q"]),
        (["inner.q", "inner.v"], ["inner.q", "inner.v"]),
        (["inner.v"], ["v"]),
        (["q"], "q"),
        (["q", "inner.v"], r"q|inner\.v"),
    ],
)
def test_target_modules_mean_these_and_no_others(chosen: list[str], expected: list[str] | str) -> None:
    model = Nested()
    assert target_modules(model, chosen) == expected
    there = peft.get_peft_model(model, peft.LoraConfig(target_modules=expected))
    assert sorted(there.targeted_module_names) == sorted(chosen)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("use_qalora", True, "use_qalora is true, which our LORA cannot express; merge the adapter with PEFT"),
        ("rank_pattern", {"q_proj": 4}, r'rank_pattern is {"q_proj": 4}'),
        ("alpha_pattern", {"q_proj": 4}, "alpha_pattern is"),
        ("modules_to_save", ["classifier"], r'modules_to_save is \["classifier"\]'),
        ("lora_bias", True, "lora_bias is true"),
        ("bias", "all", "bias is 'all', so biases were trained too"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa', which changed the base model too"),
        ("init_lora_weights", "olora", "init_lora_weights is 'olora'"),
        ("trainable_token_indices", [1, 2], "trainable_token_indices is"),
        ("target_parameters", ["experts.weight"], "target_parameters is"),
        ("layer_replication", [[0, 2]], "layer_replication is"),
        ("alora_invocation_tokens", [5], "alora_invocation_tokens is"),
        ("an_option_of_the_future", {"x": 1}, "an_option_of_the_future is"),
        ("peft_type", "LOHA", "peft_type is 'LOHA'; only 'LORA' and 'IA3' can be read"),
        ("peft_type", ["LORA"], r"peft_type is \['LORA'\]; only 'LORA' and 'IA3' can be read"),
        ("r", "8", "r is '8'; it must be a number"),
        ("r", True, "r is True; it must be a number"),
        ("r", 0, "r is 0; it must be a whole number from 1"),
        ("r", 2.5, r"r is 2\.5; it must be a whole number"),
        ("lora_alpha", None, "lora_alpha is None; it must be a number"),
        ("lora_alpha", float("nan"), "lora_alpha is nan; it must be a number"),
    ],
)
def test_what_lora_cannot_express_is_refused_by_name(option: str, value: object, sentence: str, tmp_path: Path) -> None:
    their_folder(tmp_path)
    read(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps({**config, option: value}), encoding="utf-8")
    with pytest.raises(SourceError, match=f"{CONFIG}: {sentence}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*only lora_A and lora_B"),
    ],
)
def test_what_peft_really_wrote_is_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=sentence):
        read(their_folder(tmp_path, options))


def test_no_pickle_is_read(tmp_path: Path) -> None:
    their_folder(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(
        SourceError, match="is a pickle, which can run code: load it with PEFT and save_pretrained it again"
    ):
        read(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(SourceError, match=r"holds no adapter_model\.safetensors\.$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (WEIGHTS, b"\x99" * 20, "no whole safetensors file"),
        (CONFIG, b'{"r": ', "cannot be read as JSON"),
        (CONFIG, b"[1]", "holds a list; it must be a JSON object"),
    ],
)
def test_a_damaged_folder_is_a_sentence(file: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (their_folder(tmp_path) / file).write_bytes(content)
    with pytest.raises(SourceError, match=f"{file}.*{sentence}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (
            {"base_model.model.lm_head.weight": (96, 32)},
            SourceError,
            r"holds .*lm_head.weight, \(96, 32\); only lora_A",
        ),
        (
            {"base_model.model.lm_head.lora_A.weight": (4, 32, 1, 1)},
            SourceError,
            r"lm_head.lora_A.weight, \(4, 32, 1, 1\)",
        ),
        ({"base_model.model.lm_head.lora_A.weight": (4, 32)}, ModelError, "1 tensors are missing"),
        (
            {"base_model.model.no.such.lora_A.weight": (4, 32)},
            ModelError,
            "No linear layer of this model matches 'no.such'",
        ),
        (
            {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (5, 32)},
            ModelError,
            r"is \(5, 32\), the model needs",
        ),
    ],
)
def test_tensors_that_do_not_fit_leave_the_model_alone(
    change: dict[str, tuple[int, ...]], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    found = load_file(their_folder(tmp_path) / WEIGHTS)
    save_file(found | {n: torch.zeros(shape) for n, shape in change.items()}, tmp_path / WEIGHTS)
    model = tiny.build("llama", torch.float32)
    base = answers(model)
    with pytest.raises(error, match=sentence):
        load_adapter(model, tmp_path)
    assert names(model) == ()
    assert torch.equal(answers(model), base)


def test_no_tensors_are_no_adapter(tmp_path: Path) -> None:
    save_file({}, their_folder(tmp_path) / WEIGHTS)
    with pytest.raises(SourceError, match="holds no tensors"):
        read(tmp_path)


def test_the_package_never_imports_peft() -> None:
    for file in Path(acclimate.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in imported if name.split(".")[0] == "peft"], file
