"""Which layers the parts mean, on every build that is promised: the whole list, written by hand."""

import re
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from acclimate.errors import ModelError
from acclimate.methods.delta import adapt
from acclimate.methods.lora import LoRA
from acclimate.methods.targets import (
    PARTS,
    Width,
    attentions,
    embedding,
    feed_forwards,
    find,
    layers,
    linears,
    norms,
    width,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHARED = {**SIZES, "num_key_value_heads": 2}
BART = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
DISTILBERT = {"vocab_size": 96, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
DEBERTA = {**SIZES, "relative_attention": True, "pos_att_type": "c2p|p2c", "share_att_key": False}
OPT = {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16}
FALCON = {n: v for n, v in SIZES.items() if n != "intermediate_size"}
MODERN = {**SIZES, "cls_token_id": 1, "sep_token_id": 2}

GATED = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}
LLAMA = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", **GATED}
BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "N.output.dense",
}
NEOX = {
    **dict.fromkeys(("query", "key", "value"), "query_key_value"),
    "output": "attention.dense",
    "up": "dense_h_to_4h",
    "down": "dense_4h_to_h",
}
BART_PARTS = {
    "query": "self_attn.q_proj encoder_attn.q_proj",
    "key": "self_attn.k_proj encoder_attn.k_proj",
    "value": "self_attn.v_proj encoder_attn.v_proj",
    "output": "self_attn.out_proj encoder_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}
T5_PARTS = {
    "query": "SelfAttention.q EncDecAttention.q",
    "key": "SelfAttention.k EncDecAttention.k",
    "value": "SelfAttention.v EncDecAttention.v",
    "output": "SelfAttention.o EncDecAttention.o",
    "up": "DenseReluDense.wi",
    "down": "DenseReluDense.wo",
}
GPT2_PARTS = {
    **dict.fromkeys(("query", "key", "value"), "attn.c_attn"),
    "output": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
PHI3 = {
    **dict.fromkeys(("query", "key", "value"), "qkv_proj"),
    "output": "o_proj",
    **dict.fromkeys(("up", "gate"), "gate_up_proj"),
    "down": "down_proj",
}
# The endings that each part means; `N` is any number. "beyond" is what no part names: `linear` has it all the same.
ZOO: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SHARED)), LLAMA),
    "qwen2": (lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SHARED)), LLAMA),
    "qwen3": (lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHARED, head_dim=8)), LLAMA),
    "gemma2": (lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**SHARED, head_dim=8)), LLAMA),
    "mistral": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**SHARED)), LLAMA),
    "llama classifier": (lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**SHARED)), LLAMA),
    "phi3": (lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SHARED)), PHI3),
    "phi": (
        lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
        {**LLAMA, "output": "self_attn.dense", "up": "fc1", "gate": "", "down": "fc2"},
    ),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), GPT2_PARTS),
    "gpt2 classifier": (lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2)), GPT2_PARTS),
    "gptj": (
        lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT2, rotary_dim=4)),
        {**LLAMA, "output": "out_proj", "up": "fc_in", "gate": "", "down": "fc_out"},
    ),
    "opt": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
        {**LLAMA, "output": "out_proj", "up": "fc1", "gate": "", "down": "fc2"},
    ),
    "pythia": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)), NEOX),
    "falcon": (lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)), {**NEOX, "output": "self_attention.dense"}),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES)), BERT),
    "bert lm": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)), BERT),
    "roberta": (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZES)), BERT),
    "electra": (lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**SIZES, embedding_size=16)), BERT),
    "deberta": (
        lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**DEBERTA)),
        {
            **BERT,
            "query": "self.query_proj",
            "key": "self.key_proj",
            "value": "self.value_proj",
            "beyond": "pos_key_proj pos_query_proj",
        },
    ),
    "mpnet": (
        lambda: hf.MPNetForSequenceClassification(hf.MPNetConfig(**SIZES)),
        {**BERT, "query": "attn.q", "key": "attn.k", "value": "attn.v", "output": "attn.o"},
    ),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**DISTILBERT)),
        {"query": "q_lin", "key": "k_lin", "value": "v_lin", "output": "out_lin", "up": "ffn.lin1", "down": "ffn.lin2"},
    ),
    "albert": (
        lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**SIZES, embedding_size=16)),
        {
            **{"query": "attention.query", "key": "attention.key", "value": "attention.value"},
            **{"output": "attention.dense", "up": "ffn", "down": "ffn_output"},
        },
    ),
    "modernbert": (
        lambda: hf.ModernBertForSequenceClassification(hf.ModernBertConfig(**MODERN)),
        {
            **dict.fromkeys(("query", "key", "value"), "Wqkv"),
            **{"output": "attn.Wo", "up": "mlp.Wi", "gate": "mlp.Wi", "down": "mlp.Wo"},
        },
    ),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), T5_PARTS),
    "t5 1.1": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
        {**T5_PARTS, "up": "DenseReluDense.wi_1", "gate": "DenseReluDense.wi_0"},
    ),
    "bart": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), BART_PARTS),
    "bart classifier": (lambda: hf.BartForSequenceClassification(hf.BartConfig(**BART)), BART_PARTS),
}
HEADS = ("lm_head", "score", "classifier", "pre_classifier", "classification_head", "cls", "pooler", "head")


def shape_of(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".N", name)


@pytest.mark.parametrize("build", ZOO)
def test_parts_are_the_layers_they_name(build: str) -> None:
    make, expected = ZOO[build]
    with torch.device("meta"):
        model = make()
    inside = {n for n in linears(model) if re.search(r"\.\d+\.", n)}
    covered: set[str] = set()
    for part in PARTS:
        endings = tuple(f".{ending}" for ending in expected.get(part, "").split())
        wanted = {n for n in inside if shape_of(n).endswith(endings)} if endings else set()
        assert len({shape_of(n).removeprefix("model.") for n in wanted}) >= len(endings)
        if wanted:
            assert set(find(model, (part,))) == wanted
        else:
            with pytest.raises(ModelError, match=f"no {part} layer that is known by name"):
                find(model, (part,))
        covered |= wanted
    beyond = {n for n in inside - covered if n.endswith(tuple(expected.get("beyond", "-").split()))}
    assert covered | beyond == inside
    assert set(find(model, ("linear",))) == inside
    assert not any(n.split(".")[0] in HEADS for n in inside)


def test_every_layer_is_found_once_and_in_the_models_order() -> None:
    model = ZOO["gpt2"][0]()
    found = find(model, ("value", "query", "*.c_fc", "query"))
    assert list(found) == [f"transformer.h.{i}.{n}" for i in (0, 1) for n in ("attn.c_attn", "mlp.c_fc")]
    assert all(model.get_submodule(name) is module for name, module in found.items())


def test_patterns_reach_the_head_and_single_layers() -> None:
    model = ZOO["llama"][0]()
    assert list(find(model, ("lm_head",))) == ["lm_head"]
    assert list(find(model, ("model.layers.1.*.[qk]_proj",))) == [f"model.layers.1.self_attn.{n}_proj" for n in "qk"]


def test_numbered_layers_of_a_classification_head_are_no_layers_of_the_model() -> None:
    model = ZOO["bert"][0]()
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2))
    assert not [n for n in find(model, ("linear",)) if n.startswith("classifier")]
    assert list(find(model, ("classifier.*",))) == ["classifier.0", "classifier.2"]


def test_changes_that_ride_on_the_model_are_not_found() -> None:
    model = ZOO["llama"][0]()
    before = list(find(model, ("linear",)))
    layer = model.get_submodule(before[0])
    adapt(model, LoRA())
    layer.delta["default"].inner = nn.Linear(2, 2)
    assert list(find(model, ("linear",))) == before
    assert not [n for n in find(model, ("*",)) if "delta" in n]


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (("querry",), "No part or layer of this model is called 'querry'. Did you mean 'query'?"),
        (("q_proj",), r"called 'q_proj'. Did you mean '\*.q_proj'?"),
        (
            ("*.wq",),
            r"No linear layer of this model matches '\*.wq'. They end in: down_proj, gate_proj, k_proj, lm_head,",
        ),
        (("query", "nothing"), "called 'nothing'"),
    ],
)
def test_a_target_that_fits_nothing_says_what_there_is(targets: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        find(ZOO["llama"][0](), targets)


def test_width_of_both_layouts() -> None:
    """GPT-2 stores (d_in, d_out): 32 → 96 for query, key and value; nn.Linear stores (d_out, d_in)."""
    assert width(ZOO["gpt2"][0]().get_submodule("transformer.h.0.attn.c_attn")) == Width(32, 96, True)
    assert width(nn.Linear(3, 5)) == Width(3, 5, False)
    with pytest.raises(ModelError, match="A LayerNorm has no single weight matrix"):
        width(nn.LayerNorm(3))


EMBEDDINGS = {
    **{"gpt2": "transformer.wte", "gptj": "transformer.wte", "falcon": "transformer.word_embeddings"},
    **{"opt": "model.decoder.embed_tokens", "pythia": "gpt_neox.embed_in", "t5": "encoder.embed_tokens"},
    **{"modernbert": "model.embeddings.tok_embeddings", "bart": "model.encoder.embed_tokens"},
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma2", "mistral", "phi", "phi3"), "model.embed_tokens"),
    **{n: f"{n}.embeddings.word_embeddings" for n in ("bert", "roberta", "electra", "deberta", "mpnet")},
    **{n: f"{n}.embeddings.word_embeddings" for n in ("distilbert", "albert")},
}
FINAL = {  # after the last layer; builds that normalise at the end of each layer have none
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3"), "model.norm"),
    **dict.fromkeys(("gpt2", "gptj", "falcon"), "transformer.ln_f"),
    **{"phi": "model.final_layernorm", "opt": "model.decoder.final_layer_norm"},
    **{"pythia": "gpt_neox.final_layer_norm", "modernbert": "model.final_norm"},
    "t5": "decoder.final_layer_norm encoder.final_layer_norm",
}
# A layer's own; of encoder-decoders those of an encoder layer and a decoder layer together.
NORMS = {"qwen3": 4, "gemma2": 4, "phi": 1, "gptj": 1, "falcon": 1, "t5": 5, "bart": 5}


@pytest.mark.parametrize("build", ZOO)
def test_layers_and_their_sublayers_are_those_of_the_build(build: str) -> None:
    with torch.device("meta"):
        model = ZOO[build][0]()
    names, kind = {id(m): n for n, m in model.named_modules()}, build.split()[0]
    found = [names[id(layer)] for layer in layers(model)]
    two, count = kind in ("t5", "bart"), 1 if kind == "albert" else 2  # ALBERT has one layer, which it uses twice
    assert len(found) == (2 * count if two else count)
    assert [re.search(r"\d+$", n)[0] for n in found] == [str(i) for i in range(count)] * (1 + two)
    assert not two or ["encoder" in n for n in found] == [True, True, False, False]
    for pairs, part, last in ((attentions(model), "query", "output"), (feed_forwards(model), "up", "down")):
        firsts, lasts = ([names[id(pair[place])] for pair in pairs] for place in (0, 1))
        assert set(firsts) == set(find(model, (part,)))
        assert set(lasts) == set(find(model, (last,)))
        order = [next(i for i, n in enumerate(found) if name.startswith(f"{n}.")) for name in firsts]
        assert order == sorted(order)
        assert order == [next(i for i, n in enumerate(found) if name.startswith(f"{n}.")) for name in lasts]
    if two:  # self-attention and cross-attention are not mixed up
        assert all(
            names[id(a)].rpartition(".")[0] == names[id(b)].rpartition(".")[0]
            for pairs in (attentions(model), feed_forwards(model))
            for a, b in pairs
        )


@pytest.mark.parametrize("build", ZOO)
def test_embedding_and_norms_are_those_of_the_build(build: str) -> None:
    with torch.device("meta"):
        model = ZOO[build][0]()
    names, kind = {id(m): n for n, m in model.named_modules()}, build.split()[0]
    assert names[id(embedding(model))] == EMBEDDINGS[kind]
    normed = [names[id(norm)] for norm in norms(model)]
    inside = [n for n in normed if re.search(r"\.\d+\.", n)]
    assert sorted(set(normed) - set(inside)) == FINAL.get(kind, "").split()
    # ModernBERT's first layer takes its input as the embedding normalised it.
    assert len(inside) == {"albert": 2, "modernbert": 3}.get(kind, 2 * NORMS.get(kind, 2))


def test_places_are_found_beneath_an_adapter() -> None:
    model = ZOO["llama"][0]()
    before = [layers(model), norms(model), attentions(model), feed_forwards(model), embedding(model)]
    adapt(model, LoRA(targets=("linear",)))
    model.model.layers[0].mlp.up_proj.delta["default"].norm = nn.LayerNorm(2)
    assert [layers(model), norms(model), attentions(model), feed_forwards(model), embedding(model)] == before


def test_a_layer_with_several_experts_has_no_pairs() -> None:
    model = ZOO["llama"][0]()
    model.model.layers[1].mlp.second = nn.ModuleDict({"up_proj": nn.Linear(2, 2)})
    with pytest.raises(ModelError, match=r"model.layers.1 has 2 up and 1 down layers, which do not pair up"):
        feed_forwards(model)


def test_cross_attention_of_an_encoder_turned_decoder_is_attention() -> None:
    with torch.device("meta"):
        model = hf.BertLMHeadModel(hf.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True))
    assert {n.split(".", 4)[4] for n in find(model, ("output",))} == {
        "attention.output.dense",
        "crossattention.output.dense",
    }
    assert {n.split(".", 4)[4] for n in find(model, ("down",))} == {"output.dense"}
    assert len(attentions(model)) == 4
