"""TRL's SFTTrainer with PEFT. It owns its loop, so it runs in a thread that waits at every step until it is told to go."""

from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from bench.lines import read
from bench.turns import Side

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Waiting(TrainerCallback):
    """Stops before every step."""

    def __init__(self) -> None:
        self.go, self.done, self.told = Semaphore(0), Semaphore(0), dict[str, float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.go.acquire()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.told = {**self.told, **(logs or {})}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.done.release()


def sft(
    folder: Path,
    adapter: bool = True,
    batch: int = 4,
    dtype: str = "float32",
    checkpointing: bool = True,
    padding_free: bool = False,
) -> Side:
    """One update of SFTTrainer; `checkpointing` is on as it comes."""
    rows = read(folder / "rows.jsonl")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPES[dtype])
    if adapter:
        model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    given = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=batch, learning_rate=2e-4, max_steps=1 << 16,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], max_length=None,
        completion_only_loss=True, gradient_checkpointing=checkpointing, bf16=False, use_cpu=True, seed=0,
        dataloader_drop_last=True, weight_decay=0.0, padding_free=padding_free, shuffle_dataset=False,
    )  # fmt: skip
    waiting = Waiting()
    trainer = InOrder(
        model=model, args=given, train_dataset=Dataset.from_list(rows), callbacks=[waiting],
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
    )  # fmt: skip
    Thread(target=trainer.train, daemon=True).start()
    for number in range(1 << 16):
        waiting.go.release()
        waiting.done.acquire()
        part = [rows[(number * batch + i) % len(rows)] for i in range(batch)]
        if not number:
            while "grad_norm" not in waiting.told:  # it logs after the step has ended
                pass
            yield {"loss": waiting.told["loss"], "norm": waiting.told["grad_norm"]}
            continue
        yield {"units": sum(len(row["input_ids"]) for row in part)}


class InOrder(SFTTrainer):
    """Rows in the order that they are given in, as all sides see them."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


WORKS: dict[str, Any] = {"sft": sft}
