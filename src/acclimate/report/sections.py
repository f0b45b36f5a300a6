"""The facts of a report as rows of tables, what is absent left out: costs, data, input, forgetting, provenance."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from acclimate.report.figures import at, clean, finite, fixed, number, pair, percent, seconds, size

ROWS = 40  # of any table whose length the data decides

_SPECIAL = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?s>|<(?:pad|bos|eos|unk|mask|sep|cls|start_of_turn|end_of_turn|extra_id_\d+)>"
    r"|\[(?:CLS|SEP|PAD|MASK|UNK|/?INST)\]"
)


def tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, number, note) of the four costs; those that are not known are left out."""
    trained, total = finite(report.get("trainable_parameters")), finite(report.get("total_parameters"))
    training = at(report, "training") or {}
    share = percent(trained / total) if trained is not None and total else "–"
    weights = f"{number(report.get('trainable_parameters'))} of {number(report.get('total_parameters'))}"
    speed = f"{number(training.get('tokens_per_second'))} tokens/s"
    tiles = [
        ("Weights trained", share, weights),
        ("Training time", seconds(training.get("seconds")), speed),
        ("Peak memory", size(training.get("peak_memory_bytes")), "while training"),
        ("Artifact", size(at(report, "artifact", "bytes")), "on disk"),
    ]
    return [tile for tile in tiles if tile[1] != "–"]


def sample(report: Mapping[str, Any]) -> list[tuple[str, bool, bool]]:
    """Runs (text, scored, special) of one rendered input; neighbours of a kind joined, newlines marked."""
    joined: list[tuple[str, bool]] = []
    for text, scored in at(report, "rendering", "sample") or ():
        if joined and joined[-1][1] == bool(scored):
            joined[-1] = (joined[-1][0] + str(text), bool(scored))
        else:
            joined.append((str(text), bool(scored)))
    runs = []
    for text, scored in joined[:60]:
        shown = clean(text, 1500).replace("\n", "↵\n")
        start = 0
        for special in _SPECIAL.finditer(shown):
            runs += [(shown[start : special.start()], scored, False), (special[0], scored, True)]
            start = special.end()
        runs.append((shown[start:], scored, False))
    return [run for run in runs if run[0]]


def rendering(report: Mapping[str, Any]) -> str:
    """How much of the training text is scored, and what did not fit."""
    scored, tokens = (finite(at(report, "rendering", key)) for key in ("scored_tokens", "tokens"))
    if scored is None or not tokens:
        return ""
    told = [f"{number(int(scored))} of {number(int(tokens))} training tokens are scored ({percent(scored / tokens)})."]
    for key, what in (("truncated", "truncated"), ("too_long", "left out as too long")):
        if count := finite(at(report, "rendering", key)):
            told.append(f"{number(int(count))} training example{' was' if count == 1 else 's were'} {what}.")
    return " ".join(told)


def forgetting(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after), with intervals where they are known."""
    tree = at(report, "forgetting") or {}
    rows = []
    if "perplexity_base" in tree:
        base, result = (finite(tree.get(f"perplexity_{side}")) for side in ("base", "result"))
        texts = (number(base), number(result)) if base is None or result is None else pair(base, result)
        intervals = [_interval(tree.get(f"perplexity_{side}_interval"), number) for side in ("base", "result")]
        name = "Perplexity of general text (lower is better)"
        rows.append((name, texts[0] + intervals[0], texts[1] + intervals[1]))
    if "instructions_base" in tree:
        sides = [tree["instructions_base"], tree.get("instructions_result")]
        count = finite(at(sides[0], "n"))
        name = "General instructions followed" + ("" if count is None else f" (n = {number(int(count))})")
        rows.append((name, _with_interval(sides[0]), _with_interval(sides[1])))
    return rows


def said(tree: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(prompt, answer before, answer after) of the entry `forgetting` of a report, or of a row of a comparison."""
    return [
        (clean(row["prompt"], 300), _answer(row["base"]), _answer(row["result"]))
        for row in at(tree, "forgetting", "answers") or ()
    ]


def _answer(text: Any) -> str:
    return clean(text, 300).strip() or "(nothing)"


def _with_interval(side: Any) -> str:
    value = finite(at(side, "value"))
    return "–" if value is None else fixed(value, 2) + _interval(side, lambda end: fixed(end, 2))


def _interval(side: Any, shown: Callable[[float], str]) -> str:
    low, high = (finite(at(side, key)) for key in ("low", "high"))
    return "" if low is None or high is None else f" ({shown(low)} to {shown(high)})"


def resources(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the training took: name and number."""
    training, kept = at(report, "training") or {}, report.get("kept_parameters")
    rows = [
        ("Steps", number(training.get("steps"))),
        ("Tokens read", number(training.get("tokens"))),
        ("Tokens scored", number(training.get("scored_tokens"))),
        ("Time", seconds(training.get("seconds"))),
        ("Speed", f"{number(training.get('tokens_per_second'))} tokens/s" if "tokens_per_second" in training else "–"),
        ("Peak memory", size(training.get("peak_memory_bytes"))),
        ("Trainable parameters", number(report.get("trainable_parameters"))),
        ("Parameters kept", number(kept) if kept != report.get("trainable_parameters") else "–"),
        ("All parameters", number(report.get("total_parameters"))),
        ("Artifact", size(at(report, "artifact", "bytes"))),
        (
            "Inference",
            f"{seconds(report.get('inference_seconds_per_example'))} per example"
            if "inference_seconds_per_example" in report
            else "–",
        ),
    ]
    return [row for row in rows if row[1] != "–"]


class Shown(NamedTuple):
    """What a method shows of what it learned: rows of one table of numbers, or of texts with their numbers."""

    title: str
    columns: list[str]  # empty where every row has others
    rows: list[tuple[str, list[str]]]


def learned(tree: Mapping[str, Any]) -> list[Shown]:
    """The entry `learned` of a report, or of a row of a comparison."""
    found = []
    for title, table in (tree.get("learned") or {}).items():
        rows = [(str(name), dict(row)) for name, row in list(table.items())[:ROWS]]
        names = list(rows[0][1]) if rows else []
        same = all(list(row) == names for _, row in rows) and len(rows) > 1
        shown = [
            (clean(name, 60), [_entry("" if same else key, value) for key, value in row.items()]) for name, row in rows
        ]
        found.append(Shown(clean(title, 120), [clean(name, 40) for name in names] if same else [], shown))
    return found


def _entry(key: str, value: Any) -> str:
    real = finite(value)
    told = "–" if real is None else fixed(real, 2)
    return f"{clean(key, 40).strip() or repr(key)} {told}" if key else told


def data(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each part of the data: its rows, what was left out by which rule, and its hash."""
    rows = []
    for split in ("train", "dev", "test"):
        part = at(report, "data", split)
        if not isinstance(part, Mapping):
            continue
        rules = {str(rule): int(finite(count) or 0) for rule, count in (part.get("dropped") or {}).items()}
        dropped = [f"{number(count)} {clean(rule, 80)}" for rule, count in list(rules.items())[:ROWS]]
        found = str(part.get("sha256") or at(report, "provenance", "data", split) or "")
        digest = clean(found.removeprefix("sha256:"), 80)
        rows.append(
            {
                "split": split,
                "name": clean(part.get("name", ""), 120),
                "rows": number(part.get("rows")),
                "dropped": number(sum(rules.values())),
                "rules": dropped,
                "sha256": digest,
            }
        )
    return rows


def provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What another person needs to do the same again: name and value."""
    tree = {key: value for key, value in (at(report, "provenance") or {}).items() if key != "command"}
    return list(_leaves({**tree, **({"machine": report["machine"]} if report.get("machine") else {})}))[:80]


def _leaves(tree: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path} {key}".strip())
    elif path.endswith("_bytes") and finite(tree) is not None:
        yield clean(path.removesuffix("_bytes").replace("_", " "), 80), size(tree)
    else:
        yield clean(path.replace("_", " "), 80), clean("–" if tree is None else tree, 300)
