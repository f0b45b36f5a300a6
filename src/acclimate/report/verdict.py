"""What the numbers allow one to say, in plain sentences. A direction needs an interval without zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acclimate.metrics import METRICS
from acclimate.report.figures import (
    at,
    capital,
    decimals,
    finite,
    fixed,
    pair,
    percent,
    probability,
    seconds,
    spoken,
)

BETTER, WORSE, UNCLEAR, ABSENT = "better", "worse", "no clear difference", "not compared"
FEWEST = 6  # pairs: a two-sided sign-flip test cannot reach p < 0.05 with fewer, 2 / 2**5 = 0.0625
FEW = 30  # below this a percentile bootstrap is known to be too narrow; the reader is told


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval (None, None when there is none)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One metric before and after on the same examples. `difference` is result minus base; `n` counts examples."""

    name: str
    base: Estimate | None
    result: Estimate | None
    difference: Estimate | None
    p: float | None
    n: int | None
    higher_is_better: bool

    @property
    def reading(self) -> str:
        """One of BETTER, WORSE, UNCLEAR, ABSENT: a direction only if the interval lies on one side of zero."""
        if self.difference is None or self.difference.low is None or self.difference.high is None:
            return ABSENT
        if (self.n is not None and self.n < FEWEST) or self.difference.low <= 0 <= self.difference.high:
            return UNCLEAR
        return BETTER if (self.difference.low > 0) == self.higher_is_better else WORSE

    @property
    def decimals(self) -> int:
        """Decimals for every number of this metric, so that they can be compared by eye."""
        known = self.difference or self.result or self.base
        if known is None or known.low is None or known.high is None:
            return 2
        return decimals(known.low, known.high)


@dataclass(frozen=True)
class Verdict:
    """One reading (better, worse, mixed, no clear difference, not compared), one line, and sentences in order."""

    reading: str
    headline: str
    sentences: tuple[str, ...]


def comparisons(report: Mapping[str, Any]) -> tuple[Comparison, ...]:
    """Every metric that the report scores, the task's own order first."""
    scored = [name for side in ("result", "base") for name in at(report, side, "scores") or {}]
    wanted = [str(name) for name in at(report, "task", "metrics") or ()]
    names = dict.fromkeys([name for name in wanted if name in scored] + scored)
    return tuple(_comparison(report, name) for name in names)


def verdict(report: Mapping[str, Any]) -> Verdict:
    """The headline and the sentences that the report's numbers support, never more."""
    found = comparisons(report)
    readings = {each.reading for each in found} or {ABSENT}
    reading = (
        "mixed" if {BETTER, WORSE} <= readings else next(r for r in (BETTER, WORSE, UNCLEAR, ABSENT) if r in readings)
    )
    told = [_change(found[0], capital(spoken(report.get("method", "this run"))))] if found else [_NOTHING]
    told += [*_others(found), *_doubts(found), _cost(report), _general(report), _instructions(report)]
    return Verdict(reading, _headline(found), tuple(sentence for sentence in told if sentence))


_NOTHING = "The report holds no score from before and after, so nothing can be said about what this run bought."


def _estimate(tree: Any) -> Estimate | None:
    value, low, high = (finite(at(tree, key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    if low is None or high is None:
        return Estimate(value)
    return Estimate(value, min(low, high), max(low, high))


def _comparison(report: Mapping[str, Any], name: str) -> Comparison:
    sides = [at(report, side, "scores", name) for side in ("base", "result")]
    base, result = map(_estimate, sides)
    difference = _estimate(at(report, "difference", name)) if base and result else None
    counts = [count for side in sides if (count := finite(at(side, "n"))) is not None]
    higher = at(report, "task", "directions", name)
    return Comparison(
        name,
        base,
        result,
        difference,
        finite(at(report, "difference", name, "p")),
        int(min(counts)) if counts else None,
        _usual_direction(name) if higher is None else bool(higher),
    )


def _usual_direction(name: str) -> bool:
    return METRICS[name].higher_is_better if name in METRICS else True


def _headline(found: Sequence[Comparison]) -> str:
    if not found:
        return "Nothing was compared"
    groups = {r: [each for each in found if each.reading == r] for r in (BETTER, WORSE, UNCLEAR, ABSENT)}
    parts = [f"{reading} on {_names(group)}" for reading, group in groups.items() if group]
    if len(parts) > 1:
        mixed = "Mixed: " if groups[BETTER] and groups[WORSE] else ""
        return capital(mixed + "; ".join(parts))
    first = found[0]
    change = f"{_value(first, first.base)} → {_value(first, first.result)}"
    return capital(f"{first.reading}: {spoken(first.name)} {change}")


def _value(comparison: Comparison, estimate: Estimate | None) -> str:
    return fixed(estimate.value, comparison.decimals) if estimate else "unknown"


def _names(group: Sequence[Comparison]) -> str:
    names = [spoken(each.name) for each in group]
    if len(names) > 3:
        return f"{len(names)} metrics"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def evidence(comparison: Comparison) -> str:
    """The difference, its interval and p, as they stand in brackets."""
    difference = comparison.difference
    if difference is None:
        return "no paired difference"
    parts = [fixed(difference.value, comparison.decimals, sign=True)]
    if difference.low is not None and difference.high is not None:
        ends = [fixed(end, comparison.decimals) for end in (difference.low, difference.high)]
        parts.append(f"95 % interval {ends[0]} to {ends[1]}")
    if comparison.p is not None:
        p = probability(comparison.p)
        parts.append(f"p {p}" if p.startswith("<") else f"p = {p}")
    return ", ".join(parts)


def _change(comparison: Comparison, method: str) -> str:
    metric, reading = spoken(comparison.name), comparison.reading
    before, after = _value(comparison, comparison.base), _value(comparison, comparison.result)
    where = "" if comparison.n is None else f" on {comparison.n:,} held-out example{'' if comparison.n == 1 else 's'}"
    if reading == ABSENT:
        return f"{capital(metric)}{where}: {before} before, {after} after; no paired comparison was made."
    if reading == UNCLEAR:
        sides = f"{before} before, {after} after"
        return f"{method} made no clear difference to {metric}{where}: {sides} ({evidence(comparison)})."
    raised = (reading == BETTER) == comparison.higher_is_better
    lower = "" if comparison.higher_is_better else "; lower is better"
    worse = ("; " if comparison.higher_is_better else ", so ") + "that is worse" if reading == WORSE else ""
    verb = "raised" if raised else "lowered"
    return f"{method} {verb} {metric}{where} from {before} to {after} ({evidence(comparison)}){lower}{worse}."


def _others(found: Sequence[Comparison]) -> list[str]:
    """What the metrics after the first say: one clause for each of the first four, a count of the rest."""
    if len(found) < 2:
        return []
    clauses = [
        f"{each.reading} on {spoken(each.name)}, {_value(each, each.base)} → {_value(each, each.result)}"
        for each in found[1:5]
    ]
    rest = f"; the table below holds {len(found) - 5} more" if len(found) > 5 else ""
    readings = {each.reading for each in found}
    if len(readings) == 1:
        opening = "The other metrics agree" if len(found) > 2 else "The other metric agrees"
    else:
        opening = "The metrics disagree" if {BETTER, WORSE} <= readings else "The metrics do not all say the same"
    return [f"{opening}: {'; '.join(clauses)}{rest}."]


def _doubts(found: Sequence[Comparison]) -> list[str]:
    """Why the claim may be weaker than it sounds."""
    doubts = []
    counts = [each.n for each in found if each.n is not None]
    if counts and min(counts) < FEW:
        doubts.append(f"Only {min(counts)} held-out example{'' if min(counts) == 1 else 's'}: too few to rely on.")
    claimed = [each for each in found if each.reading in (BETTER, WORSE) and each.p is not None and each.p > 0.05]
    if claimed:
        doubts.append(
            f"The interval and the test disagree on {_names(claimed)} (p above 0.05): read that as borderline."
        )
    return doubts


def _cost(report: Mapping[str, Any]) -> str:
    trained, total = finite(report.get("trainable_parameters")), finite(report.get("total_parameters"))
    spent = finite(at(report, "training", "seconds"))
    took = f" in {seconds(spent)}" if spent is not None else ""
    if trained is None or not total:
        return f"Training took {seconds(spent)}." if took else ""
    if not trained:
        return "No weights were trained."
    return (
        f"All weights were trained{took}."
        if trained >= total
        else f"{percent(trained / total)} of the weights trained{took}."
    )


def _general(report: Mapping[str, Any]) -> str:
    """Perplexity of general text before and after: one fixed text, so no interval; within 0.5 % is 'as hard'."""
    base = finite(at(report, "forgetting", "perplexity_base"))
    result = finite(at(report, "forgetting", "perplexity_result"))
    if base is None or base <= 0:
        return ""
    if result is None:
        measured = "perplexity_result" in (at(report, "forgetting") or {})
        return "General text can no longer be scored: its perplexity is not a finite number." if measured else ""
    before, after = pair(base, result)
    change = result / base - 1
    if abs(change) < 0.005:
        return f"General text is as hard as before: perplexity {before} → {after}."
    degree = "slightly " if abs(change) < 0.05 else "much " if change > 0.25 or change < -0.2 else ""
    return f"General text got {degree}{'harder' if change > 0 else 'easier'}: perplexity {before} → {after}."


def _instructions(report: Mapping[str, Any]) -> str:
    """Said only where the two intervals do not meet, which is stricter than a paired test."""
    base, result = (_estimate(at(report, "forgetting", f"instructions_{side}")) for side in ("base", "result"))
    if base is None or result is None:
        return ""
    if _below(result, base):
        change = "are followed less well"
    elif _below(base, result):
        change = "are followed better"
    else:
        return ""
    return f"General instructions {change}: {fixed(base.value, 2)} → {fixed(result.value, 2)}."


def _below(first: Estimate, second: Estimate) -> bool:
    return first.high is not None and second.low is not None and first.high < second.low
