"""judge."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from acclimate.cli.adapt import leave_no_trace
from acclimate.cli.voice import voice
from acclimate.errors import InputError, UsageError, unknown
from acclimate.evaluation.judges import PAIRWISE, SCALES, Question
from acclimate.run import comparisons
from acclimate.run.judge import Bench, Judge, judge_of, on_answers, on_pairs, on_runs, provenance
from acclimate.run.measure import Told
from acclimate.training.checkpoint import atomic_write
from acclimate.training.folder import claim, new_folder

Table = Mapping[str, Any]
PEOPLE = {
    "accuracy": "accuracy",
    "tie_discounted": "ties half right",
    "cohen_kappa": "Cohen's kappa",
    "averaged": "by both orders' mean",
    "first_position": "names the first shown",
}  # of a judge's agreement: the heading of each number
Found = tuple[dict[str, Any], list[dict[str, Any]]]  # entries of report.json, lines of verdicts.jsonl


@dataclass(frozen=True)
class Wish:
    """Who judges what, and how: exactly one of data and runs; scale: of single answers, "" for pairs."""

    judges: tuple[str, ...]
    data: Path | None
    runs: tuple[Path, ...]
    scale: str = ""
    reasons: bool = False
    draws: int = 2000
    seed: int = 0


def judge_answers(wish: Wish, out: Path | None, quiet: bool, as_json: bool) -> None:
    """The verb `judge`."""
    if (wish.data is None) == (not wish.runs):
        raise UsageError("Give --data with a file of answers, or --runs with the folders of finished runs.")
    if len(set(wish.judges)) < len(wish.judges):
        raise UsageError("A judge is named twice; each is asked once.")
    bench = Bench(_question(wish.scale), wish.reasons, wish.draws, wish.seed)
    with claim(out or new_folder(Path("runs"), "judge", datetime.now()), resume=False) as run:
        try:
            report, lines = _report(wish, bench, voice(quiet or as_json).told)
        except InputError:
            leave_no_trace(run)
            raise
        atomic_write(run.path / "verdicts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(run.report, text + "\n")
        print(text if as_json else "\n".join([*told(report), f"report: {run.report}"]))


def _question(scale: str) -> Question:
    if scale and scale not in SCALES:
        raise UsageError(unknown("scale", scale, SCALES))
    return SCALES[scale] if scale else PAIRWISE


def _report(wish: Wish, bench: Bench, speak: Told) -> Found:
    """report.json and the lines of verdicts.jsonl. What is judged is read before any judge is opened."""
    kind, ask = _matter(wish, bench, speak)
    table, lines = ask([judge_of(name, bench) for name in wish.judges])
    files = [wish.data] if wish.data else [folder / comparisons.PREDICTIONS for folder in wish.runs]
    sources = {str(path): comparisons.digest(path) for path in files}
    return {"kind": kind, **table, "provenance": provenance(bench, sources)}, lines


def _matter(wish: Wish, bench: Bench, speak: Told) -> tuple[str, Callable[[Sequence[Judge]], Found]]:
    """What kind of thing is judged, and what asks judges about it."""
    if wish.scale:
        points = bench.question.points
        answered = comparisons.graded(wish.data, points) if wish.data else comparisons.systems(wish.runs)
        return "answers", lambda judges: on_answers(judges, answered, bench, speak)
    if wish.data:
        rows = comparisons.pairs(wish.data)
        return "pairs", lambda judges: on_pairs(judges, rows, bench, speak)
    contests = comparisons.contests(comparisons.systems(wish.runs))
    return "runs", lambda judges: on_runs(judges, contests, bench, speak)


def told(report: Table) -> list[str]:
    """The report in a few lines."""
    said: list[str] = []
    for name, found in report["judges"].items():
        said.append(f"{name}:")
        if report["kind"] == "pairs":
            said += _pairs(found)
        elif report["kind"] == "runs":
            said += _runs(found)
        else:
            said += [_grades(system, row) for system, row in found["systems"].items()]
    if between := report.get("between"):
        said.append(
            f"the judges among themselves: Krippendorff's alpha {shown(between['krippendorff_alpha'])}, Fleiss' kappa "
            f"{shown(between['fleiss_kappa'])}"
        )
    return said


def _pairs(found: Table) -> list[str]:
    said = [f"  the first answer wins {shown(found['win_rate'])}, n = {found['n']}", f"  {_order(found)}"]
    return [*said, *_people(found["agreement"])]


def _people(agreement: Table) -> list[str]:
    """A line for all comparisons that people judged and for each subset."""
    if not agreement:
        return ["  no row says what people prefer"]
    known = {key: name for key, name in PEOPLE.items() if any(row[key] for row in agreement.values())}
    table = [["with people", "n", *known.values()]]
    table += [[name, str(row["n"]), *(shown(row[key]) for key in known)] for name, row in agreement.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    return [
        *lines,
        "  a verdict that turns with the order counts as a tie; by chance ties half right is 0.5 and kappa 0",
    ]


def _order(found: Table) -> str:
    return (
        f"names the answer shown first {shown(found['first_position'])}; changes its mind with the order "
        f"{shown(found['flips'])}; unreadable {shown(found['unreadable'])}"
    )


def _runs(found: Table) -> list[str]:
    contests = [
        f"  {row['first']} against {row['second']}: wins {shown(row['win_rate'])}; {_order(row)}"
        for row in found["contests"]
    ]
    ranking = [
        f"  {row['place']}. {row['name']}: strength {row['strength']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        for row in found["ranking"]
    ]
    won = [f"  {name}: wins {shown(rate)} of its comparisons" for name, rate in found["mean_win_rate"].items()]
    return contests + won + (ranking or [f"  no ranking: {found['problem']}"])


def _grades(system: str, row: Table) -> str:
    shares = ", ".join(f"{point} {shown(share)}" for point, share in row["shares"].items())
    return f"  {system}: mean {shown(row['mean'])}; {shares}; unreadable {shown(row['unreadable'])}"


def shown(score: Table | None) -> str:
    """A score with its interval; a dash where there is none."""
    return "–" if score is None else f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
