"""Reports, logs and predictions of imaginary runs: every part that a page shows, and the numbers known."""

import math
import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

SIGNS = ("negative", "positive")
GOOD = (
    "Works as described and the battery lasts all week.",
    "Best camera I have owned; the colours are wonderful.",
    "My kids love it, and it survived two falls already.",
    "Easy to set up, quiet, and it never drops the signal.",
)
POOR = (
    "Stopped charging after nine days and support never answered.",
    "The lens cap does not fit and the menu is a maze.",
    "Returned it: the screen flickers whenever it is warm.",
    "Not bad for the money, people said. They were wrong.",
)
RECIPE = {
    "model": "smollm2-135m-instruct",
    "data": {"train": "reviews", "test": "reviews"},
    "task": {"template": "Classify this review: {{ text }}\nSentiment:", "labels": list(SIGNS)},
    "method": {"name": "lora", "rank": 8},
    "training": {"steps": 40, "tokens_per_step": 2048, "rate": 5.0e-4, "seed": 0},
}
TRAINING = {
    "steps": 40,
    "tokens": 40960,
    "scored_tokens": 960,
    "seconds": 95.0,
    "tokens_per_second": 431.0,
    "peak_memory_bytes": 1_500_000_000,
}
DROPPED = {"label is missing": 3, "prompt is empty": 12}
DATA = {
    "train": {"name": "reviews", "rows": 2847, "dropped": DROPPED, "sha256": "5d" * 32},
    "test": {"name": "reviews", "rows": 312, "dropped": {}, "sha256": "b9" * 32},
}
RENDERING = {
    "tokens": 40960,
    "scored_tokens": 960,
    "truncated": 2,
    "sample": [
        ["<|im_start|>user\nClassify this review: " + GOOD[0], False],
        ["\nSentiment (negative or positive):<|im_end|>\n<|im_start|>assistant\n", False],
        ["positive<|im_end|>", True],
        ["\n", False],
    ],
}
PROVENANCE = {
    "seed": 0,
    "data": {"train": "sha256:" + "5d" * 32},
    "base": "sha256:" + "bc" * 32,
    "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "acclimate": "0.1.0"},
}


def estimate(value: float, low: float, high: float, n: int | None = None, p: float | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"value": value, "low": low, "high": high}
    return made | ({} if n is None else {"n": n}) | ({} if p is None else {"p": p})


Triple = Sequence[float]


def scored(name: str, base: Triple, result: Triple, gap: Triple, p: float, n: int) -> dict[str, Any]:
    """The three score parts of a report for one metric; each of base, result, gap is (value, low, high)."""
    return {
        "base": {"scores": {name: estimate(*base, n=n)}},
        "result": {"scores": {name: estimate(*result, n=n)}},
        "difference": {name: estimate(*gap, p=p)},
    }


def common() -> dict[str, Any]:
    """Everything in a report but its scores."""
    made = {
        "model": "smollm2-135m-instruct",
        "method": "lora",
        "objective": "lm",
        "forgetting": {
            "perplexity_base": 21.3,
            "perplexity_result": 21.9,
            "instructions_base": estimate(0.43, 0.28, 0.58, n=40),
            "instructions_result": estimate(0.40, 0.26, 0.55, n=40),
            "answers": [{"prompt": "My cat is called Charlie. Its name?", "base": "Charlie <b>", "result": "positive"}],
        },
        "trainable_parameters": 460800,
        "total_parameters": 134975808,
        "training": TRAINING,
        "recipe": RECIPE,
        "data": DATA,
        "rendering": RENDERING,
        "machine": {"cores": 2, "memory_bytes": 24_000_000_000, "device": "cpu"},
        "artifact": {"bytes": 1_850_000, "path": "adapter", "format": "peft"},
        "warnings": [],
        "provenance": PROVENANCE,
    }
    return deepcopy(made)


Run = tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]  # report, log, predictions


def losses(steps: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    chance, rows = random.Random(seed), []
    for step in range(1, steps + 1):
        loss = 0.25 + 2.1 * math.exp(-6 * step / steps) + chance.gauss(0, 0.06)
        rate = 5e-4 * min(1.0, 10 * step / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows.append({"step": step, "loss": abs(loss), "norm": 0.5, "rate": rate, "tokens": 1024, "scored_tokens": 24})
        if step % max(1, steps // 5) == 0:
            rows.append({"step": step, "dev": {"loss": 0.3 + 2.2 * math.exp(-6 * step / steps)}})
    return rows


def classification(
    labels: Sequence[str] = SIGNS, n: int = 312, before: float = 0.6, after: float = 0.88, seed: int = 0
) -> Run:
    """`n` examples of which a share `before` and then `after` are answered rightly; the interval is a normal one."""
    chance = random.Random(seed)
    rows = [_labelled(index, labels, before, after, chance) for index in range(n)]
    hits = [[float(row[side]["text"] == row["target"]) for row in rows] for side in ("base", "result")]
    gaps = [b - a for a, b in zip(*hits)]
    means = [sum(each) / n for each in (*hits, gaps)]
    spreads = [1.96 * math.sqrt(sum((x - mean) ** 2 for x in each) / n / n) for each, mean in zip((*hits, gaps), means)]
    parts = [(mean, mean - spread, mean + spread) for mean, spread in zip(means, spreads)]
    clear = parts[2][1] > 0 or parts[2][2] < 0
    report = common() | scored("balanced_accuracy", *parts, p=0.0001 if clear else 0.61, n=n)
    report["task"] = {"labels": list(labels), "metrics": ["balanced_accuracy"]}
    report["per_label"] = {label: _recall(label, rows) for label in labels}
    return report, losses(), rows


def _recall(label: str, rows: Sequence[Any]) -> dict[str, Any]:
    own = [row for row in rows if row["target"] == label]
    share = {side: sum(row[side]["text"] == label for row in own) / max(1, len(own)) for side in ("base", "result")}
    return {"n": len(own), **share}


def _labelled(index: int, labels: Sequence[str], before: float, after: float, chance: random.Random) -> dict[str, Any]:
    target = labels[index % len(labels)]
    text = chance.choice(GOOD if index % len(labels) else POOR)
    sides = {}
    for side, share in (("base", before), ("result", after)):
        wrong = labels[(index + 1 + chance.randrange(len(labels) - 1)) % len(labels)]
        answer = target if chance.random() < share else wrong
        trust = chance.uniform(0.51, 0.99)
        rest = (1 - trust) / (len(labels) - 1)
        scores = {label: math.log(trust if label == answer else rest) - 1.5 for label in labels}
        sides[side] = {"text": answer, "scores": scores, "finish": ""}
    prompt = f"Classify this review: {text}\nSentiment (negative or positive):"
    rows = {side: [float(index % len(labels)), float(labels.index(sides[side]["text"]))] for side in sides}
    return {
        "row": index,
        "where": f"reviews.jsonl:{index + 1}",
        "prompt": prompt,
        "truncated": 0,
        "target": target,
        "references": [target],
        **sides,
        "metrics": {"balanced_accuracy": rows},
    }


ROUGE = {  # (base, result, difference), each (value, low, high), and p
    "rouge1": ((0.213, 0.197, 0.229), (0.347, 0.328, 0.366), (0.134, 0.112, 0.157), 0.0001),
    "rouge2": ((0.064, 0.053, 0.076), (0.071, 0.059, 0.084), (0.007, -0.004, 0.018), 0.22),
    "rougeL": ((0.165, 0.152, 0.178), (0.271, 0.254, 0.289), (0.106, 0.087, 0.125), 0.0001),
}
TALK = "\n".join(f"#Person{1 + turn % 2}#: Could you tell the team about plan {turn}?" for turn in range(12))


def summary(n: int = 120, seed: int = 1) -> Run:
    """Dialogues summarised: three ROUGE, of which the second does not clearly move, and general text suffers."""
    report = common() | {
        "base": {"scores": {name: estimate(*parts[0], n=n) for name, parts in ROUGE.items()}},
        "result": {"scores": {name: estimate(*parts[1], n=n) for name, parts in ROUGE.items()}},
        "difference": {name: estimate(*parts[2], p=parts[3]) for name, parts in ROUGE.items()},
        "task": {"labels": None, "metrics": list(ROUGE)},
        "warnings": [
            "14 prompts of the test set were truncated to 2,048 tokens; their scores may be low for that reason."
        ],
    }
    report["forgetting"]["perplexity_result"] = 24.8
    chance = random.Random(seed)
    return report, losses(1200), [_summarised(index, chance) for index in range(n)]


def _summarised(index: int, chance: random.Random) -> dict[str, Any]:
    def near(value: float, spread: float) -> list[float]:
        return [min(1.0, max(0.0, chance.gauss(value, spread)))]

    long = "The dialogue is a conversation between two people. Person 1 asks a question and Person 2 asks a question. "
    return {
        "row": index,
        "where": f"test.jsonl:{index + 1}",
        "prompt": f"Summarise this dialogue.\n\n{TALK}\n\nSummary:",
        "truncated": 312 if index % 9 == 0 else 0,
        "target": "Person 1 asks Person 2 to tell the team about the plans.",
        "references": [
            "Person 1 asks Person 2 to tell the team about the plans.",
            "Two people agree on who hears about twelve plans.",
            "#Person1# wants the client informed.",
        ],
        "base": {"text": long * 2, "scores": {}, "finish": "length"},
        "result": {"text": "#Person1# asks #Person2# to inform the team.", "scores": {}, "finish": "stop"},
        "metrics": {
            name: {"base": near(base[0], 0.08), "result": near(result[0], 0.1)}
            for name, (base, result, _, _) in ROUGE.items()
        },
    }
