"""Judges at work: verdicts on pairs, on runs or on single answers, and how far they can be trusted."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import acclimate
from acclimate.data.examples import Example, Output
from acclimate.data.records import READERS
from acclimate.data.sources import cache
from acclimate.data.template import Template
from acclimate.errors import DataError, UsageError
from acclimate.evaluation import verdicts as v
from acclimate.evaluation.endpoint import Endpoint, checked_address
from acclimate.evaluation.judges import Guarded, Likely, Person, Question, Scored, Written, length, template
from acclimate.evaluation.predictor import Choose, Generate, Likelihood, Predictor
from acclimate.metrics.agreement import TIE, CohenKappa, FleissKappa, KrippendorffAlpha, TieDiscounted
from acclimate.metrics.intervals import score
from acclimate.metrics.labels import NONE, Accuracy
from acclimate.metrics.metric import Metric
from acclimate.metrics.ranking import WinRate, rank
from acclimate.models.fingerprint import fingerprint, template_hash
from acclimate.run.comparisons import Answered, Contest, person
from acclimate.run.measure import Told
from acclimate.run.open import Opened, open_model
from acclimate.run.write import LIBRARIES

Table = dict[str, Any]
KINDS = (
    "a model's name or folder, https://HOST/v1#MODEL, a person's file of verdicts, likelihood:MODEL for the likelier "
    "answer, or length for the longer one"
)


@dataclass(frozen=True)
class Bench:
    """What judges are asked, and how their scores are resampled. reasons: they write before they say a verdict."""

    question: Question
    reasons: bool = False
    draws: int = 2000
    seed: int = 0
    max_new: int = 256

    def score(self, metric: Metric, rows: ArrayLike) -> Table | None:
        """The metric with its interval; None where nothing counts towards it."""
        try:
            return dict(score(metric, np.array(rows, dtype=np.float64), draws=self.draws, seed=self.seed).json())
        except DataError:
            return None


@dataclass(frozen=True)
class Judge:
    """Who judges, by the name on the command line. facts: what makes it the same judge another time."""

    name: str
    ask: Predictor
    facts: Mapping[str, str] = field(default_factory=dict)


def judge_of(name: str, bench: Bench) -> Judge:
    """The judge called `name`: see KINDS. UsageError for one that cannot answer this question."""
    if name.startswith(("http://", "https://")):
        return _remote(name, bench)
    path = Path(name)
    if path.is_file() and path.suffix.lower() in READERS:
        _compares(name, bench)
        return Judge(name, Person(person(path)), {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    if name == "length":
        _compares(name, bench)
        return Judge(name, Scored(length))
    if name.startswith("likelihood:"):
        _compares(name, bench)
        opened = open_model(name.removeprefix("likelihood:"))
        likelihood = Likelihood(opened.model, opened.codec, opened.template(), opened.context)
        return Judge(name, Scored(Likely(likelihood)), _stamp(opened))
    opened = open_model(name)
    return Judge(name, _local(opened, bench), _stamp(opened))


def _compares(name: str, bench: Bench) -> None:
    if TIE not in bench.question.points:
        raise UsageError(f"{name} compares two answers and grades none; judge pairs, or give another --judge.")


def _remote(name: str, bench: Bench) -> Judge:
    url, _, model = name.partition("#")
    if not model:
        raise UsageError(f"The judge {name} names no model: write {name}#MODEL.")
    checked_address(url)
    asked = template(bench.question, Template(), bench.reasons)
    kept = cache() / "judgements"
    writer = Endpoint(url, model, asked, kept, bench.max_new if bench.reasons else 16)
    return Judge(name, Written(writer, bench.question))


def _local(opened: Opened, bench: Bench) -> Predictor:
    """The likeliest of the verdicts after the judging prompt, or what the model writes, read."""
    asked = template(bench.question, opened.template(), bench.reasons)
    if bench.reasons:
        writer = Generate(opened.model, opened.codec, asked, opened.context, bench.max_new, seed=bench.seed)
        return Guarded(Written(writer, bench.question), opened.codec)
    return Guarded(Choose(opened.model, opened.codec, asked, bench.question.points, opened.context), opened.codec)


def _stamp(opened: Opened) -> dict[str, str]:
    return {"weights": fingerprint(opened.model)["weights"]}


@dataclass(frozen=True)
class Heard:
    """What one judge said of comparisons, and how long it took."""

    judge: Judge
    comparisons: tuple[Example, ...]
    verdicts: tuple[v.Verdict, ...]
    seconds: float


def hear(judge: Judge, comparisons: Sequence[Example], told: Told) -> Heard:
    """Ask a judge about every comparison in both orders."""
    begun = time.perf_counter()
    found = v.verdicts(judge.ask, comparisons, told(judge.name, 2 * len(comparisons)))
    return Heard(judge, tuple(comparisons), tuple(found), time.perf_counter() - begun)


def judged(heard: Heard, bench: Bench) -> Table:
    """One judge on one set of comparisons: what it preferred, and how much of that was the order."""
    found = heard.verdicts
    spoken = [verdict for verdict in found if verdict.winner != v.ABSENT]
    wins = [WinRate().row(Output(verdict.winner), Example("")) for verdict in spoken]
    cut = [max(verdict.given.truncated, verdict.turned.truncated) > 0 for verdict in found]
    return {
        "n": len(found),
        "verdicts": {name: count for name, count in _counted(found).items() if count},
        "win_rate": bench.score(WinRate(), wins),
        "first_position": bench.score(v.Share(), v.rows_of(found, v.first_shown)),
        "flips": bench.score(v.Share(), v.flipped(found)),
        "unreadable": bench.score(v.Share(), v.rows_of(found, v.unreadable)),
        "truncated": sum(cut),
    }


def _counted(found: Sequence[v.Verdict]) -> dict[str, int]:
    counts = Counter(verdict.winner for verdict in found)
    return {name: counts[name] for name in (*v.SIDES, v.ABSENT)}


def agreement(heard: Heard, bench: Bench) -> Table:
    """A judge against people: on all comparisons that have a label and a verdict, and on each subset."""
    both = [
        (verdict, example)
        for verdict, example in zip(heard.verdicts, heard.comparisons, strict=True)
        if example.target and verdict.winner != v.ABSENT
    ]
    subsets = dict.fromkeys(str(example.fields["subset"]) for _, example in both if example.fields["subset"])
    parts = {name: [(o, e) for o, e in both if e.fields["subset"] == name] for name in subsets}
    return {name: _against_people(part, bench) for name, part in {"all": both, **parts}.items()} if both else {}


def _against_people(both: Sequence[tuple[v.Verdict, Example]], bench: Bench) -> Table:
    """decided: accuracy where the judge names a winner. averaged: accuracy of the scores' mean over both orders.

    first_position, flips: how much of it was the order, as of all comparisons.
    """
    accuracy, metrics = Accuracy(v.SIDES), (Accuracy(v.SIDES), TieDiscounted(v.SIDES), CohenKappa(v.SIDES))
    said = [(Output(verdict.winner), example) for verdict, example in both]
    averaged = [(Output(verdict.averaged), example) for verdict, example in both if verdict.averaged]
    return {
        "n": len(both),
        **{m.name: bench.score(m, [m.row(o, e) for o, e in said]) for m in metrics},
        "decided": bench.score(accuracy, [accuracy.row(o, e) for o, e in said if o.text != TIE]),
        "averaged": bench.score(accuracy, [accuracy.row(o, e) for o, e in averaged]),
        "first_position": bench.score(v.Share(), v.rows_of([verdict for verdict, _ in both], v.first_shown)),
        "flips": bench.score(v.Share(), v.flipped([verdict for verdict, _ in both])),
    }


def between(all_heard: Sequence[Heard], bench: Bench) -> Table:
    """Agreement of several judges on the same comparisons; Fleiss where all of them judged all."""
    if len(all_heard) < 2:
        return {}
    said = np.array([[_index(verdict.winner) for verdict in heard.verdicts] for heard in all_heard]).T
    whole = bool((said != NONE).all())
    return {
        "fleiss_kappa": bench.score(FleissKappa(v.SIDES), said) if whole else None,
        "krippendorff_alpha": bench.score(KrippendorffAlpha(v.SIDES), said),
        "cohen_kappa": {
            f"{one.judge.name} | {two.judge.name}": bench.score(CohenKappa(v.SIDES), said[:, [i, j]])
            for (i, one), (j, two) in combinations(enumerate(all_heard), 2)
        },
    }


def _index(winner: str) -> int:
    return v.SIDES.index(winner) if winner in v.SIDES else NONE


def ranked(contests: Sequence[Contest], heard: Heard, bench: Bench) -> Table:
    """One judge on many systems: every contest, and one ranking of all, or the sentence that says why there is none."""
    names = list(dict.fromkeys(name for contest in contests for name in (contest.first, contest.second)))
    count = len(contests[0].comparisons)
    wins = np.zeros((count, len(names), len(names)))
    rows = []
    for number, contest in enumerate(contests):
        part = slice(number * count, (number + 1) * count)
        mine = replace(heard, comparisons=heard.comparisons[part], verdicts=heard.verdicts[part])
        rows.append({"first": contest.first, "second": contest.second, **judged(mine, bench)})
        i, j = names.index(contest.first), names.index(contest.second)
        wins[:, i, j], wins[:, j, i] = _points(mine)
    return {"contests": rows, "mean_win_rate": _win_rates(names, wins, bench), **_order(names, wins, bench)}


def _win_rates(names: Sequence[str], wins: Any, bench: Bench) -> Table:
    """Of each system's comparisons with all the others, the share that it wins, a tie half; wins: (n, k, k)."""
    met = wins + wins.transpose(0, 2, 1)
    return {
        name: bench.score(v.Share(), np.stack([wins[:, i].sum(-1), met[:, i].sum(-1)], axis=-1))
        for i, name in enumerate(names)
    }


def _points(heard: Heard) -> Any:
    """(2, n): what the first and the second get of each comparison; nothing where the judge was absent."""
    each = {v.A: (1.0, 0.0), TIE: (0.5, 0.5), v.B: (0.0, 1.0), v.ABSENT: (0.0, 0.0)}
    return np.array([each[verdict.winner] for verdict in heard.verdicts]).T


def _order(names: Sequence[str], wins: Any, bench: Bench) -> Table:
    try:
        made = rank(names, wins, draws=bench.draws, seed=bench.seed)
    except DataError as error:
        return {"ranking": [], "problem": str(error)}
    return {"ranking": [one.json() for one in made.systems], "draws_without_order": made.without}


def grade(judge: Judge, answered: Sequence[Answered], bench: Bench, told: Told) -> tuple[Table, list[Table]]:
    """What a judge gives each system's answers, how far people's grades agree where there are any, and every grade."""
    asked = [answer for system in answered for answer in system.answers]
    begun = time.perf_counter()
    said = judge.ask(asked, told(judge.name, len(asked)))
    seconds, outputs = time.perf_counter() - begun, iter(said)
    table = {
        system.name: _graded(system.answers, list(islice(outputs, len(system.answers))), bench) for system in answered
    }
    names = [system.name for system in answered for _ in system.answers]
    lines = [
        {"judge": judge.name, "system": name, "where": e.where, "label": e.target, "grade": o.text, **_shown(o)}
        for name, e, o in zip(names, asked, said, strict=True)
    ]
    return {"systems": table, "seconds": seconds, **judge.facts}, lines


def _graded(answers: Sequence[Example], outputs: Sequence[Output], bench: Bench) -> Table:
    points = bench.question.points
    read = [points.index(output.text) for output in outputs if output.text]
    shares = {point: bench.score(v.Share(), [(float(i == at), 1.0) for at in read]) for i, point in enumerate(points)}
    return {
        "n": len(outputs),
        "mean": _stretched(bench.score(v.Share(), [(at / (len(points) - 1), 1.0) for at in read]), len(points)),
        "shares": shares,
        "unreadable": bench.score(v.Share(), [(float(not output.text), 1.0) for output in outputs]),
        "agreement": _with_grades(answers, outputs, bench),
    }


def _stretched(share: Table | None, points: int) -> Table | None:
    """A mean place from 0 to 1 as a mean grade from 1 to the number of points."""
    if share is None:
        return None
    moved = {key: 1 + (points - 1) * share[key] for key in ("value", "low", "high")}
    return {**share, **moved, "stderr": (points - 1) * share["stderr"]}


def _with_grades(answers: Sequence[Example], outputs: Sequence[Output], bench: Bench) -> Table:
    points = bench.question.points
    both = [(o, e) for o, e in zip(outputs, answers, strict=True) if e.target]
    if not both:
        return {}
    metrics: list[Metric] = [
        Accuracy(points),
        CohenKappa(points, weights="quadratic"),
        KrippendorffAlpha(points, scale="ordinal"),
    ]
    return {"n": len(both), **{m.name: bench.score(m, [m.row(o, e) for o, e in both]) for m in metrics}}


def on_pairs(
    judges: Sequence[Judge], comparisons: Sequence[Example], bench: Bench, told: Told
) -> tuple[Table, list[Table]]:
    """Entries of report.json for judges on rows of two answers, and a line for each verdict."""
    all_heard = [hear(judge, comparisons, told) for judge in judges]
    table = {
        heard.judge.name: {**_spent(heard), **judged(heard, bench), "agreement": agreement(heard, bench)}
        for heard in all_heard
    }
    return {"judges": table, "between": between(all_heard, bench)}, _lines(all_heard)


def on_runs(
    judges: Sequence[Judge], contests: Sequence[Contest], bench: Bench, told: Told
) -> tuple[Table, list[Table]]:
    """Entries of report.json for judges on systems that answered the same prompts, and a line for each verdict."""
    comparisons = [example for contest in contests for example in contest.comparisons]
    all_heard = [hear(judge, comparisons, told) for judge in judges]
    table = {heard.judge.name: {**_spent(heard), **ranked(contests, heard, bench)} for heard in all_heard}
    return {"judges": table, "between": between(all_heard, bench)}, _lines(all_heard)


def on_answers(
    judges: Sequence[Judge], answered: Sequence[Answered], bench: Bench, told: Told
) -> tuple[Table, list[Table]]:
    """Entries of report.json for judges that grade single answers, and a line for each grade."""
    made = {judge.name: grade(judge, answered, bench, told) for judge in judges}
    return {"judges": {name: table for name, (table, _) in made.items()}}, [
        row for _, rows in made.values() for row in rows
    ]


def _spent(heard: Heard) -> Table:
    return {"seconds": heard.seconds, **heard.judge.facts}


def _lines(all_heard: Sequence[Heard]) -> list[Table]:
    """Every verdict, with what was said in both orders."""
    return [
        {
            "judge": heard.judge.name,
            "id": example.fields["id"],
            "subset": example.fields["subset"],
            "where": example.where,
            "label": example.target,
            "verdict": verdict.winner,
            "given": {"said": verdict.given.text, **_shown(verdict.given)},
            "turned": {"said": verdict.turned.text, **_shown(verdict.turned)},
        }
        for heard in all_heard
        for example, verdict in zip(heard.comparisons, heard.verdicts, strict=True)
    ]


def _shown(output: Output) -> Table:
    return {"scores": dict(output.scores), "value": output.value, "reasons": output.rationale}


def provenance(bench: Bench, sources: Mapping[str, str]) -> Table:
    """What another person needs to judge the same again. sources: name → sha256 of what was judged."""
    prompt = bench.question.prompt(bench.reasons)
    return {
        "question": bench.question.name,
        "prompt": template_hash(prompt),
        "reasons": bench.reasons,
        "seed": bench.seed,
        "draws": bench.draws,
        "data": dict(sources),
        "versions": {"acclimate": acclimate.__version__, **{name: version(name) for name in LIBRARIES}},
    }
