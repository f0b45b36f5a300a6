"""Every held-out row to look through: filters, search and order come from the page's script; without it, a plain list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.report.answers import (
    SIDES,
    Row,
    Rows,
    confidence,
    is_right,
    lead,
    ranking_metric,
    rises,
    score,
    shares,
    text,
    wanted,
)
from acclimate.report.figures import at, clean, finite, fixed, number, spoken

MOST = 500  # rows in the page
NEAR = 0.2  # an answer is of low confidence if its label leads the next by less of the probability than this
LABELS = 4  # whose probabilities are shown
FILTERS = {
    "wrong-before": "Wrong before",
    "wrong-after": "Wrong after",
    "fixed": "Fixed",
    "broken": "Broken",
    "better": "Better",
    "worse": "Worse",
    "low": "Low confidence",
    "cut": "Cut off",
}


@dataclass(frozen=True)
class Entry:
    """One row as it is shown. `kinds`: its filters. change: after − before, more is better; sure: confidence after."""

    place: int  # in the file, from 0
    where: str
    glimpse: str  # the first of what sets the prompt apart
    prompt: str
    wanted: tuple[str, ...]
    answers: tuple[str, str]  # before, after
    notes: tuple[str, str]  # what is known of either answer besides
    rationales: tuple[str, str]
    kinds: tuple[str, ...]
    change: float | None
    sure: float | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Browser:
    """At most MOST of `total` rows, changed ones first, and the filters that find any: (kind, name, how many)."""

    entries: tuple[Entry, ...]
    total: int
    filters: tuple[tuple[str, str, int], ...]
    exact: bool  # whether answers are right or wrong
    by: str  # if not, the score that says how much a row changed; "" where there is none
    near: float = NEAR

    @property
    def low(self) -> bool:
        """Whether any row is of low confidence."""
        return any(kind == "low" for kind, _, _ in self.filters)


def browser(report: Mapping[str, Any], rows: Rows) -> Browser:
    """Choose the rows: those that changed, most first, then wrong ones, then unsure ones, then the others as they come."""
    judge = _judge(report, rows)
    judged = [(place, *judge.of(row)) for place, row in enumerate(rows)]
    ranks = sorted(judged, key=lambda each: _rank(each[0], each[1], each[2]))[:MOST]
    shared = _shared([str(row.get("prompt", "")) for row in rows]) if rows else 0
    entries = tuple(_entry(rows[place], place, kinds, change, judge.by, shared) for place, kinds, change in ranks)
    counts = {kind: sum(kind in each.kinds for each in entries) for kind in FILTERS}
    filters = tuple((kind, name, counts[kind]) for kind, name in FILTERS.items() if counts[kind])
    return Browser(entries, len(rows), filters, judge.exact, "" if judge.exact else judge.by)


@dataclass(frozen=True)
class _Judge:
    """How rows are judged: by right and wrong (`exact`), or by how a score moved; `by` is its name, if any."""

    by: str
    exact: bool
    rising: bool

    def of(self, row: Row) -> tuple[tuple[str, ...], float | None]:
        """Its filters, and by how much it got better, None where nothing can be said."""
        before, after = (self._score(row, side) for side in SIDES)
        change = None if before is None or after is None else (after - before) * (1 if self.rising else -1)
        kinds = _exactly(before, after) if self.exact else _moved(change)
        near = lead(row, "result")
        kinds += ("low",) if near is not None and near < NEAR else ()
        return kinds + (("cut",) if any(at(row, side, "finish") == "length" for side in SIDES) else ()), change

    def _score(self, row: Row, side: str) -> float | None:
        return score(row, self.by, side) if self.by else float(is_right(row, side)) if self.exact else None


def _judge(report: Mapping[str, Any], rows: Rows) -> _Judge:
    if at(report, "task", "labels") or any(at(row, "result", "tags") for row in rows):
        return _Judge("", True, True)
    by = ranking_metric(report, rows)
    given = {score(row, by, side) for row in rows for side in SIDES} if by else {None}
    return _Judge(by, given <= {0.0, 1.0} and rises(report, by), rises(report, by))


def _exactly(before: float | None, after: float | None) -> tuple[str, ...]:
    kinds: tuple[str, ...] = ("wrong-before",) if before == 0 else ()
    kinds += ("wrong-after",) if after == 0 else ()
    changed = {(0.0, 1.0): ("fixed",), (1.0, 0.0): ("broken",)}
    return kinds + (changed.get((before, after), ()) if before is not None and after is not None else ())


def _moved(change: float | None) -> tuple[str, ...]:
    return () if not change else ("better",) if change > 0 else ("worse",)


def _rank(place: int, kinds: Sequence[str], change: float | None) -> tuple[int, float, int]:
    kind = 0 if change else 1 if "wrong-after" in kinds else 2 if "low" in kinds else 3
    return kind, -abs(change or 0.0), place


def _entry(row: Row, place: int, kinds: tuple[str, ...], change: float | None, by: str, shared: int) -> Entry:
    return Entry(
        place,
        clean(row.get("where") or f"row {row.get('row', place)}", 80),
        clean(str(row.get("prompt", ""))[shared : shared + 140].strip().partition("\n")[0], 140),
        clean(row.get("prompt", ""), 600),
        tuple(clean(each, 300) for each in wanted(row)[:3] if each),
        (clean(text(row, "base"), 300), clean(text(row, "result"), 300)),
        (_note(row, "base", by), _note(row, "result", by)),
        (_rationale(row, "base"), _rationale(row, "result")),
        kinds,
        change,
        confidence(row, "result"),
        _remarks(row),
    )


def _shared(prompts: Sequence[str]) -> int:
    """How many letters all prompts begin with, up to the end of a word; 0 where nothing would be left of one.

    What the least and the greatest of them begin with, all do.

    >>> _shared(["Classify this: bad", "Classify this: battered"])
    15
    """
    least, most = min(prompts), max(prompts)
    common = most[: next((i for i, (a, b) in enumerate(zip(least, most)) if a != b), len(least))]
    end = max(common.rfind(" "), common.rfind("\n")) + 1
    return 0 if least == most or any(not prompt[end:].strip() for prompt in prompts) else end


def _note(row: Row, side: str, by: str) -> str:
    """The likeliest labels with their shares, the row's score, and why the text ends."""
    ranked = sorted(shares(row, side).items(), key=lambda item: -item[1])
    told = [f"{clean(label, 40)} {100 * share:.0f} %" for label, share in ranked[:LABELS]]
    told += [f"{len(ranked) - LABELS} more"] if len(ranked) > LABELS else []
    value = score(row, by, side) if by else None
    told += [f"{spoken(by)} {fixed(value, 2)}"] if value is not None else []
    told += ["cut off at the length limit"] if at(row, side, "finish") == "length" else []
    return ", ".join(told)


def _rationale(row: Row, side: str) -> str:
    return clean(at(row, side, "rationale") or "", 500)


def _remarks(row: Row) -> tuple[str, ...]:
    """Of the prompt: what was left out of it, how many worked examples it had, which task and wording it is of."""
    told = []
    if cut := int(finite(row.get("truncated")) or 0):
        told.append(f"prompt truncated by {number(cut)} tokens")
    shots = [int(finite(at(row, side, "shots")) or 0) for side in SIDES]
    if any(shots):
        same = shots[0] == shots[1]
        told.append(f"{shots[0] if same else f'{shots[0]} before, {shots[1]} after'} worked examples")
    told += [f"{name} {clean(row[name], 60)}" for name in ("task", "template") if row.get(name) not in (None, "")]
    return tuple(told)
