"""Random models of about 50k parameters, built in code: one of each build the toolkit promises to handle."""

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MPNetConfig,
    MPNetForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCAB = 96


def llama(tied: bool = False, dropout: float = 0.0, vocab: int = VOCAB) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            attention_dropout=dropout,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


def gpt2(vocab: int = VOCAB) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


def _bert(vocab: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )


def bert(vocab: int = VOCAB) -> nn.Module:
    return BertForMaskedLM(_bert(vocab))


def bert_classifier(vocab: int = VOCAB) -> nn.Module:
    return BertForSequenceClassification(_bert(vocab))


def t5(vocab: int = VOCAB) -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def bart(vocab: int = VOCAB) -> nn.Module:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=vocab,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=256,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )


BUILDS = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "bert_classifier": bert_classifier,
    "t5": t5,
    "bart": bart,
}

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LAYERED = ["sliding_attention", "full_attention"]
WINDOW = 4  # ids that a layer with a sliding window looks back at, itself included
DEBERTA = {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False, "pad_token_id": 0}


def _qwen2() -> nn.Module:
    return Qwen2ForCausalLM(Qwen2Config(**{n: v for n, v in SHARED.items() if n != "head_dim"}))


def _opt() -> nn.Module:
    sizes = {n: v for n, v in SIZES.items() if n != "intermediate_size"}
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0, pad_token_id=1))


# The rest of what is promised: decoders, then encoders. tests/test_architectures.py asks all of it of each.
MORE = {
    "qwen2": _qwen2,
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHARED)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHARED)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHARED, sliding_window=WINDOW, query_pre_attn_scalar=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHARED, sliding_window=WINDOW, layer_types=LAYERED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHARED, sliding_window=WINDOW)),
    "opt": _opt,
    "pythia": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, **STILL, pad_token_id=1)),
    "deberta": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, **STILL, **DEBERTA)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, **STILL, embedding_size=16, pad_token_id=0)),
    "mpnet": lambda: MPNetForMaskedLM(MPNetConfig(**SIZES, **STILL, pad_token_id=1)),
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """One of `BUILDS` or `MORE`, in evaluation mode. Weights are drawn wide enough that a wrong mask shows in the logits."""
    torch.manual_seed(seed)
    model = {**BUILDS, **MORE}[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(batch, time) → logits; an encoder-decoder reads and writes the same ids."""
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, decoder_input_ids=ids).logits
    return model(input_ids=ids).logits
