import struct
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from acclimate.errors import ModelError
from acclimate.methods.lora import LoRA
from acclimate.models.fingerprint import check, fingerprint, same_base, template_hash, tokenizer_hash
from tests import tiny
from tests.folders import TEXT, tokenizer


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_by_hand() -> None:
    """Weights 1, 2 and bias -0.5, packed byte by byte; in bfloat16 each is the upper half of its float32."""
    model = nn.Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([-0.5])
    model.register_buffer("count", torch.tensor(3))
    model.register_buffer("passing", torch.tensor(4), persistent=False)
    bias, weight, count = struct.pack("<f", -0.5), struct.pack("<2f", 1.0, 2.0), struct.pack("<q", 3)
    lines = f"bias float32 [1] {digest(bias)}\ncount int64 [] {digest(count)}\nweight float32 [1, 2] {digest(weight)}\n"
    short = (
        f"bias bfloat16 [1] {digest(bias[2:])}\ncount int64 [] {digest(count)}\n"
        f"weight bfloat16 [1, 2] {digest(weight[2:4] + weight[6:])}\n"
    )
    assert fingerprint(model) == {
        "weights": "sha256:" + digest(lines.encode()),
        "dtype": "float32",
        "weights_bfloat16": "sha256:" + digest(short.encode()),
    }


@pytest.mark.parametrize("build", tiny.BUILDS)
def test_one_model_in_several_precisions(build: str) -> None:
    exact = fingerprint(tiny.build(build, torch.float32))
    wide = fingerprint(tiny.build(build, torch.float32).double())
    half = fingerprint(tiny.build(build, torch.float32).bfloat16())
    assert [exact["dtype"], wide["dtype"], half["dtype"]] == ["float32", "float64", "bfloat16"]
    assert len({exact["weights"], wide["weights"], half["weights"]}) == 3
    assert half["weights"] == half["weights_bfloat16"]
    assert same_base(exact, wide)
    assert same_base(exact, half)
    assert same_base(half, wide)
    other = fingerprint(tiny.build(build, torch.float32, seed=1))
    assert not same_base(exact, other)
    assert not same_base(half, other)


def test_the_last_bit_of_one_weight_counts() -> None:
    model = tiny.build("llama", torch.float32)
    before = fingerprint(model)
    assert fingerprint(model) == before
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(torch.inf))
    after = fingerprint(model)
    assert after["weights"] != before["weights"]
    assert not same_base(before, after)
    assert same_base(before, fingerprint(model.bfloat16()))  # a last bit is lost in the rounding


def test_names_shapes_and_places_count() -> None:
    def of(**tensors: torch.Tensor) -> str:
        model = nn.Module()
        for name, tensor in tensors.items():
            model.register_buffer(name, tensor)
        return fingerprint(model)["weights"]

    one, two = torch.arange(6.0), torch.zeros(6)
    assert of(a=one, b=two) == of(b=two, a=one)
    different = {
        of(a=one, b=two),
        of(a=two, b=one),
        of(a=one, c=two),
        of(a=one.reshape(2, 3), b=two),
        of(a=one.reshape(3, 2), b=two),
        of(a=one.int(), b=two),
        of(a=one),
        of(a=one, b=one[:3]),  # begins where `a` begins, but is not tied to it
        of(a=torch.cat([one, two])),
    }
    assert len(different) == 9
    transposed = torch.arange(6.0).reshape(2, 3).t()
    assert of(a=transposed) == of(a=transposed.contiguous())
    assert of(a=torch.zeros(0), b=torch.zeros(0)) != of(a=torch.zeros(0))


def test_tied_tensors_count_once() -> None:
    tied, loose = tiny.llama(tied=True), tiny.llama(tied=True)
    loose.load_state_dict(tied.state_dict())
    loose.lm_head.weight = nn.Parameter(loose.lm_head.weight.clone())
    names = sorted(name for name in tied.state_dict() if name != "model.embed_tokens.weight")
    lines = "".join(
        f"{name} float32 {list(tensor.shape)} {digest(tensor.numpy().tobytes())}\n"
        for name, tensor in sorted(tied.state_dict().items())
        if name in names
    )
    assert fingerprint(tied)["weights"] == "sha256:" + digest(lines.encode())
    assert fingerprint(loose)["weights"] != fingerprint(tied)["weights"]


def test_an_adapter_changes_nothing() -> None:
    model = tiny.build("llama", torch.float32)
    before = fingerprint(model)
    LoRA(rank=2).install(model)
    assert any("delta" in name.split(".") for name in model.state_dict())
    assert fingerprint(model) == before
    model.model.layers[0].self_attn.q_proj.weight.data += 1
    assert fingerprint(model) != before


def test_only_whole_components_named_delta_are_adapters() -> None:
    model = nn.Module()
    model.delta_gate = nn.Linear(1, 1)
    before = fingerprint(model)
    model.delta_gate.weight.data += 1
    assert fingerprint(model) != before


def test_modes_do_not_count() -> None:
    model = tiny.build("gpt2", torch.float32)
    before = fingerprint(model)
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert fingerprint(model) == before


def test_mixed_precision_is_named() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).bfloat16())
    assert fingerprint(model)["dtype"] == "bfloat16+float32"
    assert same_base(fingerprint(model), fingerprint(model.bfloat16()))


def test_a_model_without_data() -> None:
    with pytest.raises(ModelError, match="bias has no data yet"):
        fingerprint(nn.Linear(2, 2, device="meta"))


@pytest.mark.gpu
def test_every_device_gives_the_same() -> None:
    model = tiny.llama(tied=True)
    assert fingerprint(model) == fingerprint(model.cuda())


def test_a_tokenizer_in_use_keeps_its_hash(tmp_path: Path) -> None:
    one = tokenizer()
    before = tokenizer_hash(one)
    one([TEXT, "the cat"], padding=True, truncation=True, max_length=4)
    one.pad_token = "</s>"
    one.padding_side = "left"
    assert tokenizer_hash(one) == before
    one.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_another_tokenizer_has_another_hash() -> None:
    added, special, fewer = tokenizer(), tokenizer(), tokenizer()
    added.add_tokens(["dog"])
    special.eos_token = "."
    fewer.backend_tokenizer.pre_tokenizer = None
    assert len({tokenizer_hash(one) for one in (tokenizer(), added, special, fewer)}) == 4


def test_template_hash() -> None:
    assert template_hash("{{ text }}") == "sha256:" + digest(b"{{ text }}")
    assert template_hash("clich\u00e9") == "sha256:" + digest("clich\u00e9".encode())


def test_check() -> None:
    one, other = (fingerprint(tiny.build("llama", torch.float32, seed)) for seed in (0, 1))
    check(one, one, "base model")
    check(fingerprint(tiny.build("llama", torch.float32).bfloat16()), one, "base model")
    check("sha256:1", "sha256:1", "tokenizer")
    with pytest.raises(ModelError) as caught:
        check(one, other, "base model")
    assert str(caught.value) == (
        f"The base model is {one['weights']}, but this was made with {other['weights']}; "
        "use the base model it was made with."
    )
    for found, expected in (("sha256:1", "sha256:2"), ("sha256:1", one), (one, "sha256:1")):
        with pytest.raises(ModelError, match="The template is"):
            check(found, expected, "template")
