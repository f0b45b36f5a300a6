"""TRL's SFTTrainer with PEFT."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.lines import read
from bench.shared import DTYPES, around
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
) -> Side:
    """One update of SFTTrainer; `checkpointing` is on as it comes. Full: float32 weights, mixed precision."""
    rows = read(folder / "rows.jsonl")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype if adapter else "float32"])
    if adapter:
        model = PeftModel.from_pretrained(model, folder / adapter, is_trainable=True)
    how = SFTConfig(
        **{**PLAIN, "bf16": not adapter and dtype == "bfloat16"}, output_dir=str(folder / "trl"), max_length=None,
        per_device_train_batch_size=batch, completion_only_loss=True, gradient_checkpointing=checkpointing,
        dataloader_drop_last=True, padding_free=padding_free, shuffle_dataset=False,
    )  # fmt: skip
    trainer = Ordered(
        model=model, args=how, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
    )  # fmt: skip
    for number, (told, part) in enumerate(zip(turns(trainer), around(len(rows), batch), strict=False)):
        if not number:
            yield {"loss": told["loss"], "norm": told["grad_norm"]}
            continue
        yield {"units": sum(len(rows[i]["input_ids"]) for i in part)}


WORKS: dict[str, Any] = {"sft": sft}
