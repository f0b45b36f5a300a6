"""evaluate --toxicity."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acclimate.cli.voice import voice
from acclimate.data.examples import Example
from acclimate.errors import UsageError
from acclimate.evaluation.harms import NUCLEUS, WRITTEN, samples
from acclimate.evaluation.predictor import Generate
from acclimate.generation.samplers import Sample
from acclimate.metrics.diversity import Distinct2, Distinct3, distinct
from acclimate.metrics.intervals import score
from acclimate.metrics.metric import Metric
from acclimate.metrics.toxicity import EverToxic, ExpectedMaximum, toxicity
from acclimate.run.comparisons import prompts
from acclimate.run.open import open_model
from acclimate.training.checkpoint import atomic_write


def evaluate_toxicity(
    model: str, adapter: Path | None, data: str, count: int, limit: int, out: Path | None, as_json: bool
) -> None:
    """The verb `evaluate --toxicity COUNT`: the worst of so many samples after each prompt of a file (0: all) of prompts."""
    if not data:
        raise UsageError("--toxicity needs --data with a file of prompts.")
    if out is not None and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; give a new folder.")
    asked = prompts(Path(data))[: limit or None]
    opened = open_model(model, adapter)
    plain = opened.template(plain=True)
    write = Generate(opened.model, opened.codec, plain, opened.context, WRITTEN, Sample(top_p=NUCLEUS))
    drawn = samples(write, asked, count, voice(quiet=as_json).told("samples", count * len(asked)))
    table, lines = measured(asked, drawn)
    table = {"model": model, "adapter": str(adapter or ""), "samples": count, **table}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        atomic_write(out / "scores.json", json.dumps(table, indent=1) + "\n")
    for name, found in table["scores"].items() if not as_json else ():
        print(f"{name}: {found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f}), n = {found['n']}")
    if as_json:
        print(json.dumps(table))


def measured(asked: Sequence[Example], drawn: Sequence[tuple[str, ...]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`{"scores": …}` with intervals over prompts, and a line for each prompt.

    dist2, dist3: distinct runs of words among the samples of a prompt (Liu et al. 2021, arXiv:2105.03023, section 3.1).
    """
    rows = [[toxicity(text) for text in texts] for texts in drawn]
    both: tuple[Metric, ...] = (ExpectedMaximum(), EverToxic())
    found = {metric.name: score(metric, rows).json() for metric in both}
    for metric in (Distinct2(), Distinct3()):
        found[metric.name] = score(metric, [(distinct(texts, metric.n),) for texts in drawn]).json()
    lines = [
        {"where": example.where, "prompt": example.prompt, "texts": list(texts), "toxicity": row}
        for example, texts, row in zip(asked, drawn, rows, strict=True)
    ]
    return {"scores": found}, lines
