"""Prefix tuning and prefix layers against attention written out by hand, and against PEFT's own (G25, G27)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from acclimate.errors import ModelError, RecipeError, SourceError
from acclimate.interchange import virtual
from acclimate.methods import LoRA, Prefix, PreLayer, PromptTuning, artifact
from acclimate.methods.delta import adapt, carriers, trainable
from acclimate.methods.prefix import Hidden, Made, fused
from acclimate.methods.soft import Rows, settle, soft_of
from acclimate.models.memory import memory_name
from tests import hand, tiny
from tests.adapted import adapted, answers, bits, changed, close, dressed, some_ids, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in some/base:UserWarning"),
]
WORDS = ((5, 6), (7,))


def rows_of(model: nn.Module) -> list[Tensor]:
    """What was learned for each module, in the model's order."""
    found = [module.delta["default"] for module in carriers(model, "default").values()]
    return [delta.values().detach() for delta in found if isinstance(delta, Rows)]


def trained(build: str, method: Prefix | PreLayer, dtype: torch.dtype = torch.float64) -> nn.Module:
    model = adapt(tiny.build(build, dtype), method)
    train(model)
    return model


@pytest.mark.parametrize("middle", [0, 8])
def test_attention_by_hand_sees_the_keys_and_values(middle: int) -> None:
    model = trained("gpt2", Prefix(3, middle))
    ids, base = some_ids(2), tiny.build("gpt2")
    got = model(dressed(model, ids)[0]).logits
    pairs = [row.split(32, 1) for row in rows_of(model)]
    for row, answer in zip(ids, got, strict=True):
        wanted = hand.gpt2(base, base.transformer.wte(row), start=3, keys_values=pairs)
        assert close(answer[3:], wanted)
    plain = base(ids).logits
    assert not close(got[:, 3:], plain, 0.01)


def test_layers_by_hand_answer_with_the_vectors() -> None:
    model = trained("gpt2", PreLayer(2, 1))
    ids, base = some_ids(1), tiny.build("gpt2")
    words, (after,) = base.transformer.wte(ids[0]), rows_of(model)
    rows = model.transformer.wte.delta["default"].rows
    vectors = torch.cat([rows[:2], words[:5], rows[2:], words[5:]])
    wanted = hand.gpt2(base, vectors, after=[{0: after[0], 1: after[1], 7: after[2]}, {}])
    assert close(model(dressed(model, ids)[0]).logits[0], wanted)


@torch.no_grad()
@pytest.mark.parametrize("build", ["llama", "gpt2", "pythia", "qwen3", "opt", "gemma"])
@pytest.mark.parametrize("middle", [0, 8])
def test_starting_from_words_is_reading_them(build: str, middle: int) -> None:
    """Keys and values of the words themselves, at the words' own places: rotations and norms included."""
    model, ids = tiny.build(build), some_ids()
    words = torch.tensor([[5, 6, 7]]).expand(len(ids), -1)
    wanted = model(torch.cat([words, ids], 1)).logits[:, 3:]
    adapt(model, Prefix(3, middle, words=WORDS))
    assert close(model(dressed(model, ids)[0]).logits[:, 3:], wanted, 1e-6)  # some of these norms are in float32
    assert close(model(dressed(model, ids)[0]).logits[:, 3:], wanted)
    other = adapt(tiny.build(build), Prefix(3, middle, "random"))
    assert not close(other(dressed(other, ids)[0]).logits[:, 3:], wanted, 0.01)


@torch.no_grad()
@pytest.mark.parametrize("build", ["t5", "bart"])
def test_the_decoder_looks_at_the_keys_and_values(build: str) -> None:
    """What the decoder remembers of the encoder: our rows at our places, the base model's own layer elsewhere."""
    model, ids = tiny.build(build), some_ids()
    adapt(model, Prefix(3, 0, "random"))
    out = model(input_ids=dressed(model, ids)[0], decoder_input_ids=ids, use_cache=True)
    cross = [p for p in carriers(model) if "EncDecAttention" in p or "encoder_attn" in p]
    seen = [t for layer in out[memory_name(model)].cross_attention_cache.layers for t in (layer.keys, layer.values)]
    assert len(cross) == len(seen) == 4
    for path, kept in zip(cross, seen, strict=True):
        made = kept.transpose(1, 2).flatten(2)
        module = model.get_submodule(path)
        assert torch.equal(made[:, :3], module.delta["default"].rows.expand(3, -1, -1))
        assert close(made[:, 3:], module.forward(out.encoder_last_hidden_state)[:, 3:])
    own = [p for p in carriers(model) if "decoder" in p and p not in cross]
    assert own == []
    assert len(carriers(model)) == 1 + 4 + 4


def test_words_are_said_over_again() -> None:
    once, twice = (rows_of(adapt(tiny.build("gpt2"), Prefix(n, 0, words=((5, 6),)))) for n in (2, 4))
    assert all(close(first, longer[:2]) for first, longer in zip(once, twice, strict=True))
    cut, whole = (rows_of(adapt(tiny.build("gpt2"), Prefix(3, 0, words=w))) for w in (((5,), (6, 7, 8)), WORDS))
    assert all(torch.equal(a, b) for a, b in zip(cut, whole, strict=True))


def test_a_random_start_is_as_wide_as_the_models_own() -> None:
    drawn, seen = [], []
    for start, found in (("random", drawn), ("words", seen)):
        model = tiny.build("llama")
        model.model.layers[1].self_attn.v_proj.weight.data *= 30
        found += rows_of(adapt(model, Prefix(50, 0, start)))
    assert all(0.7 < ours.std() / words.std() < 1.4 for ours, words in zip(drawn, seen, strict=True))
    assert not any(torch.equal(ours, words) for ours, words in zip(drawn, seen, strict=True))


def test_the_mlp_by_hand() -> None:
    """P' = (1, 0), W = [[1, 2], [3, 4]], b = (0, 1): tanh(1, 4); last layer (2, −1) + 0.5."""
    hidden = Hidden(1, 2)
    hidden.start.data[:] = torch.tensor([[1.0, 0.0]])
    hidden.inner.weight.data[:] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    hidden.inner.bias.data[:] = torch.tensor([0.0, 1.0])
    made = Made(hidden, 1)
    made.last.weight.data[:] = torch.tensor([[2.0, -1.0]])
    made.last.bias.data[:] = 0.5
    assert made().tolist() == [[pytest.approx(2 * 0.7615942 - 0.9993293 + 0.5)]]


def test_settling_keeps_the_answer_and_drops_the_rest(tmp_path: Path) -> None:
    model = adapted("llama", "prefix")
    before, answer = bits(model), answers(model)
    reparameterised = artifact.tensors(model)
    settle(model, "default")
    assert torch.equal(answers(model), answer)
    assert not changed({n: t for n, t in before.items() if ".delta." not in n}, bits(model))
    assert {n.rpartition(".")[2] for n in trainable(model)} == {"rows"}
    assert sum(t.numel() for t in artifact.tensors(model).values()) == 2 * 3 * (16 + 16)  # L n (d_key + d_value)
    settle(model)  # nothing is left to do
    artifact.save(model, tmp_path, {})
    fresh = adapt(tiny.build("llama"), Prefix(3, middle=8), seed=4)
    with pytest.raises(ModelError, match="tensors are missing"):
        artifact.fill(fresh, artifact.read(tmp_path)[0])
    settle(fresh)
    with pytest.raises(ModelError, match="have no place"):
        artifact.fill(fresh, reparameterised)
    artifact.fill(fresh, artifact.read(tmp_path)[0])
    assert torch.equal(answers(fresh), answer)


def test_what_is_frozen_stays_frozen_when_it_settles() -> None:
    model = adapted("llama", "prefix", name="a")
    adapt(model, LoRA(2), name="b")
    settle(model, "b")
    assert any("maker" in n for n in bits(model))
    settle(model, "a")
    assert not any("maker" in n for n in bits(model))
    assert all(".delta.b." in n for n in trainable(model))


peft_says_past_key_values = pytest.mark.filterwarnings(
    "ignore:.*past_key_values.*:FutureWarning"
)  # renamed in transformers


@peft_says_past_key_values
@pytest.mark.parametrize("build", ["llama", "gpt2"])
@pytest.mark.parametrize("middle", [0, 8])
def test_equal_to_peft(build: str, middle: int, tmp_path: Path) -> None:
    model = trained(build, Prefix(3, middle), torch.float32)
    settle(model)
    ids = some_ids()
    virtual.write(model, Prefix(3, middle), tmp_path, "some/base")
    other: Any = PeftModel.from_pretrained(tiny.build(build, torch.float32), tmp_path)
    with torch.no_grad():
        theirs = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert close(model(dressed(model, ids)[0]).logits[:, 3:], theirs, 1e-5)
        assert not close(tiny.build(build, torch.float32)(ids).logits, theirs, 1e-2)


@peft_says_past_key_values
@pytest.mark.parametrize("build", ["llama", "gpt2"])
def test_what_peft_wrote_comes_in(build: str, tmp_path: Path) -> None:
    other: Any = get_peft_model(
        tiny.build(build, torch.float32), PrefixTuningConfig(TaskType.CAUSAL_LM, num_virtual_tokens=4)
    )
    other.eval().save_pretrained(tmp_path)
    method, found = virtual.read(tmp_path)
    model = adapt(tiny.build(build, torch.float32), method)
    virtual.fill(model, found)
    ids = some_ids()
    with torch.no_grad():
        theirs = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert close(model(dressed(model, ids)[0]).logits[:, 4:], theirs, 1e-5)
    assert close(virtual.embeddings(model, method), found, 1e-6)
    with pytest.raises(ModelError, match="the model needs"):
        virtual.fill(model, found[:, 1:])


def test_prompts_go_to_peft_and_back(tmp_path: Path) -> None:
    model = adapted("llama", "prompt", torch.float32)
    virtual.write(model, PromptTuning(3), tmp_path, "some/base")
    other: Any = PeftModel.from_pretrained(tiny.build("llama", torch.float32), tmp_path)
    ids = some_ids()
    with torch.no_grad():
        theirs = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert close(model(dressed(model, ids)[0]).logits, theirs, 1e-5)
    method, found = virtual.read(tmp_path)
    fresh = adapt(tiny.build("llama", torch.float32), method)
    virtual.fill(fresh, found)
    assert torch.equal(answers(fresh), answers(model))


@pytest.mark.parametrize("build", ["qwen3", "t5", "bert", "pythia"])
def test_what_peft_cannot_express_is_refused(build: str) -> None:
    model = adapt(tiny.build(build), Prefix(3, 0))
    with pytest.raises(ModelError, match="in a way that PEFT's prefixes cannot be turned into"):
        virtual.embeddings(model, Prefix(3, 0))


@pytest.mark.parametrize(
    ("kind", "sizes", "rope"),
    [(LlamaForCausalLM, LlamaConfig, {"rope_type": "yarn", "factor": 4.0}), (StableLmForCausalLM, StableLmConfig, {})],
)
def test_other_rotations_are_refused(kind: Any, sizes: Any, rope: dict[str, Any]) -> None:
    """YaRN makes keys longer as well, StableLM rotates a quarter of each."""
    given = {k: v for k, v in tiny.SHARED.items() if k != "head_dim"}
    model = kind(sizes(**given, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope})).eval()
    adapt(model, Prefix(3, 0))
    with pytest.raises(ModelError, match="rotates its keys in another way"):
        virtual.embeddings(model, Prefix(3, 0))


def test_another_adapter_of_peft_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "P_TUNING"}')
    artifact.write_tensors({"prompt_embeddings": torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="adapter of type P_TUNING"):
        virtual.read(tmp_path)


@pytest.mark.parametrize("method", [Prefix(3, 2), Prefix(3, -1), Prefix(0), Prefix(256)])
def test_what_makes_no_sense_is_refused(method: Prefix) -> None:
    with pytest.raises(RecipeError, match=r"it must be 0, or at least the length 3|it needs at least 1"):
        adapt(tiny.build("llama"), method)


def test_keys_of_positions_are_refused() -> None:
    """DeBERTa v3 shares the matrix; without sharing it is a layer of its own, and nothing is refused."""
    sizes = {**tiny.SIZES, **tiny.STILL, **tiny.DEBERTA}
    model = DebertaV2ForMaskedLM(DebertaV2Config(**sizes, share_att_key=True))
    with pytest.raises(ModelError, match="makes keys of more than the tokens"):
        adapt(model, Prefix(3, 0))
    assert not carriers(model)


def test_columns_of_fused_layers() -> None:
    """Two heads of one number: GPT-NeoX (q k v)(q k v), GPT-2 qq kk vv, Phi-3 with one head of keys qq k v."""

    class Text:
        num_attention_heads, hidden_size, head_dim = 2, 2, 1

        def get_text_config(self) -> "Text":
            return self

    linear = nn.Linear(2, 6)
    assert fused("h.0.attention.query_key_value", linear, Text()).tolist() == [1, 4, 2, 5]
    assert fused("h.0.attn.Wqkv", linear, Text()).tolist() == [2, 3, 4, 5]
    assert fused("h.0.self_attn.qkv_proj", nn.Linear(2, 4), Text()).tolist() == [2, 3]
    assert fused("h.0.self_attn.k_proj", linear, Text()) is None
    for path in ("h.0.attn.c_attn", "h.0.attn.qkv_proj"):  # StarCoder's and CodeGen's orders are others
        with pytest.raises(ModelError, match="in an order that is not known"):
            fused(path, linear, Text())
    with pytest.raises(ModelError, match="in an order that is not known"):
        fused("h.0.self_attention.query_key_value", nn.Linear(2, 4), Text())


@pytest.mark.parametrize("build", ["roberta", "electra", "mpnet", "deberta", "mistral", "gemma3", "pythia"])
def test_other_builds_hear_them(build: str) -> None:
    for method in (Prefix(3, 0), PreLayer(3, 0)):
        model = adapt(tiny.build(build), method)
        assert not close(answers(model), tiny.logits(tiny.build(build), some_ids()), 1e-3)
        train(model, steps=1)
        assert all(p.grad.abs().sum() > 0 for p in trainable(model).values())


def test_the_base_answers_for_the_words() -> None:
    """Another adapter that answers, and dropout, do not reach the start."""
    alone = rows_of(adapt(tiny.build("llama"), Prefix(3, 0, words=WORDS)))
    model = adapted("llama", "lora", name="a").train()
    adapt(model, Prefix(3, 0, words=WORDS))
    assert all(torch.equal(a, b) for a, b in zip(rows_of(model), alone, strict=True))
    assert model.training
    assert soft_of(model).front == (96, 97, 98)
