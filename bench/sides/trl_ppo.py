"""The last PPOTrainer that TRL had (1.12, trl.experimental.ppo): a value model of its own beside the policy."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from bench.lines import read
from bench.shared import DTYPES, NEW, given, reward_of, spare
from bench.sides.trainers import PLAIN, turns
from bench.turns import Side

PROMPTS = 16


class Rule(nn.Module):
    """A pure function where PPOTrainer wants a model: it asks a trunk, and reads a score at every token."""

    base_model_prefix = "trunk"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def trunk(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """The rewards of the last NEW ids of each row, at all of its places."""
        rows = zip(input_ids[:, -NEW:], attention_mask[:, -NEW:].bool(), strict=True)
        texts = [self.tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]
        found = torch.tensor([reward_of(text) for text in texts], device=input_ids.device)
        return SimpleNamespace(hidden_states=[found[:, None, None].expand(*input_ids.shape, 1)])

    def score(self, hidden: Tensor) -> Tensor:
        """What the trunk said."""
        return hidden


def ppo(folder: Path, dtype: str = "float32", value_trunk: bool = True) -> Side:
    """An iteration of sixteen completions and two epochs. value_trunk: the value model trains whole, as it comes."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    tokenizer.pad_token = spare(tokenizer, folder)
    how = PPOConfig(
        **{**PLAIN, "max_steps": -1}, output_dir=str(folder / "trl"), per_device_train_batch_size=PROMPTS,
        gradient_accumulation_steps=1, total_episodes=PROMPTS << 16, response_length=NEW, temperature=1.0,
        num_ppo_epochs=2, kl_coef=0.05, num_sample_generations=0,
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in read(folder / "compared.jsonl")])
    trainer = PPOTrainer(
        args=how, processing_class=tokenizer, model=_policy(folder, dtype), ref_model=None, train_dataset=rows,
        reward_model=Rule(tokenizer), value_model=_value(folder, dtype, value_trunk), eval_dataset=rows,
    )  # fmt: skip
    trainer.dataloader = DataLoader(rows, PROMPTS, collate_fn=trainer.data_collator)  # it would shuffle
    found = turns(trainer)
    with patch.object(ppo_trainer, "batch_generation", _given(given(folder))):
        told = next(found)
    ids = sum(map(len, given(folder)))
    yield {"reward": told["objective/scores"], "kl": told["objective/kl"], "ids": ids}
    for _ in found:
        yield {"units": PROMPTS}


def _policy(folder: Path, dtype: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype])
    return PeftModel.from_pretrained(model, folder / "moved", is_trainable=True)


def _value(folder: Path, dtype: str, trunk: bool) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1, dtype=DTYPES[dtype])
    nn.init.zeros_(model.score.weight)
    model.model.requires_grad_(trunk)
    return model


def _given(written: list[list[int]]) -> Any:
    """What stands for sampling once: these completions, and what the policy thinks of them."""

    def answered(model: Any, queries: Tensor, _size: int, pad: int, _how: Any) -> tuple[Tensor, Tensor]:
        answers = torch.tensor([ids + [pad] * (NEW - len(ids)) for ids in written], device=queries.device)
        whole = torch.cat([queries, answers], 1)
        return whole, ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]

    return answered


WORKS: Mapping[str, Any] = {"ppo": ppo}
