"""TRL's SFTTrainer with PEFT, and bitsandbytes where the base is held in four bits."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from bench.lines import read
from bench.shared import DEVICE, DTYPES, around
from bench.sides.trainers import PLAIN, InOrder, turns
from bench.turns import Side


class Ordered(InOrder, SFTTrainer):
    """SFTTrainer without a shuffle."""


def sft(
    folder: Path,
    adapter: str = "adapter",
    batch: int = 4,
    dtype: str = "float32",
    checkpointing: bool = True,
    padding_free: bool = False,
    compiled: bool = False,
    packed: bool = False,
) -> Side:
    """One update of SFTTrainer; `checkpointing` is on as it comes. Full: float32 weights, mixed precision. packed: QLoRA."""
    rows = read(folder / "rows.jsonl")
    given: dict[str, Any] = {"dtype": DTYPES[dtype if adapter else "float32"]}
    if packed:
        given |= {"quantization_config": _four_bits(given["dtype"]), "device_map": {"": DEVICE}}
    model = AutoModelForCausalLM.from_pretrained(folder / "base", **given)
    if adapter:
        model = PeftModel.from_pretrained(model, folder / adapter, is_trainable=True)
    how = SFTConfig(
        **{**PLAIN, "bf16": not adapter and dtype == "bfloat16"}, output_dir=str(folder / "trl"), max_length=None,
        per_device_train_batch_size=batch, completion_only_loss=True, gradient_checkpointing=checkpointing,
        dataloader_drop_last=True, padding_free=padding_free, shuffle_dataset=False,
        torch_compile=compiled,
    )  # fmt: skip
    trainer = Ordered(
        model=model, args=how, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
    )  # fmt: skip
    if packed and dtype == "float32":  # the trainer rounds adapters of such a base to bfloat16; the gate is in float32
        for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
            parameter.data = parameter.data.float()
        set_peft_model_state_dict(trainer.model, load_peft_weights(folder / adapter))
    for number, (told, part) in enumerate(zip(turns(trainer), around(len(rows), batch), strict=False)):
        if not number:
            yield {"loss": told["loss"], "norm": told["grad_norm"]}
            continue
        yield {"units": sum(len(rows[i]["input_ids"]) for i in part)}


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4; its constants stay in float32, as they come."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


WORKS: dict[str, Any] = {"sft": sft}
