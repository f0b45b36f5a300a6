"""QLoRA: what is quantised, where training starts, and a saved adapter that is a plain LoRA."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from acclimate.errors import AcclimateError, ModelError, RecipeError
from acclimate.interchange import peft as interchange
from acclimate.interchange.adapter import load_adapter, save_adapter
from acclimate.methods import artifact
from acclimate.methods.delta import (
    activate,
    adapt,
    detach,
    disabled,
    install,
    merge,
    merged,
    names,
    per_row,
    trainable,
    using,
)
from acclimate.methods.lora import LoRA
from acclimate.methods.nf4 import NF4Linear, dequantise, quantise
from acclimate.methods.qlora import QLoRA, quantise_layers
from acclimate.methods.targets import Width, find, linears, width
from acclimate.models.fingerprint import fingerprint
from tests import tiny
from tests.adapted import answers, bits, changed, checkpoint_layers, close, every_build, loss_of, some_ids, train

SPEC = QLoRA(rank=2)
both = pytest.mark.parametrize("double", [True, False])


def rounded(build: str, double: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The base in its own classes, every weight of its layers replaced by what NF4 makes of it."""
    model = tiny.build(build, dtype)
    for module in find(model, ("linear",)).values():
        weight = module.weight.data.T if width(module).transposed else module.weight.data
        back = dequantise(quantise(weight, double), tuple(weight.shape), dtype)
        module.weight.data = back.T if width(module).transposed else back
    return model


def adapted(build: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    model = adapt(tiny.build(build, dtype), SPEC)
    train(model)
    return model


@both
@every_build
def test_training_starts_at_the_quantised_base(build: str, double: bool) -> None:
    base = tiny.build(build)
    model = adapt(tiny.build(build), QLoRA(rank=2, double=double))
    start = answers(model)
    assert close(start, answers(rounded(build, double)))
    assert not close(start, answers(base), 1e-3)
    assert close(start, answers(base), 0.5)


@every_build
def test_the_layers_are_quantised_and_nothing_else(build: str) -> None:
    plain, model = tiny.build(build), tiny.build(build)
    quantise_layers(model)
    inside = find(plain, ("linear",))
    assert [path for path, module in model.named_modules() if isinstance(module, NF4Linear)] == list(inside)
    assert [path for path, _ in model.named_modules()] == [path for path, _ in plain.named_modules()]
    assert list(linears(model)) == list(linears(plain))
    for path, module in inside.items():
        assert width(model.get_submodule(path)) == width(module)
        assert model.get_submodule(path).training == module.training
    kept = {n: t for n, t in plain.state_dict().items() if n.removesuffix(".weight") not in inside}
    state = model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in kept.items())
    held = ("codes", "constants", "scales", "mean")
    assert state.keys() == kept.keys() | {f"{path}.{part}" for path in inside for part in held}


def test_gpt2_still_counts_as_transposed() -> None:
    model = tiny.build("gpt2")
    quantise_layers(model)
    assert width(model.get_submodule("transformer.h.0.mlp.c_fc")) == Width(32, 128, True)


@both
@every_build
def test_bytes_of_the_quantised_layers(build: str, double: bool) -> None:
    """A weight of n numbers: ⌈n/2⌉ + ⌈n/64⌉ bytes, 4 for every 16,384 and 4 for the mean; here 0.523 a number."""
    plain, model = tiny.build(build), tiny.build(build)
    quantise_layers(model, double)
    sizes = [module.weight.numel() for module in find(plain, ("linear",)).values()]
    blocks = [-(-n // 64) for n in sizes]
    expected = [
        -(-n // 2) + (b + 4 * -(-n // 16384) + 4 if double else 4 * b) for n, b in zip(sizes, blocks, strict=True)
    ]
    held = [t for m in model.modules() if isinstance(m, NF4Linear) for t in m.buffers()]
    total = sum(t.numel() * t.element_size() for t in held)
    assert total == sum(expected)
    assert total / sum(sizes) < (0.53 if double else 0.57)


def test_a_shared_layer_stays_shared() -> None:
    model = tiny.build("llama")
    shared = model.model.layers[0].mlp.up_proj
    model.model.layers[1].mlp.gate_proj = shared
    quantise_layers(model)
    assert model.model.layers[1].mlp.gate_proj is model.model.layers[0].mlp.up_proj
    assert isinstance(model.model.layers[1].mlp.gate_proj, NF4Linear)


def test_the_adapter_starts_as_that_of_lora() -> None:
    ours = artifact.tensors(adapt(tiny.build("bert"), SPEC, seed=3))
    theirs = artifact.tensors(adapt(tiny.build("bert"), SPEC.plain, seed=3))
    assert ours.keys() == theirs.keys()
    assert not changed(ours, theirs)


@every_build
def test_the_adapter_alone_moves(build: str) -> None:
    model = adapt(tiny.build(build), SPEC)
    before = bits(model)
    assert set(trainable(model)) == {n for n in before if n.endswith((".delta.default.a", ".delta.default.b"))}
    train(model)
    assert changed(before, bits(model)) == set(trainable(model))


def test_it_learns_what_lora_learns() -> None:
    """Side by side from the same base in the same order: quantised weights and plain ones that hold the same numbers."""
    ours, theirs = adapt(tiny.build("llama"), SPEC), adapt(rounded("llama"), SPEC.plain)
    before = loss_of(ours, some_ids()).item()
    train(ours, steps=5)
    train(theirs, steps=5)
    assert loss_of(ours, some_ids()).item() < before
    assert close(answers(ours), answers(theirs))


@every_build
def test_detached_and_disabled_are_the_quantised_base(build: str) -> None:
    model = adapt(tiny.build(build), SPEC)
    start, keys = answers(model), {n for n in model.state_dict() if ".delta." not in n}
    train(model)
    assert not torch.equal(answers(model), start)
    with disabled(model):
        assert torch.equal(answers(model), start)
    detach(model)
    assert set(model.state_dict()) == keys
    assert torch.equal(answers(model), start)


@every_build
def test_a_second_adapter_finds_the_base_as_it_is(build: str) -> None:
    model = adapted(build)
    first, before, layers = answers(model), bits(model), find(model, ("linear",))
    adapt(model, SPEC, name="other", seed=1)
    assert all(module is layers[path] for path, module in find(model, ("linear",)).items())
    train(model)
    assert not changed(before, bits(model))
    second = answers(model)
    activate(model, "default")
    assert torch.equal(answers(model), first)
    with using(model, per_row(("other", "default", None))):
        mixed = answers(model)
    assert close(mixed[0], second[0])
    assert close(mixed[1], first[1])


def test_lora_rides_on_a_quantised_base() -> None:
    model = tiny.build("gpt2")
    quantise_layers(model)
    base = answers(model)
    adapt(model, LoRA(rank=2))
    assert torch.equal(answers(model), base)
    train(model)
    assert not torch.equal(answers(model), base)


@pytest.mark.parametrize(
    ("spec", "kind", "sentence"),
    [
        ({"rank": 0}, RecipeError, "qlora has rank 0 and dropout 0.0; the rank is at least 1"),
        ({"dropout": 1.0}, RecipeError, "the dropout at least 0 and below 1"),
        ({"targets": ("quary",)}, ModelError, "query"),
    ],
)
def test_what_cannot_be_leaves_the_model_as_it_was(
    spec: dict[str, Any], kind: type[AcclimateError], sentence: str
) -> None:
    model = tiny.build("llama")
    before = bits(model)
    with pytest.raises(kind, match=sentence):
        adapt(model, QLoRA(**spec))
    assert not any(isinstance(module, NF4Linear) for module in model.modules())
    assert not changed(before, bits(model))


def test_a_base_that_carries_an_adapter_is_not_quantised_under_it() -> None:
    model = adapt(tiny.build("llama"), LoRA(rank=2), name="first")
    train(model)
    before = answers(model)
    with pytest.raises(ModelError, match="carries the adapter 'first', made for the base as it is"):
        install(model, SPEC, "second")
    assert names(model) == ("first",)
    assert torch.equal(answers(model), before)


def test_one_base_has_one_kind_of_nf4() -> None:
    model = adapt(tiny.build("llama"), SPEC)
    with pytest.raises(ModelError, match="were quantised with double: True; open the model again"):
        install(model, QLoRA(rank=2, double=False), "second")


@every_build
def test_the_adapter_goes_on_the_unquantised_base_and_merges_there(build: str) -> None:
    trained = adapted(build)
    model = adapt(tiny.build(build), SPEC.plain)
    base = answers(tiny.build(build))
    artifact.fill(model, artifact.tensors(trained))
    result = answers(model)
    assert not close(result, base, 1e-3)
    merge(model)
    assert close(answers(model), result)


@every_build
def test_merging_into_nf4_is_refused(build: str) -> None:
    model = adapted(build)
    before, result = bits(model), answers(model)
    for merging in (lambda: merge(model), lambda: merged(model).__enter__()):
        with pytest.raises(ModelError, match="let acclimate merge write it into the unquantised base"):
            merging()
        assert not changed(before, bits(model))
        assert torch.equal(answers(model), result)


def test_what_the_refusal_advises_is_possible(tmp_path: Path) -> None:
    model = adapted("llama")
    result, rounded_base = answers(model), answers(rounded("llama"))
    with pytest.raises(ModelError, match=r"open the base anew and give load_adapter packed=False\."):
        merge(model)
    save_adapter(model, SPEC, tmp_path / "adapter", {"base": fingerprint(tiny.build("llama"))})
    fresh = tiny.build("llama")
    load_adapter(fresh, tmp_path / "adapter", packed=False)
    alone = answers(fresh)
    merge(fresh)
    assert close(answers(fresh), alone)
    assert not close(alone, answers(tiny.build("llama")), 1e-3)
    assert (alone - result).abs().max() < (result - rounded_base).abs().max()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:Could not find a config file in some/base:UserWarning")
@every_build
def test_peft_reads_the_adapter(build: str, tmp_path: Path) -> None:
    model = adapted(build, torch.float32)
    interchange.write(model, SPEC.plain, tmp_path, "some/base")
    there = peft.PeftModel.from_pretrained(rounded(build, dtype=torch.float32), tmp_path).eval()
    assert close(answers(there), answers(model), 1e-5)


@every_build
def test_checkpointing_changes_no_gradient(build: str) -> None:
    model = adapted(build).train()
    gradients: list[dict[str, Tensor]] = []
    for on in (False, True):
        if on:
            checkpoint_layers(model)
        model.zero_grad()
        loss_of(model, some_ids()).backward()
        gradients.append({n: p.grad.clone() for n, p in trainable(model).items()})
    assert all(close(gradients[1][n], gradient) for n, gradient in gradients[0].items())


def test_a_deep_copy_is_another_model() -> None:
    model = adapted("llama")
    result, twin = answers(model), copy.deepcopy(model)
    train(twin)
    assert torch.equal(answers(model), result)
    assert not torch.equal(answers(twin), result)


def test_dropout_only_while_training() -> None:
    model = adapt(tiny.build("llama"), QLoRA(rank=2, dropout=0.5))
    train(model)
    assert torch.equal(answers(model), answers(model))
    model.train()
    assert not torch.equal(answers(model), answers(model))
