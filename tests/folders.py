"""Model folders and .gguf files made up for the tests, with a tokenizer of a few words."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests import tiny

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "."]
TEXT = "the cat sat on a mat ."
IDS = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10, 2]])


def tokenizer() -> PreTrainedTokenizerBase:
    """Words by whitespace; pad 0, <s> 1, </s> 2, <unk> 3, `the` 4, …"""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def save(folder: Path, build: str = "llama", dtype: torch.dtype = torch.float32, shards: str = "1GB") -> nn.Module:
    """A tiny model and its tokenizer as a model folder; returns the model."""
    model = tiny.build(build, dtype)
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer().save_pretrained(folder)
    return model


def write_gguf(path: Path) -> nn.Module:
    """A tiny Llama in llama.cpp's format, with a byte-level tokenizer; returns the model."""
    torch.manual_seed(0)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "<|endoftext|>", "<|start|>", "<|end|>"]
    model = tiny.llama(tied=True, vocab=len(tokens)).eval()
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 3])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template("{{ messages[0].content }}<|end|>")
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name.split(".")[-2][0])
            writer.add_tensor(_gguf_name(name), _by_pairs(tensor.numpy(), heads if "self_attn" in name else None))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "_proj": "",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def _by_pairs(weight: np.ndarray, heads: int | None) -> np.ndarray:
    """llama.cpp turns neighbours (2i, 2i + 1) of queries and keys, transformers the halves (i, i + d / 2)."""
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
