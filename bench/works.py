"""The rows of the benchmark: what is done, who does it, and how near the sides must be before their times count."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.timing import PARITY

OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """A side: a function in bench/sides, the environment it runs in ("": the project's own), and its options."""

    module: str
    function: str
    environment: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One row. sides: ours and its peers by name. parity: what is compared, and how far it may be apart."""

    about: str
    unit: str
    sides: Mapping[str, Peer]
    parity: Mapping[str, float] = field(default_factory=dict)


def _sft(adapter: bool) -> Work:
    both: Mapping[str, Any] = {"adapter": adapter}
    return Work(
        f"{'LoRA' if adapter else 'full'} fine-tuning on articles and summaries, four rows an update, AdamW",
        "tokens",
        {
            OURS: Peer("ours", "sft", options=both),
            "trl-default": Peer("trl", "sft", "trl", both),
            "trl-tuned": Peer("trl", "sft", "trl", {**both, "checkpointing": False}),
        },
        {"loss": PARITY, "norm": PARITY},
    )


def _decode(batch: int) -> Work:
    same = {"batch": batch}
    return Work(
        f"greedy decoding of 64 tokens after {batch} prompts of up to 64",
        "tokens",
        {OURS: Peer("ours", "decode", options=same), "transformers": Peer("generate", "decode", options=same)},
        {"ids": 0.0},
    )


WORKS: dict[str, Work] = {
    "sft-lora": _sft(True),
    "sft-full": _sft(False),
    "decode-1": _decode(1),
    "decode-8": _decode(8),
    "decode-32": _decode(32),
    "choices": Work(
        "log-likelihoods of the four endings of 100 HellaSwag rows",
        "endings",
        {
            OURS: Peer("ours", "choices"),
            "lm-eval-default": Peer("lm_eval", "choices"),
            "lm-eval-tuned": Peer("lm_eval", "choices", options={"batch": 16}),
        },
        {"best": 0.0, "total": PARITY},
    ),
    "head-epoch": Work(
        "a later epoch of training a classifier on a frozen trunk, against running the trunk at every epoch",
        "rows",
        {OURS: Peer("ours", "head"), "trunk-every-epoch": Peer("ours", "head", options={"cached": False})},
        {"loss": PARITY},
    ),
}
