"""Trainers own their loops, so they run in a thread that waits behind every step until it is told to go on."""

from collections.abc import Iterator, Mapping
from threading import Semaphore, Thread
from typing import Any

import torch
from transformers import TrainerCallback

from bench.shared import DEVICE

PLAIN: Mapping[str, Any] = {
    "max_steps": 1 << 16, "learning_rate": 2e-4, "lr_scheduler_type": "constant", "weight_decay": 0.0, "seed": 0,
    "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": DEVICE == "cpu", "bf16": False,
}  # fmt: skip


class InOrder:
    """Rows in the order that they are given in, as all sides see them."""

    train_dataset: Any

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Waiting(TrainerCallback):
    """Stops behind every log; there is one behind every step."""

    def __init__(self) -> None:
        self.go, self.done, self.told = Semaphore(0), Semaphore(0), dict[str, float]()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.told = dict(logs or {})
        self.done.release()
        self.go.acquire()


def turns(trainer: Any) -> Iterator[Mapping[str, float]]:
    """What the trainer logs of each step. It works while the next one is asked for, and at no other time."""
    waiting = Waiting()
    trainer.add_callback(waiting)
    thread = Thread(target=trainer.train, daemon=True)
    thread.start()
    while True:
        while not waiting.done.acquire(timeout=1.0):
            if not thread.is_alive():
                raise RuntimeError("The trainer ended by itself.")
        yield waiting.told
        waiting.go.release()
