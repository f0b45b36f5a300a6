"""The report as one HTML file that needs nothing else: no network, no fonts, no images, and no script to be read."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from acclimate.report import pictures, sections
from acclimate.report.answers import Row, Rows
from acclimate.report.browser import browser
from acclimate.report.changes import changes
from acclimate.report.figures import at, capital, clean, fixed, number, percent, spoken
from acclimate.report.verdict import BETTER, UNCLEAR, WORSE, comparisons, verdict

_TONE = {BETTER: "good", WORSE: "bad", "mixed": "mixed"}
_SIGN = {BETTER: "▲", WORSE: "▼", UNCLEAR: "≈"}


def page(report: Mapping[str, Any], log: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> str:
    """One HTML document: the verdict first, then all that it rests on. Same input, same bytes.

    report, log, predictions: what report.json, log.jsonl and predictions.jsonl hold, of the last at most `browser.MOST`
    rows are in the page. What is absent is left out.
    """
    code, digest = script("page.js")
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            model=clean(report.get("model", "model"), 80),
            method=spoken(report.get("method", "adaptation")),
            source=source_of(report),
            objective=spoken(report.get("objective", "")),
            verdict=verdict(report),
            warnings=[clean(each, 500) for each in (report.get("warnings") or [])[:20]],
            tiles=sections.tiles(report),
            **_measured(report, log, predictions),
            sample=sections.sample(report),
            rendering=sections.rendering(report),
            forgetting=sections.forgetting(report),
            said=sections.said(report),
            learned=sections.learned(report),
            resources=sections.resources(report),
            data=sections.data(report),
            recipe=clean(
                yaml.safe_dump(printable(report.get("recipe") or {}), sort_keys=False, allow_unicode=True), 20_000
            ),
            provenance=sections.provenance(report),
            command=clean(at(report, "provenance", "command") or "acclimate run recipe.yaml", 500),
            script=code,
            digest=digest,
        )
    )


def _measured(report: Mapping[str, Any], log: Sequence[Row], predictions: Rows) -> dict[str, Any]:
    """What rests on measurements, one entry a section, and `opening`, the picture beside the verdict."""
    found = comparisons(report)
    return {
        "opening": pictures.opening(found),
        "scores": [pictures.score_row(each) for each in found[: sections.ROWS]],
        "score_charts": pictures.score_charts(found),
        "loss": pictures.loss(report, log),
        "courses": pictures.courses(report),
        "labels": pictures.labels(report, predictions),
        "calibration": pictures.reliability(report),
        "groups": pictures.groups(report),
        "changes": changes(report, predictions),
        "browser": browser(report, predictions),
    }


def script(name: str) -> tuple[Markup, str]:
    """A script of this folder, and the sha256 by which the page's policy lets it, and nothing else, run."""
    code = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return Markup(code), b64encode(sha256(code.encode()).digest()).decode()


@cache
def environment() -> Environment:
    """The templates of this folder, with the filters that they use."""
    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    tone, sign = _TONE.get, _SIGN.get
    made.filters |= {"spoken": spoken, "capital": capital, "percent": percent, "tight": _tight, "number": number}
    made.filters |= {"tone": lambda reading: tone(reading, "even"), "sign": lambda reading: sign(reading, "")}
    made.filters |= {"fixed": fixed}
    return made


def source_of(report: Mapping[str, Any]) -> str:
    """The training data by the name that its user gave, without folders."""
    named = at(report, "recipe", "data", "train") or at(report, "data", "train", "name") or ""
    return clean(re.split(r"[/\\]", str(named).rstrip("/\\"))[-1], 80)


def _tight(text: str) -> str:
    """No line break between a number and its unit, in an arrow, in p = 0.03 or after the hyphen of ROUGE-L."""
    joined = re.sub(r"(?<=\d) (?=%|s\b|min\b|h\b|[kMGT]?B\b)|(?<=\bp) | (?=→)|(?<=→) |(?<=[=<]) (?=\d)", "\u00a0", text)
    return joined.replace("ROUGE-", "ROUGE\u2011")


def printable(tree: Any) -> Any:
    """`tree` with only what YAML knows: mappings, lists, numbers, text."""
    if isinstance(tree, Mapping):
        return {str(key): printable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [printable(value) for value in tree]
    return tree if tree is None or isinstance(tree, bool | int | float) else str(tree)
