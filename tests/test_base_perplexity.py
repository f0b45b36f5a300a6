"""Perplexity of completions under the reference: that of a copy of the base, whatever trained since."""

import copy
import math

import pytest
import torch

from acclimate.evaluation.rollouts import Rewarded, UnderBase
from acclimate.methods import Full, LoRA
from acclimate.methods.delta import adapt, snapshot
from acclimate.rewards.rollout import joined, sampled
from tests import tiny
from tests.hand import slow_logprobs
from tests.test_ppo import HOW, PROMPTS, READER, length, moved


@pytest.mark.parametrize("method", [LoRA(rank=4), Full(), None], ids=["lora", "full", "base"])
def test_it_is_what_the_base_says(method):
    torch.manual_seed(0)
    bare = tiny.llama(vocab=len(READER.tokenizer)).double().requires_grad_(False).eval()
    model, originals = copy.deepcopy(bare), None
    if method is not None:
        model = adapt(model, method, seed=0)
        originals = snapshot(model)
        model = moved(model).eval()
    asked = Rewarded(model, PROMPTS, length, HOW, READER, 3, originals, under_base=True)
    outputs = asked(PROMPTS)
    written = sampled(model, PROMPTS, HOW, READER, 3)
    told = [slow_logprobs(bare, joined(p.row, w)) for p, w in zip(PROMPTS, written, strict=True)]
    found = UnderBase().combine([UnderBase().row(output, None) for output in outputs])
    assert found == pytest.approx(math.exp(-float(torch.cat(told).mean())), rel=1e-9)
