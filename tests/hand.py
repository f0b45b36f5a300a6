"""Slow, and sure: one token at a time from the chain rule; GPT-2 one position, one head and one key at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def gpt2(
    model: Any,
    vectors: Tensor,
    *,
    start: int = 0,
    keys_values: Sequence[tuple[Tensor, Tensor]] = (),
    after: Sequence[Mapping[int, Tensor]] = (),
) -> Tensor:
    """Logits (time, vocab) of tokens with these vectors (time, d), the first of which stands at position `start`.

    keys_values: (n, d) each, of every layer, which all positions see besides. after: what replaces, by place, the
    output of a layer.
    """
    trunk, heads = model.transformer, model.config.n_head
    size = vectors.shape[1] // heads
    h = [vectors[t] + trunk.wpe.weight[start + t] for t in range(len(vectors))]
    for number, block in enumerate(trunk.h):
        made = [block.ln_1(x) @ block.attn.c_attn.weight + block.attn.c_attn.bias for x in h]
        queries, keys, values = ([y.split(heads * size)[part] for y in made] for part in range(3))
        ahead_k, ahead_v = keys_values[number] if keys_values else ((), ())
        for t in range(len(h)):
            seen_k, seen_v = [*ahead_k, *keys[: t + 1]], [*ahead_v, *values[: t + 1]]
            mixed = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = [float(queries[t][part] @ k[part]) / math.sqrt(size) for k in seen_k]
                weights = [math.exp(s - max(scores)) for s in scores]
                mixed.append(sum(w / sum(weights) * v[part] for w, v in zip(weights, seen_v, strict=True)))
            h[t] = h[t] + torch.cat(mixed) @ block.attn.c_proj.weight + block.attn.c_proj.bias
        h = [x + block.mlp(block.ln_2(x)) for x in h]
        for place, row in after[number].items() if after else ():
            h[place] = row
    return torch.stack([model.lm_head(trunk.ln_f(x)) for x in h])


def slow_logprobs(model, row):
    """One row, one token at a time, unpadded, without cache: straight from the chain rule."""
    found = []
    for t, counts in enumerate(row.scored):
        if not counts:
            continue
        with torch.no_grad():
            if row.source:
                start = [model.config.decoder_start_token_id, *row.ids[:t]]
                logits = model(input_ids=torch.tensor([row.source]), decoder_input_ids=torch.tensor([start])).logits
            else:
                logits = model(input_ids=torch.tensor([row.ids[:t]])).logits
        found.append(torch.log_softmax(logits[0, -1], -1)[row.ids[t]])
    return torch.stack(found)
