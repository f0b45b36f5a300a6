"""Rows of our own in the hub's forms of eight benchmarks, a small random model, and lm-evaluation-harness asked about both."""

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from acclimate.evaluation.continuations import Continuing
from acclimate.tokens.codec import codec
from tests import spelling

WORDS = [word for text in spelling.CORPUS[:3] for word in text.replace(":", "").split()]
TASKS = {  # ours: (theirs, its files by split)
    "mmlu": ("mmlu_anatomy", {"test": "mmlu/test", "dev": "mmlu/dev"}),
    "hellaswag": ("hellaswag", {"validation": "hellaswag/dev", "train": "hellaswag/dev"}),
    "arc_easy": ("arc_easy", {"test": "arc_easy/test", "train": "arc_easy/test", "validation": "arc_easy/test"}),
    "arc_challenge": (
        "arc_challenge",
        {"test": "arc_challenge/test", "train": "arc_challenge/test", "validation": "arc_challenge/test"},
    ),
    "boolq": ("boolq", {"validation": "boolq/dev", "train": "boolq/dev"}),
    "truthfulqa_mc1": ("truthfulqa_mc1", {"validation": "truthfulqa/mc"}),
    "truthfulqa_mc2": ("truthfulqa_mc2", {"validation": "truthfulqa/mc"}),
    "gsm8k": ("gsm8k", {"test": "gsm8k/test", "train": "gsm8k/train"}),
    "wic": ("wic", {"validation": "wic/dev", "train": "wic/dev"}),
    "copa": ("copa", {"validation": "copa/dev", "train": "copa/dev"}),
    "wsc": ("wsc", {"validation": "wsc/dev", "train": "wsc/dev"}),
}
FOLDERS = (
    "mmlu/default",
    "hellaswag",
    "arc",
    "super_glue/boolq",
    "super_glue/wic",
    "super_glue/copa",
    "super_glue/wsc",
    "truthfulqa",
    "gsm8k",
)


def network(tokenizer: Any, seed: int = 0) -> nn.Module:
    """A Llama of some 50k weights that reads 4,096 ids, in float64, with digits likelier than letters."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=4096, num_key_value_heads=2, **sizes, **special
    )
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
        model.lm_head.weight[digits] *= 3
    return model


@cache
def asked(bos: bool = False, budget: int = 8192) -> Continuing:
    """The model with its codec."""
    tokenizer = spelling.byte_level(bos=bos, template=None)
    return Continuing(network(tokenizer), codec(tokenizer), 4096, budget)


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def data(folder: Path, count: int = 6) -> Path:
    """Rows of every task, in the forms that the hub has them in; gsm8k's answers are 1, 2, 3, …"""
    draw = Random(0)

    def text(least: int = 2, most: int = 8) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def choices(n: int = 4) -> list[str]:
        return [f"{text(1, 6)} {i}" for i in range(n)]

    def quiz() -> dict[str, Any]:
        return {"question": f" {text()}? ", "subject": "anatomy", "choices": choices(), "answer": draw.randrange(4)}

    write(folder, "mmlu/test", [quiz() for _ in range(count)])
    write(folder, "mmlu/dev", [quiz() for _ in range(5)])
    scenes = [
        {
            "activity_label": text(1, 3),
            "ctx_a": f"{text()} [header] {text()} [title] {text()}.",
            "ctx_b": draw.choice(["", f"{text(1, 2)} Bob"]),
            "endings": [f"{one} [substeps] {text()}.  {text()}" for one in choices()],
            "label": str(draw.randrange(4)),
        }
        for _ in range(count)
    ]
    write(folder, "hellaswag/dev", scenes)
    for name, labels in (("arc_easy", "ABCD"), ("arc_challenge", "1234")):
        rows = [
            {"question": f"{text()}?", "choices": {"text": choices(), "label": list(labels)}, "answerKey": key}
            for key in draw.choices(labels, k=count)
        ]
        write(folder, f"{name}/test", rows)
    yes = [{"passage": text(9, 20), "question": text(), "label": draw.randrange(2)} for _ in range(count)]
    write(folder, "boolq/dev", yes)
    targets = [
        {
            "question": f"{text()}?",
            "mc1_targets": {"choices": choices(5), "labels": [1, 0, 0, 0, 0]},
            "mc2_targets": {"choices": choices(6), "labels": [1, 1, 1, 0, 0, 0]},
        }
        for _ in range(count)
    ]
    write(folder, "truthfulqa/mc", targets)
    for name, n in (("train", 9), ("test", count)):
        sums = [{"question": f"{text()} {i}?", "answer": f"{text()} <<{i}+1>>\n#### {i}"} for i in range(n)]
        write(folder, f"gsm8k/{name}", sums)
    write(folder, "wic/dev", [meaning(text(3, 6), text(3, 6), draw) for _ in range(count)])
    causes = [
        {
            "premise": f"{text().capitalize()}.",
            "question": draw.choice(["cause", "effect"]),
            "choice1": f"The {text()}.",
            "choice2": f"The {text()}.",
            "label": draw.randrange(2),
        }
        for _ in range(count)
    ]
    write(folder, "copa/dev", causes)
    write(folder, "wsc/dev", [pronoun(text(6, 12), draw) for _ in range(count)])
    return folder


def pronoun(text: str, draw: Random) -> dict[str, Any]:
    """A row of WSC whose pronoun is the third word, with punctuation set apart as its files have it."""
    words = [*text.split(), ".", '" no "', "did n't"]
    spans = {"span1_index": 0, "span1_text": words[0], "span2_index": 2, "span2_text": words[2]}
    return {"text": " ".join(words), **spans, "label": draw.randrange(2)}


def meaning(first: str, second: str, draw: Random) -> dict[str, Any]:
    """A row of WiC about the first word, which ends where the space is."""
    end = first.index(" ")
    row = {"word": first[:end], "sentence1": first, "sentence2": second, "start1": 0, "end1": end}
    return {**row, "label": draw.randrange(2)}


@cache
def manager() -> Any:
    """lm-evaluation-harness's index of a few of its folders; that of all takes a quarter of a minute."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(include_defaults=False, include_path=[tasks / folder for folder in FOLDERS])


def their(name: str, folder: Path) -> Any:
    """Its own task, but for where the rows are."""
    theirs, splits = TASKS[name]
    files = {split: str(folder / f"{stem}.jsonl") for split, stem in splits.items()}
    given = {"data_files": files, "cache_dir": str(folder / "cache")}
    over = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": given}
    index = manager()
    return index._factory.build(index.task_index[theirs], overrides=over, registry=index.task_index)
