"""TRL's DPOTrainer, RewardTrainer and GRPOTrainer with PEFT."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from bench.lines import read
from bench.shared import DTYPES, NEW, given, reward_of, spare
from bench.sides.trainers import PLAIN, InOrder, turns
from bench.turns import Side


class Comparing(InOrder, DPOTrainer):
    """DPOTrainer on rows that are ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class Judging(InOrder, RewardTrainer):
    """RewardTrainer without a shuffle."""


class Writing(GRPOTrainer):
    """GRPOTrainer on prompts that are ids already; at its first step completions are given and none are sampled."""

    prompts: dict[str, list[int]]
    given: list[list[int]]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompts[name] for name in prompts], None, {}

    def _generate_single_turn(self, *asked: Any, **more: Any) -> Any:
        if not self.given:
            return super()._generate_single_turn(*asked, **more)
        written, self.given = self.given, []
        return written, None


def dpo(folder: Path, batch: int = 4, dtype: str = "float32", checkpointing: bool = True, known: bool = False) -> Side:
    """One update of DPOTrainer. known: the reference is asked of all rows before the first step."""
    how = DPOConfig(
        **PLAIN, output_dir=str(folder / "trl"), per_device_train_batch_size=batch, dataloader_drop_last=True,
        gradient_checkpointing=checkpointing, precompute_ref_log_probs=known, beta=0.1,
    )  # fmt: skip
    start = PeftConfig.from_pretrained(folder / "moved")
    start.inference_mode = False
    trainer = Comparing(
        model=AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype]), args=how, peft_config=start,
        train_dataset=Dataset.from_list(read(folder / "compared.jsonl")), processing_class=_tokenizer(folder),
    )  # fmt: skip
    # An adapter that is on the model when the trainer is made would be its own reference; the base is to be that.
    set_peft_model_state_dict(trainer.model, load_peft_weights(folder / "moved", device="cpu"))
    yield from _told(trainer, batch)


def reward(folder: Path, batch: int = 4, dtype: str = "float32", checkpointing: bool = True) -> Side:
    """One update of RewardTrainer on whole texts, from the adapter and the head that all sides start from."""
    tokenizer = _tokenizer(folder)
    how = RewardConfig(
        **PLAIN, output_dir=str(folder / "trl"), per_device_train_batch_size=batch, dataloader_drop_last=True,
        gradient_checkpointing=checkpointing, pad_token=spare(tokenizer, folder),
    )  # fmt: skip
    rows = [
        {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")}
        for row in read(folder / "compared.jsonl")
    ]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1, dtype=DTYPES[dtype])
    trainer = Judging(
        model=PeftModel.from_pretrained(model, folder / "reward", is_trainable=True), args=how,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    yield from _told(trainer, batch)


def grpo(folder: Path, dtype: str = "float32", checkpointing: bool = True) -> Side:
    """One step of GRPOTrainer: four prompts, four completions each, no penalty (as it comes), the paper's mean."""
    how = GRPOConfig(
        **PLAIN, output_dir=str(folder / "trl"), per_device_train_batch_size=16, num_generations=4,
        max_completion_length=NEW, generation_kwargs={"min_new_tokens": NEW}, beta=0.0, loss_type="grpo",
        gradient_checkpointing=checkpointing, shuffle_dataset=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype])
    prompts = {str(i): row["prompt_ids"] for i, row in enumerate(read(folder / "compared.jsonl"))}
    trainer = Writing(
        model=PeftModel.from_pretrained(model, folder / "moved", is_trainable=True), args=how,
        reward_funcs=lambda completions, **_: [reward_of(text) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": name} for name in prompts]), processing_class=_tokenizer(folder),
    )  # fmt: skip
    trainer.prompts, trainer.given = prompts, given(folder)
    for number, told in enumerate(turns(trainer)):
        if not number:
            ids = sum(map(len, given(folder)))
            yield {"norm": told["grad_norm"], "reward": told["reward"], "ids": ids}
            continue
        yield {"units": 16}


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "base")


def _told(trainer: Any, units: int) -> Side:
    for number, told in enumerate(turns(trainer)):
        yield {"units": units} if number else {"loss": told["loss"], "norm": told["grad_norm"]}


WORKS: dict[str, Any] = {"dpo": dpo, "reward": reward, "grpo": grpo}
