"""An adapter's folder: one way out and one way in for every method (G22, G24, G26)."""

import errno
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import ModelError, SourceError, UsageError
from acclimate.interchange import peft
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.methods import METHODS, Head, LoRA, QLoRA, artifact
from acclimate.methods.delta import Method, activate, adapt, names, switches, trainable
from acclimate.methods.soft import settle
from acclimate.models.fingerprint import fingerprint
from tests import tiny
from tests.adapted import SPECS as adapted_specs
from tests.adapted import heard

SPECS: dict[str, Method] = {
    **adapted_specs,
    "lora": LoRA(2, 3.0, 0.1, ("query", "*.1.*")),
    "qlora": QLoRA(2, 3.0, 0.1),
}
PEFT = {"adapter_config.json", "adapter_model.safetensors", "acclimate.json"}
OURS = {"adapter.safetensors", "acclimate.json"}
every_method = pytest.mark.parametrize("method", SPECS)


@torch.no_grad()
def answers(model: nn.Module) -> Tensor:
    return heard(model, torch.arange(10).reshape(2, 5) + 3)


def adapted(build: str, method: str, name: str = "default", seed: int = 0) -> tuple[nn.Module, dict[str, object]]:
    """A model whose trainable tensors all moved, and the facts of its base."""
    model = tiny.build(build, torch.float32)
    facts: dict[str, object] = {"model": "some/base", "base": fingerprint(model)}
    adapt(model, SPECS[method], name=name, seed=seed)
    settle(model, name)
    torch.manual_seed(seed + 5)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, facts


def test_every_method_is_tested() -> None:
    assert SPECS.keys() == METHODS.keys()


@every_method
@pytest.mark.parametrize("build", tiny.BUILDS)
def test_what_goes_out_comes_in(build: str, method: str, tmp_path: Path) -> None:
    model, facts = adapted(build, method)
    folder = tmp_path / "runs" / "adapter"
    save_adapter(model, SPECS[method], folder, facts)
    assert {path.name for path in folder.iterdir()} == (PEFT if isinstance(SPECS[method], peft.Known) else OURS)
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    assert all(path.stat().st_mode & 0o444 == folder.stat().st_mode & 0o444 for path in folder.iterdir())
    fresh = tiny.build(build, torch.float32)
    before = torch.get_rng_state()
    loaded, said = load_adapter(fresh, folder, "mine")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(answers(fresh), answers(model))
    assert not torch.equal(answers(fresh), answers(tiny.build(build, torch.float32)))
    assert not trainable(fresh)
    assert said["model"] == "some/base"
    assert said["method"] == json.loads(json.dumps({"name": method, **vars(SPECS[method])}))
    if isinstance(loaded, QLoRA) or not isinstance(loaded, peft.Known):
        assert loaded == SPECS[method]
    else:  # PEFT's format names the modules
        same = {key: getattr(loaded, key) for key in ("targets", "inputs") if hasattr(loaded, key)}
        assert loaded == replace(SPECS[method], **same)


@every_method
def test_the_same_adapter_gives_the_same_bytes(method: str, tmp_path: Path) -> None:
    for number in ("one", "two"):
        model, facts = adapted("llama", method)
        save_adapter(model, SPECS[method], tmp_path / number, facts)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_loaded_adapter_is_beside_the_others(tmp_path: Path) -> None:
    """It neither answers in their place nor stops them training."""
    other, facts = adapted("llama", "lora", seed=1)
    save_adapter(other, SPECS["lora"], tmp_path / "other", facts)
    model, _ = adapted("llama", "head", "mine")
    training, before = set(trainable(model)), answers(model)
    load_adapter(model, tmp_path / "other", "other")
    assert {*names(model)} == {"mine", "other"}
    assert set(trainable(model)) == training
    assert torch.equal(answers(model), before)
    activate(model, "other")
    assert torch.equal(answers(model), answers(other))
    with pytest.raises(ModelError, match="already carries an adapter named 'mine'"):
        load_adapter(model, tmp_path / "other", "mine")
    assert set(trainable(model)) == training


def test_only_one_of_several_is_saved(tmp_path: Path) -> None:
    """Also after another one took over the training."""
    model, facts = adapted("llama", "lora", "a")
    alone = answers(model)
    adapt(model, Head(), name="b")
    save_adapter(model, SPECS["lora"], tmp_path / "a", facts, "a")
    save_adapter(model, Head(), tmp_path / "b", facts, "b")
    fresh = tiny.build("llama", torch.float32)
    load_adapter(fresh, tmp_path / "a")
    assert torch.equal(answers(fresh), alone)
    assert artifact.read(tmp_path / "b")[0].keys() == {"lm_head.delta.weight"}


@every_method
def test_another_base_is_refused(method: str, tmp_path: Path) -> None:
    model, facts = adapted("llama", method)
    save_adapter(model, SPECS[method], tmp_path / "adapter", facts)
    stranger = tiny.build("llama", torch.float32, seed=1)
    before = answers(stranger)
    with pytest.raises(ModelError, match=r"The base model is sha256:.*use the base model it was made with"):
        load_adapter(stranger, tmp_path / "adapter")
    assert names(stranger) == ()
    assert torch.equal(answers(stranger), before)
    halved = tiny.build("llama", torch.float32).to(torch.bfloat16)
    load_adapter(halved, tmp_path / "adapter")
    assert answers(halved).isfinite().all()


@every_method
def test_an_adapter_of_another_build_leaves_the_model_alone(method: str, tmp_path: Path) -> None:
    model, _ = adapted("bert_classifier", method)
    save_adapter(model, SPECS[method], tmp_path / "adapter", {})
    other = tiny.build("llama", torch.float32)
    before = answers(other)
    with pytest.raises(ModelError):
        load_adapter(other, tmp_path / "adapter")
    assert names(other) == ()
    assert not switches(other)
    assert torch.equal(answers(other), before)


@every_method
def test_an_adapter_is_replaced_whole(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for kind in ("lora", "head", method):
        model, facts = adapted("llama", kind)
        save_adapter(model, SPECS[kind], folder, facts)
        assert {path.name for path in folder.iterdir()} == (PEFT if isinstance(SPECS[kind], peft.Known) else OURS)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear", encoding="utf-8")
    model, facts = adapted("llama", "lora")
    with pytest.raises(
        UsageError, match=r"holds letters.txt, which is no part of an adapter; give a new or empty folder"
    ):
        save_adapter(model, SPECS["lora"], tmp_path, facts)
    with pytest.raises(UsageError, match=r"letters.txt is a file; give a folder"):
        save_adapter(model, SPECS["lora"], tmp_path / "letters.txt", facts)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]
    (tmp_path / "empty").mkdir()
    save_adapter(model, SPECS["lora"], tmp_path / "empty", facts)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == PEFT


@every_method
@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_save_that_fails_leaves_the_old_adapter(
    method: str, problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    model, facts = adapted("llama", method)
    save_adapter(model, SPECS[method], folder, facts)
    old = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(folder: Path, facts: Mapping[str, object]) -> None:
        (folder / artifact.FACTS).write_text("{", encoding="utf-8")
        raise problem

    monkeypatch.setattr(artifact, "write_facts", fail)
    with pytest.raises(SourceError if isinstance(problem, OSError) else KeyboardInterrupt):
        save_adapter(model, SPECS[method], folder, facts)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (None, "does not say by which method it was trained"),
        ("head", "does not say by which method"),
        ({"rank": 3}, "does not say by which method"),
        ({"name": "haed"}, "No method is called 'haed'. Did you mean 'head'"),
        ({"name": "head", "depth": 2}, "unexpected keyword argument 'depth'"),
    ],
)
def test_facts_that_name_no_method(said: object, sentence: str, tmp_path: Path) -> None:
    model, _ = adapted("llama", "head")
    save_adapter(model, Head(), tmp_path / "adapter", {})
    artifact.write_facts(tmp_path / "adapter", {"method": said})
    with pytest.raises(SourceError, match=f"acclimate.json.*{sentence}"):
        load_adapter(tiny.build("llama"), tmp_path / "adapter")


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            SourceError, match=r"holds neither adapter_config.json nor adapter.safetensors\. Give the adapter/"
        ):
            load_adapter(tiny.build("llama"), folder)
