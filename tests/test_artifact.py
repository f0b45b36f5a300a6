"""What was trained, on disk (G22)."""

from pathlib import Path

import pytest
import torch

from acclimate.errors import ModelError, SourceError
from acclimate.methods import artifact
from acclimate.methods.delta import adapt, trainable
from tests import tiny
from tests.adapted import SPECS, adapted, answers, bits, changed, every_build, every_method


@every_method
@every_build
def test_what_trained_is_saved_and_comes_back_bit_for_bit(build: str, method: str, tmp_path: Path) -> None:
    model = adapted(build, method, name="mine")
    base, adapter = answers(tiny.build(build)), answers(model)
    artifact.save(model, tmp_path, {"b": 1, "a": "ü"}, "mine")
    assert (tmp_path / artifact.FACTS).read_text(encoding="utf-8") == '{\n "a": "ü",\n "b": 1\n}\n'
    loaded, facts = artifact.read(tmp_path)
    assert facts == {"a": "ü", "b": 1}
    assert loaded.keys() == {n.replace(".delta.mine.", ".delta.") for n in trainable(model)}
    fresh = adapt(tiny.build(build), SPECS[method], name="other", seed=9)
    artifact.fill(fresh, loaded, "other")
    again = artifact.tensors(fresh, "other")
    assert not changed(loaded, again)
    assert torch.equal(answers(fresh), adapter)
    assert not torch.equal(adapter, base)


@every_method
def test_an_artifact_that_does_not_fit_changes_nothing(method: str) -> None:
    model = adapted("llama", method)
    before, good = bits(model), {n: t + 1 for n, t in artifact.tensors(model).items()}
    first, last = min(good), max(good)
    wrong = [
        ({n: t for n, t in good.items() if n != first}, f"1 tensors are missing .*{first}"),
        (good | {"more": torch.zeros(1)}, "1 have no place .*more"),
        (good | {last: torch.zeros(5)}, f"{last} is \\(5,\\), the model needs"),
        ({}, f"{len(good)} tensors are missing"),
    ]
    for loaded, sentence in wrong:
        with pytest.raises(ModelError, match=sentence):
            artifact.fill(model, loaded)
    assert not changed(before, bits(model))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (artifact.WEIGHTS, b"\x08", "no whole safetensors file"),
        (artifact.FACTS, b"{", "cannot be read as JSON"),
        (artifact.FACTS, b"[]", "holds a list"),
        (artifact.FACTS, b"[" * 100_000, "cannot be read as JSON"),
        (artifact.FACTS, b"\xff\xfe\xfa", "cannot be read as JSON"),
    ],
)
def test_a_damaged_artifact_is_a_sentence(file: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    artifact.save(adapted("llama", "lora"), tmp_path, {})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SourceError, match=f"{file}.*{sentence}"):
        artifact.read(tmp_path)
    (tmp_path / artifact.WEIGHTS).unlink()
    with pytest.raises(SourceError, match=r"holds no adapter\.safetensors"):
        artifact.read(tmp_path)
