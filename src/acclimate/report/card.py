"""README.md of a run: a model card with the Hugging Face header, for whoever finds the artifact without its history."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from acclimate.report.figures import at, capital, clean, finite, fixed, number, percent, probability, seconds, spoken
from acclimate.report.sections import forgetting
from acclimate.report.verdict import Comparison, Estimate, comparisons, verdict

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&])")


def card(report: Mapping[str, Any]) -> str:
    """Markdown with a YAML header: what it is, from what, with what scores, what it lost, its limits, how to load it.

    report: what report.json holds. The licence is read from `provenance.licence`; an unknown one is said to be unknown.
    """
    method, model = spoken(report.get("method", "adaptation")), clean(report.get("model", "model"), 120)
    found = comparisons(report)
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            header=yaml.safe_dump(_header(report, found), sort_keys=False, allow_unicode=True),
            title=f"{_inline(capital(method))} on {_inline(model)}",
            model=model,
            method=method,
            objective=spoken(report.get("objective", "not recorded")),
            kind=_kind(report),
            train=_part(report, "train"),
            verdict=verdict(report),
            warnings=[clean(each, 500) for each in (report.get("warnings") or [])[:20]],
            fingerprint=clean(at(report, "provenance", "base") or "", 100),
            licence=clean(at(report, "provenance", "licence") or "", 100),
            trained=_trained(report),
            training=_training(report),
            seed=clean("" if (seed := at(report, "provenance", "seed")) is None else seed, 40),
            data=[(split, part) for split in ("train", "dev", "test") if (part := _part(report, split))["name"]],
            scores=found[:40],
            forgetting=forgetting(report),
            folder=clean(at(report, "artifact", "path") or "adapter", 200),
            peft=at(report, "artifact", "format") == "peft",
            command=clean(at(report, "provenance", "command") or "acclimate run recipe.yaml", 300),
        )
    )


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    # Markdown, not HTML: nothing is escaped by itself; every text passes `inline`, `code`, `shell` or `python`.
    made = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"inline": _inline, "code": _code, "capital": capital, "spoken": spoken, "number": number}
    made.filters |= {"estimate": _estimate, "p": probability, "shell": _shell, "python": _python}
    return made


def _line(text: Any) -> str:
    return " ".join(clean(text, 2000).split())


def _inline(text: Any) -> str:
    """One line in which no Markdown or HTML is left."""
    return _MARKDOWN.sub(r"\\\1", _line(text))


def _code(text: Any) -> str:
    """What may stand between two backticks in a table."""
    return _line(text).replace("`", "'").replace("|", "¦")


def _shell(text: Any) -> str:
    return shlex.quote(_line(text).replace("`", "'"))


def _python(text: Any) -> str:
    return json.dumps(_line(text).replace("`", "'"), ensure_ascii=False)


def _estimate(estimate: Estimate | None, decimals: int, sign: bool = False) -> str:
    if estimate is None:
        return "–"
    value = fixed(estimate.value, decimals, sign)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({fixed(estimate.low, decimals)} to {fixed(estimate.high, decimals)})"


def _kind(report: Mapping[str, Any]) -> str:
    labels = [str(label) for label in at(report, "task", "labels") or ()]
    if not labels:
        return ""
    shown = ", ".join(f"`{_code(label)[:40]}`" for label in labels[:12])
    return f" that chooses between {shown}" + (f" and {len(labels) - 12} more labels" if len(labels) > 12 else "")


def _part(report: Mapping[str, Any], split: str) -> dict[str, Any]:
    part = at(report, "data", split) or {}
    digest = str(part.get("sha256") or at(report, "provenance", "data", split) or "").removeprefix("sha256:")
    return {"name": clean(part.get("name", ""), 120), "rows": part.get("rows"), "sha256": clean(digest, 80)}


def _trained(report: Mapping[str, Any]) -> str:
    trained, total = finite(report.get("trainable_parameters")), finite(report.get("total_parameters"))
    if trained is None or not total:
        return "not recorded"
    return f"{number(int(trained))} of {number(int(total))} ({percent(trained / total)})"


def _training(report: Mapping[str, Any]) -> str:
    steps, tokens, spent = (finite(at(report, "training", key)) for key in ("steps", "tokens", "seconds"))
    parts = [f"{number(int(steps))} steps"] if steps is not None else []
    parts += [f"{number(int(tokens))} tokens"] if tokens is not None else []
    parts += [seconds(spent)] if spent is not None else []
    return ", ".join(parts) or "not recorded"


def _header(report: Mapping[str, Any], found: Sequence[Comparison]) -> dict[str, Any]:
    """The metadata that the Hugging Face hub reads from a card."""
    labels, licence = at(report, "task", "labels"), at(report, "provenance", "licence")
    model, task = _line(report.get("model", "model")), "text-classification" if labels else "text-generation"
    header: dict[str, Any] = {"base_model": model, "tags": ["acclimate", _line(report.get("method", "adaptation"))]}
    header |= {"license": _line(licence).lower()} if licence else {}
    header |= {"library_name": "peft"} if at(report, "artifact", "format") == "peft" else {}
    header |= {"pipeline_tag": "text-generation"}
    name = _part(report, "test")["name"] or _part(report, "train")["name"]
    metrics = [
        {"type": _line(each.name), "name": spoken(each.name), "value": each.result.value}
        for each in found
        if each.result
    ]
    if name and metrics:
        dataset = {"name": _line(name), "type": _line(name)}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics[:40]}
        header["model-index"] = [{"name": f"{_line(report.get('method', 'adaptation'))}-{model}", "results": [result]}]
    return header
