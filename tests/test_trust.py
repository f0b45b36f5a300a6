import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from acclimate.errors import SourceError
from acclimate.models.load import load
from acclimate.models.trust import check_folder
from tests.folders import save


def change(folder: Path, file: str, **settings: Any) -> None:
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **settings}))


def refused(folder: Path) -> str:
    """The sentence with which both the check and the loader refuse a folder."""
    with pytest.raises(SourceError) as caught:
        check_folder(folder)
    with pytest.raises(SourceError) as also:
        load(str(folder))
    assert str(also.value) == str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def bomb(canary: Path) -> bytes:
    """A pickle, written by hand, that creates `canary` when it is read: open(canary, "w")."""
    return b"c__builtin__\nopen\n(S" + repr(str(canary)).encode() + b"\nS'w'\ntR."


def test_the_bomb_is_live(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bomb(tmp_path / "canary"))
    subprocess.run([sys.executable, "-m", "pickle", str(tmp_path / "x.bin")], capture_output=True, check=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "tf_model.h5"])
def test_pickled_weights_are_refused_unread(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save(folder)
    (folder / "model.safetensors").unlink()
    if name.endswith(".json"):
        (folder / name).write_text('{"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model-1.bin"}}')
        name = "pytorch_model-1.bin"
    (folder / name).write_bytes(bomb(tmp_path / "canary"))
    said = refused(folder)
    assert f"its weights only in {name}" in said
    assert "from transformers import LlamaForCausalLM as Model; Model.from_pretrained(" in said
    assert not (tmp_path / "canary").exists()


def test_the_hint_repeats_no_code_of_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "model.bin")
    change(tmp_path / "m", "config.json", architectures=["os; import evil"])
    assert "import AutoModelForCausalLM as Model" in refused(tmp_path / "m")


def test_a_pickle_beside_safetensors_is_never_read(tmp_path: Path) -> None:
    save(tmp_path / "m")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (tmp_path / "m" / name).write_bytes(bomb(tmp_path / "canary"))
    load(str(tmp_path / "m"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("shard", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", "a\\evil.safetensors"])
def test_an_index_names_safetensors_beside_it(shard: str, tmp_path: Path) -> None:
    save(tmp_path / "m", shards="20KB")
    (tmp_path / "evil.safetensors").write_bytes(b"")
    (tmp_path / "m" / "evil.bin").write_bytes(bomb(tmp_path / "canary"))
    index = tmp_path / "m" / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(found))
    assert "a shard is a .safetensors file in the same folder" in refused(tmp_path / "m")
    assert not (tmp_path / "canary").exists()


def test_a_missing_shard(tmp_path: Path) -> None:
    save(tmp_path / "m", shards="20KB")
    sorted((tmp_path / "m").glob("*.safetensors"))[1].unlink()
    assert "which is not there" in refused(tmp_path / "m")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_without_a_map(index: str, tmp_path: Path) -> None:
    save(tmp_path / "m", shards="20KB")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(index)
    assert "has no weight_map" in refused(tmp_path / "m")


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": {"": "sdpa", "text": "evil/kernel:run"}},
        {"experts_implementation": "evil/experts"},
        {"text_config": {"attn_implementation": "evil/kernel"}},
        {"layers": [{"sub": {"_attn_implementation": "evil/kernel"}}]},
        {"transformers_weights": "adapter_model.bin"},
        {"fusion_config": {"a": True}},
        {"kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_bring_in_code(settings: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / "m")
    change(tmp_path / "m", "config.json", **settings)
    assert "code or files from elsewhere" in refused(tmp_path / "m")


def test_a_kernel_in_the_generation_config(tmp_path: Path) -> None:
    save(tmp_path / "m")
    change(tmp_path / "m", "generation_config.json", kernel_config={"x": "evil/kernel"})
    assert "generation_config.json: kernel_config" in refused(tmp_path / "m")


def test_plain_settings_pass(tmp_path: Path) -> None:
    save(tmp_path / "m")
    change(tmp_path / "m", "config.json", attn_implementation="eager", _name_or_path="org/name", fusion_config=None)
    assert load(str(tmp_path / "m")).model.config._attn_implementation == "eager"


MODULE = """
open({canary!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class Config(LlamaConfig):
    model_type = {kind!r}

class Model(LlamaForCausalLM):
    config_class = Config

class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def foreign(folder: Path, canary: Path, kind: str) -> None:
    """A checkpoint that brings code of its own for the configuration, the model and the tokenizer."""
    save(folder)
    (folder / "own.py").write_text(MODULE.format(canary=str(canary), kind=kind))
    maps = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change(folder, "config.json", model_type=kind, auto_map=maps)
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(canary)!r}, 'w').close()")


def test_foreign_code_would_run_elsewhere(tmp_path: Path) -> None:
    foreign(tmp_path / "m", tmp_path / "canary", "own")
    own = tmp_path / "m" / "own.py"
    own.write_text(own.read_text().splitlines()[1])  # without the classes, for which all of torch would be imported
    trusting = (
        "from transformers import AutoConfig as C; import sys; C.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", trusting, str(tmp_path / "m")]
    subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (tmp_path / "canary").exists()


def test_foreign_code_does_not_run_here(tmp_path: Path) -> None:
    foreign(tmp_path / "m", tmp_path / "canary", "own")
    with pytest.raises(SourceError, match="custom code"):
        load(str(tmp_path / "m"))
    assert not (tmp_path / "canary").exists()


def test_a_known_kind_loads_with_the_code_of_transformers(tmp_path: Path) -> None:
    foreign(tmp_path / "m", tmp_path / "canary", "llama")
    loaded = load(str(tmp_path / "m"))
    assert type(loaded.model) is LlamaForCausalLM
    assert type(loaded.tokenizer).__module__.startswith("transformers.")
    assert not (tmp_path / "canary").exists()


def test_what_is_no_model_folder(tmp_path: Path) -> None:
    assert "has no config.json" in refused(tmp_path)
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "m.gguf")
    assert f"Give the file itself: {tmp_path / 'm.gguf'}" in refused(tmp_path)
    (tmp_path / "m.gguf").unlink()
    assert "has no weights: neither model.safetensors nor" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter; load its base model" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\xff", "[" * 100_000])
def test_a_config_that_is_no_object(text: str, tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refused(tmp_path)
