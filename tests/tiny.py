"""Random models of about 50k parameters, built in code: one of each build the toolkit promises to handle."""

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
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


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """One of `BUILDS`, in evaluation mode. Weights are drawn wide enough that a wrong mask shows in the logits."""
    torch.manual_seed(seed)
    model = BUILDS[name]().to(dtype).eval()
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
