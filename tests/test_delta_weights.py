"""A tuned model as its difference from the base: back bit for bit, or refused (C14, G26)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate.errors import ModelError, SourceError
from acclimate.interchange.adapter import save_adapter
from acclimate.interchange.delta_weights import WEIGHTS, Difference, apply, difference, restore, write
from acclimate.methods import Full, LoRA
from acclimate.methods.delta import adapt, base, merge, trainable
from acclimate.models.fingerprint import fingerprint, tokenizer_hash
from acclimate.models.load import load
from tests import tiny
from tests.adapted import answers, train
from tests.runs import verb

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in base(model).items()}


def tuned(build: str, dtype: torch.dtype, method: Full | LoRA) -> nn.Module:
    """A model that a method trained, in the precision of its base."""
    model = adapt(tiny.build(build, dtype), method)
    train(model)
    if isinstance(method, LoRA):
        merge(model)
    return model.to(dtype)


def published(model: nn.Module, dtype: torch.dtype, folder: Path, build: str = "llama") -> Path:
    start = tiny.build(build, dtype)
    folder.mkdir()
    write(folder, copies(start), model, {"model": "some/base", "base": fingerprint(start)})
    return folder


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_tensor_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    """Small changes, changes of another size than the weight, zeros of both signs, infinities, and NaN."""
    draw = torch.Generator().manual_seed(0)
    before = torch.randn(40, 50, generator=draw, dtype=torch.float64)
    change = torch.randn(40, 50, generator=draw, dtype=torch.float64) * 10.0 ** torch.arange(-7, 3).repeat(4)[:, None]
    after = (before + change).to(dtype)
    after[0, :4] = torch.tensor([0.0, -0.0, torch.inf, torch.nan])
    after[1] = before[1] * 1e-4  # all but vanished: base + difference would round it away
    found = difference(before.to(dtype), after)
    assert same_bits(restore(before.to(dtype), found), after)
    assert found.change.dtype == torch.promote_types(dtype, torch.float32)
    assert len(found.places) < 400


def test_the_difference_by_hand() -> None:
    """1.5 − 1 is kept as 0.5. What 1 became, 2⁻³⁰, is no multiple of 2⁻²⁴, so 1 + (2⁻³⁰ − 1) is 0: it is kept itself."""
    found = difference(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([1.5, 2**-30, 3.0]))
    assert found.change.tolist() == [0.5, -1.0, 0.0]
    assert (found.places.tolist(), found.values.tolist()) == ([1], [2**-30])
    assert restore(torch.tensor([1.0, 1.0, 3.0]), found).tolist() == [1.5, 2**-30, 3.0]


def test_bfloat16_needs_nothing_but_the_difference_in_float32() -> None:
    """Eight bits of each number and sixteen bits of room: exact unless one of the two is 65,536 times the other."""
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randn(10_000, generator=draw).to(torch.bfloat16) for _ in range(2))
    found = difference(before, after)
    assert not len(found.places)
    assert torch.equal((before.float() + found.change).to(torch.bfloat16), after)


@pytest.mark.parametrize("build", ["llama", "gpt2", "t5", "bert"])
@pytest.mark.parametrize("method", [Full(), LoRA(2, targets=("linear",))], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_base_plus_difference_is_the_tuned_model(
    build: str, method: Full | LoRA, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tuned(build, dtype, method)
    folder = published(model, dtype, tmp_path / "delta", build)
    fresh = tiny.build(build, dtype)
    before, kept = base(fresh)[next(iter(base(fresh)))].data, copies(fresh)
    facts = apply(fresh, folder)
    assert facts["model"] == "some/base"
    assert all(same_bits(p.detach(), base(model)[key].detach()) for key, p in base(fresh).items())
    assert torch.equal(answers(fresh), answers(model))
    assert not torch.equal(answers(fresh), answers(tiny.build(build, dtype)))
    assert torch.equal(before, kept[next(iter(kept))])


def test_the_file_holds_what_changed_and_not_the_base(tmp_path: Path) -> None:
    model = tuned("llama", torch.float32, LoRA(2))
    held = load_file(published(model, torch.float32, tmp_path / "delta") / WEIGHTS)
    start = copies(tiny.build("llama", torch.float32))
    assert {key.split("#")[0] for key in held} == {
        key for key in start if key.endswith(("q_proj.weight", "v_proj.weight"))
    }
    for key, change in held.items():
        if "#" not in key:
            assert torch.equal(change, base(model)[key].detach() - start[key])
    assert sum(t.numel() for key, t in held.items() if key.endswith("#places")) < 0.01 * sum(
        map(torch.numel, held.values())
    )


@pytest.mark.parametrize("build", ["llama", "gpt2", "t5"])
def test_added_rows_of_an_embedding_come_along(build: str, tmp_path: Path) -> None:
    """GPT-2's output layer is its embedding; Llama's is not, so both have new rows."""
    model = tiny.build(build, torch.float32)
    torch.manual_seed(1)
    model.resize_token_embeddings(tiny.VOCAB + 3, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    fresh = tiny.build(build, torch.float32)
    apply(fresh, published(model, torch.float32, tmp_path / "delta", build))
    assert fresh.get_input_embeddings().weight.shape[0] == fresh.config.vocab_size == tiny.VOCAB + 3
    assert torch.equal(answers(fresh), answers(model))
    new = torch.full((1, 4), tiny.VOCAB + 2)
    assert torch.equal(tiny.logits(fresh, new), tiny.logits(model, new))
    fresh.save_pretrained(tmp_path / "plain")
    assert torch.equal(answers(type(fresh).from_pretrained(tmp_path / "plain").eval()), answers(model))


def test_another_base_is_refused(tmp_path: Path) -> None:
    folder = published(tuned("llama", torch.float32, Full()), torch.float32, tmp_path / "delta")
    other = tiny.build("llama", torch.float32, seed=1)
    before = copies(other)
    with pytest.raises(ModelError, match=r"The base model is sha256:.* but this was made with sha256"):
        apply(other, folder)
    assert all(torch.equal(p, before[key]) for key, p in base(other).items())


def test_the_base_in_another_precision_is_refused_in_the_end(tmp_path: Path) -> None:
    """It is the same model as far as bfloat16 can tell, but its sum is not the tuned model."""
    folder = published(tuned("llama", torch.float32, Full()), torch.float32, tmp_path / "delta")
    with pytest.raises(ModelError, match="The tuned model is sha256"):
        apply(tiny.build("llama", torch.bfloat16), folder)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    folder = published(tuned("llama", torch.float32, LoRA(2)), torch.float32, tmp_path / "delta")
    held = load_file(folder / WEIGHTS)
    key = next(key for key in held if "#" not in key)

    def with_(entries: dict[str, Tensor]) -> None:
        save_file({**held, **entries}, folder / WEIGHTS)

    with_({key: held[key] + 1})
    with pytest.raises(ModelError, match="The tuned model is"):
        apply(tiny.build("llama", torch.float32), folder)
    with_({f"{key}#places": torch.tensor([10**6]), f"{key}#values": torch.tensor([1.0])})
    with pytest.raises(ModelError, match=r"1 numbers for 1 places do not fit into \(32, 32\)"):
        apply(tiny.build("llama", torch.float32), folder)
    with_({key: torch.zeros(4, 5)})
    with pytest.raises(ModelError, match=r"the base has \(32, 32\), the tuned model \(4, 5\); only rows can be added"):
        apply(tiny.build("llama", torch.float32), folder)
    with_({"no.such.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"changes no\.such\.weight, which this model has not"):
        apply(tiny.build("llama", torch.float32), folder)


@pytest.mark.parametrize("said", [{}, {"base": 3}, {"base": {"weights": "x"}}])
def test_a_folder_that_does_not_name_its_base_is_refused(said: dict[str, object], tmp_path: Path) -> None:
    folder = published(tuned("llama", torch.float32, LoRA(2)), torch.float32, tmp_path / "delta")
    (folder / "acclimate.json").write_text(json.dumps(said))
    with pytest.raises(SourceError, match="does not say what its base model is"):
        apply(tiny.build("llama", torch.float32), folder)
    with pytest.raises(SourceError, match=r"holds no delta\.safetensors"):
        apply(tiny.build("llama", torch.float32), tmp_path)


def test_what_is_no_tuned_version_of_the_base_is_refused(tmp_path: Path) -> None:
    before = copies(tiny.build("llama", torch.float32))
    with pytest.raises(ModelError, match="is in one model only"):
        write(tmp_path, before, tiny.build("gpt2", torch.float32), {})
    with pytest.raises(ModelError, match="still carries the adapter 'default'; merge it first"):
        write(tmp_path, before, adapt(tiny.build("llama", torch.float32), LoRA()), {})
    with pytest.raises(
        ModelError, match=r"embed_tokens\.weight: the base is torch\.float32, the tuned model torch\.bfloat16"
    ):
        write(tmp_path, before, tiny.build("llama", torch.bfloat16), {})
    assert not list(tmp_path.iterdir())


def test_rows_that_are_gone_are_no_change_of_weights() -> None:
    with pytest.raises(ModelError, match="only rows can be added"):
        difference(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ModelError, match="only rows can be added"):
        restore(torch.zeros(3, 2), Difference(torch.zeros(3, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0)))


@pytest.fixture
def tuned_folder(home: Path, tmp_path: Path) -> Path:
    """A whole model that grew by two tokens, in bfloat16 as it may be published, with its own tokenizer."""
    loaded = load(f"{home}/model")
    loaded.tokenizer.add_tokens(["<one>", "<two>"])
    torch.manual_seed(0)
    loaded.model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
    for parameter in loaded.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    loaded.model.bfloat16().save_pretrained(tmp_path / "tuned")
    loaded.tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_the_verbs_publish_and_apply_a_whole_model(home: Path, tuned_folder: Path, tmp_path: Path) -> None:
    verb("export", "--model", home / "model", "--adapter", tuned_folder, "--format", "delta", "--out", tmp_path / "d")
    verb("merge", "--model", home / "model", "--delta", tmp_path / "d", "--out", tmp_path / "back")
    theirs, ours = load(str(tuned_folder)), load(str(tmp_path / "back"))
    assert (
        tokenizer_hash(ours.tokenizer)
        == tokenizer_hash(theirs.tokenizer)
        != tokenizer_hash(load(f"{home}/model").tokenizer)
    )
    assert ours.model.config.vocab_size == theirs.model.config.vocab_size == len(theirs.tokenizer)
    assert fingerprint(ours.model) == fingerprint(theirs.model)


@pytest.mark.parametrize("method", [Full(), LoRA(2)], ids=["full", "lora"])
def test_the_difference_of_an_adapter_gives_the_merged_model(home: Path, method: Full | LoRA, tmp_path: Path) -> None:
    model = load(f"{home}/model").model
    facts = {"model": "some/base", "base": fingerprint(model)}
    adapt(model, method)
    for parameter in trainable(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    save_adapter(model, method, tmp_path / "adapter", facts)
    chosen = ("--model", home / "model")
    verb("export", *chosen, "--adapter", tmp_path / "adapter", "--format", "delta", "--out", tmp_path / "delta")
    verb("merge", *chosen, "--delta", tmp_path / "delta", "--out", tmp_path / "one")
    verb("merge", *chosen, "--adapter", tmp_path / "adapter", "--out", tmp_path / "other")
    files = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "one").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in files)
    verb("merge", *chosen, "--delta", tmp_path / "delta", "--out", tmp_path / "one", expect=2)
    verb("merge", *chosen, "--out", tmp_path / "neither", expect=2)
    verb("merge", "--model", tmp_path / "one", "--delta", tmp_path / "delta", "--out", tmp_path / "twice", expect=1)
    assert not (tmp_path / "twice").exists()
