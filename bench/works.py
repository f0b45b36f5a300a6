"""The rows of the benchmark: what is done, who does it, and how near the sides must be before their times count."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.timing import PARITY

OURS = "ours"
TRL = {OURS: OURS, "trl-tuned": "trl-tuned"}
LLAMA = ("float32", "float16")  # of its weights; of the second the ids are not always ours


@dataclass(frozen=True)
class Peer:
    """A side: a function in bench/sides, the environment it runs in ("": the project's own), and its options.

    only: the kind of device that it is for, "cuda" or "cpu"; "" for any.
    """

    module: str
    function: str
    environment: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    only: str = ""


@dataclass(frozen=True)
class Work:
    """One row. sides: ours and its peers by name, in float32. parity: what is compared, and how far it may be apart.

    quick: the sides that are timed in the precision that this machine multiplies best, by name, each with the one of `sides`
    that stands for it at the gate. The others are timed in float32, as they come. on_cuda: more of them there.
    apart: ours is set up beside each peer anew, because together they do not fit into memory.
    """

    about: str
    unit: str
    sides: Mapping[str, Peer]
    parity: Mapping[str, float] = field(default_factory=dict)
    reads: str = (
        "rows.jsonl"  # of the material; where it is empty, because its data are not at hand, the work is left out
    )
    quick: Mapping[str, str] = field(default_factory=dict)
    on_cuda: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False

    def beside(self, who: str) -> "Work":
        """Ours and that peer alone, in all precisions."""
        quick = {name: like for name, like in self.quick.items() if like in (OURS, who)}
        return replace(self, sides={OURS: self.sides[OURS], who: self.sides[who]}, quick=quick, apart=False)


def _sft(way: str, adapter: str, more: Mapping[str, Mapping[str, Any]] | None = None) -> Work:
    """more: tuned TRL with more options, by name, on CUDA."""
    both: Mapping[str, Any] = {"adapter": adapter}
    tuned: Mapping[str, Any] = {**both, "checkpointing": False}
    return Work(
        f"{way} fine-tuning on articles and summaries, four rows an update, AdamW",
        "tokens",
        {
            OURS: Peer("ours", "sft", options=both),
            "trl-default": Peer("trl", "sft", "trl", both),
            "trl-tuned": Peer("trl", "sft", "trl", tuned),
            **{who: Peer("trl", "sft", "trl", {**tuned, **given}, "cuda") for who, given in (more or {}).items()},
        },
        {"loss": PARITY, "norm": PARITY},
        quick={**TRL, **{who: who for who in more or {}}},
    )


def _qlora() -> Work:
    both: Mapping[str, Any] = {"adapter": "packed"}
    theirs = {**both, "packed": True}
    return Work(
        "QLoRA, of rank 16 on all linear layers of a base in NF4, on articles and summaries, four rows an update, AdamW; TRL's "
        "base is bitsandbytes'",
        "tokens",
        {
            OURS: Peer("ours", "sft", options=both, only="cuda"),
            "trl-default": Peer("trl", "sft", "trl_qlora", theirs, "cuda"),
            "trl-tuned": Peer("trl", "sft", "trl_qlora", {**theirs, "checkpointing": False}, "cuda"),
        },
        {"loss": PARITY, "norm": PARITY},
        quick=TRL,
    )


def _decode(batch: int, adapter: str = "") -> Work:
    same: Mapping[str, Any] = {"batch": batch, **({"adapter": adapter} if adapter else {})}
    both = {OURS: OURS, "transformers-tuned": "transformers"}
    alone = {f"llama.cpp-{dtype}": Peer("llama", "decode", "llama", {**same, "dtype": dtype}, "cpu") for dtype in LLAMA}
    return Work(
        f"greedy decoding of 64 tokens after {batch} prompts of up to 64{', with a LoRA attached' if adapter else ''}",
        "tokens",
        {
            OURS: Peer("ours", "decode", options=same),
            "transformers": Peer("generate", "decode", options=same),
            **(alone if batch == 1 and not adapter else {}),
        },
        {"ids": 0.0},
        quick={**both, "llama.cpp-tuned": "llama.cpp-float32"} if batch == 1 and not adapter else both,
    )


def _asked(what: str, pairs: str, endings: int) -> Work:
    same: Mapping[str, Any] = {"pairs": pairs, "endings": endings}
    return Work(
        f"log-likelihoods of {what}",
        "endings",
        {
            OURS: Peer("ours", "choices", options=same),
            "lm-eval-default": Peer("lm_eval", "choices", options=same),
            "lm-eval-tuned": Peer("lm_eval", "choices", options={**same, "batch": 16}),
        },
        {"best": 0.0, "total": PARITY},
        pairs,
        {OURS: OURS, "lm-eval-tuned": "lm-eval-tuned"},
    )


def _aligned(
    about: str,
    unit: str,
    name: str,
    tuned: Mapping[str, Any],
    parity: Mapping[str, float],
    both: Mapping[str, Any] | None = None,
    apart: bool = False,
) -> Work:
    """A row whose peer is TRL's trainer of that name, as it comes and as an expert has it. both: options of all sides."""
    same: Mapping[str, Any] = both or {}
    module = "trl_ppo" if name == "ppo" else "trl_alignment"
    environment = "trl_ppo" if name == "ppo" else "trl"
    return Work(
        about,
        unit,
        {
            OURS: Peer("ours_alignment", name, options=same),
            "trl-default": Peer(module, name, environment, same),
            "trl-tuned": Peer(module, name, environment, {**same, **tuned}),
        },
        parity,
        quick=TRL,
        apart=apart,
    )


WORKS: dict[str, Work] = {
    "sft-lora": _sft("LoRA", "adapter", {"trl-compiled": {"compiled": True}}),
    "sft-all-linear": _sft("LoRA, of rank 16 on all linear layers:", "linear"),
    "sft-full": _sft("full", ""),
    "qlora": _qlora(),
    "dpo": _aligned(
        "DPO with LoRA on articles and two summaries, four pairs an update, the base as the reference, which every side asks "
        "within the update",
        "pairs",
        "dpo",
        {"checkpointing": False},
        {"loss": PARITY, "norm": PARITY},
    ),
    "dpo-known": _aligned(
        "the same; every side has asked the reference of all rows before the clock starts",
        "pairs",
        "dpo",
        {"checkpointing": False},
        {"loss": PARITY, "norm": PARITY},
        {"known": True},
    ),
    "reward": _aligned(
        "a reward model with LoRA on the same pairs, four an update, from the same starting head",
        "pairs",
        "reward",
        {"checkpointing": False},
        {"loss": PARITY, "norm": PARITY},
    ),
    "grpo": _aligned(
        "a GRPO step: 16 completions of 32 tokens, four a prompt, LoRA, no penalty, a reward that counts words. Each side "
        "samples its own; compared are the gradient and the mean reward of 16 completions that both are given first (their "
        "loss is 0)",
        "completions",
        "grpo",
        {"checkpointing": False},
        {"norm": PARITY, "reward": PARITY, "ids": 0.0},
    ),
    "ppo": _aligned(
        "a PPO iteration: 16 completions of 32 tokens, learned from twice, LoRA, a reward that counts words. Our value head "
        "is on the policy's trunk, TRL's value model has its own (tuned: frozen), so the updates differ; compared are the "
        "mean reward and the distance from the reference of 16 completions that both are given first",
        "completions",
        "ppo",
        {"value_trunk": False},
        {"reward": PARITY, "kl": PARITY, "ids": 0.0},
        apart=True,
    ),
    "decode-1": _decode(1),
    "decode-8": _decode(8),
    "decode-32": _decode(32),
    "decode-1-lora": _decode(1, "moved"),
    "decode-8-lora": _decode(8, "moved"),
    "decode-32-lora": _decode(32, "moved"),
    "choices": _asked("the four endings of 100 HellaSwag rows", "pairs.jsonl", 4),
    "few-shot": _asked("two labels of 40 sentences, each after the same eight worked examples", "shots.jsonl", 2),
    "novelty": Work(
        "which of 600 instructions and sentences are new, by ROUGE-L below 0.7 with all that were kept; tuned, rouge_score "
        "cuts each into words once",
        "texts",
        {
            OURS: Peer("novelty", "ours"),
            "rouge-score-default": Peer("novelty", "rouge_score"),
            "rouge-score-tuned": Peer("novelty", "rouge_score", options={"words_once": True}),
        },
        {"kept": 0.0},
        "instructions.jsonl",
    ),
    "mixed-adapters": Work(
        "log-probabilities of 16 summaries after their articles in one batch, each for one of four LoRAs",
        "tokens",
        {OURS: Peer("mixed", "ours"), "peft": Peer("mixed", "peft")},
        {"total": PARITY},
        on_cuda={OURS: OURS, "peft-tuned": "peft"},
    ),
    "sweep": Work(
        "an update of eight LoRAs of rank 1 to 128, each on the same 32 tokens, in one pass or one after the other",
        "tokens",
        {
            OURS: Peer("ours", "sweep"),
            "one-after-the-other": Peer("ours", "sweep", options={"together": False}),
        },
        {f"loss of r{1 << i}": PARITY for i in range(8)},
        on_cuda={OURS: OURS, "one-after-the-other": "one-after-the-other"},
    ),
    "head-epoch": Work(
        "a later epoch of training a classifier on a frozen trunk, against running the trunk at every epoch",
        "rows",
        {OURS: Peer("ours", "head"), "trunk-every-epoch": Peer("ours", "head", options={"cached": False})},
        {"loss": PARITY},
    ),
}
