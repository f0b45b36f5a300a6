"""What a run leaves behind: report.json, predictions.jsonl, the page and the model card."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import acclimate
from acclimate.data.examples import Conversation, Document, Example, Feedback, Output, Preference, Ranking, Tagged
from acclimate.data.template import Segment, segments
from acclimate.data.yaml_tables import plain
from acclimate.evaluation.evaluate import differences, scores
from acclimate.evaluation.general import OPEN
from acclimate.metrics.intervals import score
from acclimate.metrics.labels import ExactMatch, per_label
from acclimate.metrics.likelihood import Perplexity
from acclimate.models.fingerprint import template_hash, tokenizer_hash
from acclimate.report.answers import SIDES
from acclimate.report.card import card
from acclimate.report.groups import NAMES
from acclimate.report.numbers import numbers
from acclimate.report.page import page
from acclimate.run import preferences, tasks
from acclimate.run.measure import Answers, metrics_of
from acclimate.run.parts import Part
from acclimate.run.prepare import Prepared
from acclimate.run.train import Spent
from acclimate.training.checkpoint import atomic_write
from acclimate.training.folder import RunFolder

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def report(prepared: Prepared, base: Answers, result: Answers, facts: Mapping[str, Any]) -> dict[str, Any]:
    """report.json as contract.md has it, but for `numbers`. facts: what only the run knows (parameters, times, artifact)."""
    given, metrics = prepared.recipe.evaluation, metrics_of(prepared)
    recipe = plain(prepared.recipe)
    before, after = (scores(metrics, side.task, given.draws, given.seed) for side in (base, result))
    changed = differences(metrics, base.task, result.task, given.draws, given.seed)
    return {
        "acclimate": acclimate.__version__,
        "model": prepared.recipe.model,
        "method": recipe["method"]["name"],
        "objective": prepared.head.shape.kind if prepared.head and not prepared.pairs else recipe["objective"]["name"],
        "base": {"scores": {name: found.json() for name, found in before.items()}},
        "result": {"scores": {name: found.json() for name, found in after.items()}},
        "difference": {name: found.json() for name, found in changed.items()},
        "forgetting": forgetting(prepared, base, result),
        "task": {
            "labels": list(prepared.recipe.task.labels) or None,
            **tasks.described(prepared.head),
            "metrics": [m.name for m in metrics],
            "directions": {m.name: m.higher_is_better for m in metrics},
        },
        "per_label": labels(prepared, base, result),
        "data": {name: _data(part) for name, part in vars(prepared.parts).items() if isinstance(part, Part)},
        "rendering": rendering(prepared),
        "recipe": recipe,
        **facts,
    }


def forgetting(prepared: Prepared, base: Answers, result: Answers) -> dict[str, Any]:
    """Perplexity on generic text, accuracy on general questions, and a few answers, before and after, on the same items."""
    if not base.texts:
        return {}
    draws = prepared.recipe.evaluation.draws
    texts = [score(Perplexity(), side.texts, draws=draws).json() for side in (base, result)]
    questions = [score(ExactMatch(), side.instructions, draws=draws).json() for side in (base, result)]
    return {
        "perplexity_base": texts[0]["value"],
        "perplexity_result": texts[1]["value"],
        "perplexity_base_interval": texts[0],
        "perplexity_result_interval": texts[1],
        "instructions_base": questions[0],
        "instructions_result": questions[1],
        "answers": [
            {"prompt": prompt, "base": before, "result": after}
            for prompt, before, after in zip(OPEN, base.said, result.said)
        ],
    }


def labels(prepared: Prepared, base: Answers, result: Answers) -> dict[str, Any]:
    """Recall of each label, before and after, with Wilson's intervals."""
    metric = next((m for m in metrics_of(prepared) if m.kind == "labels"), None)
    if metric is None:
        return {}
    names = prepared.recipe.task.labels
    before, after = (per_label(side.task.rows[metric.name], names) for side in (base, result))
    return {
        name: {"n": before[name].n, "base": before[name].value, "result": after[name].value}
        | {f"{side}_interval": {"low": s.low, "high": s.high} for side, s in zip(SIDES, (before[name], after[name]))}
        for name in names
        if name in before
    }


def _data(part: Part) -> dict[str, Any]:
    return {"name": part.name, "rows": len(part.rows), "dropped": dict(part.dropped), "sha256": part.sha256}


def rendering(prepared: Prepared) -> dict[str, Any]:
    """How many tokens the loss counts, and one row as the model reads it."""
    rows = prepared.train.rows
    return {
        "tokens": sum(row.size for row in rows),
        "scored_tokens": sum(sum(row.scored) for row in rows),
        "truncated": len(prepared.train.cut),
        "too_long": len(prepared.train.dropped),
        "sample": [list(piece) for piece in sample(prepared)],
    }


def sample(prepared: Prepared) -> list[Segment]:
    """The first training row, decoded from its ids: what is scored is what the ids say, not what was meant."""
    row = prepared.train.rows[0]
    if row.source:
        return [
            Segment(prepared.codec.decode(row.source, special=True), False),
            Segment(prepared.codec.decode(row.ids, special=True), True),
        ]
    cuts = [0, *(i for i in range(1, len(row.ids)) if row.scored[i] != row.scored[i - 1]), len(row.ids)]
    spans = [(a, b) for a, b in pairwise(cuts) if a < b]
    return [Segment(prepared.codec.decode(row.ids[a:b], special=True), row.scored[a]) for a, b in spans]


def predictions(prepared: Prepared, base: Answers, result: Answers) -> list[dict[str, Any]]:
    """One row for each held-out example, with the ids that were fed and what either model answered."""
    rows = []
    for i, example in enumerate(prepared.parts.test.rows):
        before, after = base.task.answers[i], result.task.answers[i]
        names = base.task.rows
        rows.append(
            {
                "row": i,
                "where": example.where,
                "prompt": asked(prepared, example),
                "prompt_ids": list(before.prompt_ids),
                "truncated": before.truncated,
                "target": preferences.target_of(example) or tasks.target_of(example),
                "references": list(example.answers) if isinstance(example, Example) else [],
                **_group(example),
                "base": _answer(before),
                "result": _answer(after),
                "metrics": {
                    name: {"base": list(base.task.rows[name][i]), "result": list(result.task.rows[name][i])}
                    for name in names
                },
            }
        )
    return rows


def _group(example: Example | Conversation | Document | Tagged) -> dict[str, Any]:
    """The task and the template that a row says it is of."""
    fields = example.fields if isinstance(example, Example) else {}
    return {name: fields[name] for name in NAMES if isinstance(fields.get(name), str | int)}


def asked(prepared: Prepared, example: Any) -> str:
    """The text of a row's prompt under the template, without the chat format around it."""
    if isinstance(example, Tagged):
        return " ".join(example.tokens)
    if isinstance(example, Preference | Ranking | Feedback):
        return "\n\n".join(message.content for message in example.prompt)
    if isinstance(example, Example):
        return prepared.template.question(example)
    return "".join(text for text, _ in segments(example, prepared.template))


def _answer(output: Output) -> dict[str, Any]:
    shown = {"text": output.text, "scores": dict(output.scores), "finish": output.finish, "logprob": output.logprob}
    more = {"tags": list(output.tags), "shots": output.shots, "rationale": output.rationale}
    return {**shown, **{name: value for name, value in more.items() if value}}


def provenance(prepared: Prepared, base: Mapping[str, str], licence: str) -> dict[str, Any]:
    """What another person needs to do the same again."""
    kept = {name: part.sha256 for name, part in vars(prepared.parts).items() if isinstance(part, Part)}
    chat = prepared.template.chat
    return {
        "seed": prepared.recipe.training.seed,
        "data": kept,
        "base": base["weights"],
        "tokenizer": tokenizer_hash(prepared.codec.tokenizer),
        "template": template_hash(chat.source if chat else prepared.template.prompt),
        "licence": licence,
        "versions": {"acclimate": acclimate.__version__, **{name: version(name) for name in LIBRARIES}},
        "command": "acclimate run recipe.yaml",
    }


def machine(model: nn.Module) -> dict[str, Any]:
    """Where it ran."""
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": sys.platform,
    }


def spent_table(spent: Spent, steps: int) -> dict[str, Any]:
    """The `training` entry of report.json."""
    rate = spent.tokens / spent.seconds if spent.seconds else 0.0
    return {
        "steps": steps,
        "tokens": spent.tokens,
        "scored_tokens": spent.scored,
        "seconds": spent.seconds,
        "tokens_per_second": rate,
        "peak_memory_bytes": spent.peak,
    }


def write(run: RunFolder, report: Mapping[str, Any], asked: Sequence[Mapping[str, Any]]) -> Path:
    """Every file of the finished run; report.json last, because it is what says that the run is finished."""
    report = {**report, **numbers(report, asked)}
    log = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()] if run.log.exists() else []
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked)
    atomic_write(run.path / "predictions.jsonl", lines)
    atomic_write(run.path / "README.md", card(report))
    atomic_write(run.path / "report.html", page(report, log, asked))
    atomic_write(run.report, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return run.path / "report.html"
