"""The page of a comparison: a verdict, a table to sort, quality against each cost, curves, the search. One HTML file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from acclimate.report import boxes, charts, dimension, frontier, pareto, sections
from acclimate.report.figures import (
    at,
    capital,
    clean,
    finite,
    fixed,
    number,
    pair,
    percent,
    probability,
    seconds,
    size,
    spoken,
)
from acclimate.report.page import environment, printable, script, source_of

SHOWN = 3  # metrics that have a column

Row = Mapping[str, Any]


class Cell(NamedTuple):
    """What stands in the table, small print below it, and what it is sorted by."""

    text: str
    note: str = ""
    value: float | None = None


def comparison_page(found: Mapping[str, Any]) -> str:
    """One HTML document from what compare.json holds. Same input, same bytes."""
    code, digest = script("comparison.js")
    rows, scorers = well(found), found.get("reward_models", [])
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            model=clean(found["model"], 80),
            source=source_of(found),
            headline=headline(found),
            sentences=sentences(found),
            warnings=[clean(each, 500) for each in found["warnings"][:20]],
            columns=[name for name, _ in columns(found)],
            rows=[(i, called(r), r["name"] == found["best"], cells(found, r)) for i, r in numbered(rows)],
            failed=[(called(r), clean(r["failed"], 500)) for r in found["rows"] if r["failed"]],
            pictures=pictures(found),
            study=study(found),
            seeds=seeds(found),
            curves=[_curve(row) for row in rows if row["curve"]["train"]],
            search=_search(found),
            said=said(found),
            learned=[(called(row), told) for row in [*scorers, *rows] if (told := sections.learned(row))],
            stages=[(capital(name), seconds(value)) for name, value in found["seconds"].items()],
            data=sections.data(found),
            provenance=sections.provenance(found),
            recipe=clean(yaml.safe_dump(printable(found["recipe"]), sort_keys=False, allow_unicode=True), 40_000),
            command=clean(at(found, "provenance", "command"), 500),
            script=code,
            digest=digest,
        )
    )


def well(found: Mapping[str, Any]) -> list[Row]:
    """The rungs that were carried out, best first by the first metric."""
    first = found["task"]["metrics"][0]
    sign = -1 if found["task"]["directions"][first] else 1
    rows = [row for row in found["rows"] if not row["failed"]]
    return sorted(rows, key=lambda r: (r["name"] != found["best"], sign * r["spread"][first]["mean"]))


def numbered(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """Rows with their numbers, from 1: by these the pictures name them."""
    return list(enumerate(rows, start=1))


# The verdict


def headline(found: Mapping[str, Any]) -> str:
    """Who is best and by what, in a line."""
    if not found["best"]:
        return "No rung could be carried out"
    first, best = found["task"]["metrics"][0], _named(found, found["best"])
    score = at(best, "scores", first)
    return f"{capital(called(best))} is best: {spoken(first)} {fixed(score['value'], _places(found))}"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the numbers allow one to say, and what they do not."""
    if not found["best"]:
        return [f"All {len(found['rows'])} rungs failed; the reasons stand below."]
    rows = [row for row in well(found) if row["name"] != found["best"]]
    level = [row for row in rows if _is_level(found, row)]
    told = [_against_base(found), _level(found, level, rows)]
    cheap = min([_named(found, found["best"]), *level], key=lambda row: row["trainable_parameters"])
    if level and cheap["name"] != found["best"]:
        share = percent(cheap["trainable_parameters"] / cheap["total_parameters"])
        told.append(f"Of these {called(cheap)} trains least: {share} of the weights.")
    told += dimension.sentences(found)
    if len(rows) > 1:
        told.append("The best was picked on these same rows, which flatters its lead a little.")
    failed = [called(row) for row in found["rows"] if row["failed"]]
    return [*told, *([f"Not carried out: {', '.join(failed)}."] if failed else [])]


def _against_base(found: Mapping[str, Any]) -> str:
    first, best = found["task"]["metrics"][0], _named(found, found["best"])
    score, before = best["scores"][first], found["base"]["scores"][first]
    change = best["difference"]["base"][first]
    places = _places(found)
    ends = f"{fixed(score['low'], places)} to {fixed(score['high'], places)}"
    scored = f"It has {fixed(score['value'], places)} (95 % interval {ends}) on {score['n']:,} held-out examples"
    told = f"{scored} that the search never saw; the base model under the template has {fixed(before['value'], places)}"
    p = probability(change["p"])
    evidence = f"{fixed(change['value'], places, sign=True)}, p {p if p.startswith('<') else f'= {p}'}"
    if not _clear(change):
        return f"{told}, which is no clear difference ({evidence})."
    return f"{told} ({evidence})."


def _level(found: Mapping[str, Any], level: Sequence[Row], rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    if not level:
        return (
            "All others are clearly behind it."
            if len(rows) > 1
            else f"{capital(called(rows[0]))} is clearly behind it."
        )
    names = ", ".join(called(row) for row in level)
    behind = len(rows) - len(level)
    rest = f"; {behind} {'is' if behind == 1 else 'are'} clearly behind" if behind else ""
    return f"Not clearly different from it (the paired interval holds zero, or p is 0.05 or more): {names}{rest}."


def _is_level(found: Mapping[str, Any], row: Row) -> bool:
    change = at(row, "difference", "best", found["task"]["metrics"][0])
    return change is not None and not _clear(change)


def _clear(change: Mapping[str, Any]) -> bool:
    """Both ways of asking agree: the interval of the paired difference misses zero, and p is below 0.05."""
    return not change["low"] <= 0 <= change["high"] and change["p"] < 0.05


def called(row: Row, limit: int = 60) -> str:
    """A rung's name in prose: the method's own where it has no other."""
    return spoken(row["name"]) if row["name"] == row["method"] else clean(row["name"], limit)


def _named(found: Mapping[str, Any], name: str) -> Row:
    return next(row for row in found["rows"] if row["name"] == name)


def _places(found: Mapping[str, Any], metric: str = "") -> int:
    """Decimals of a metric's scores (without one: the first's): three for shares, two up to 10, one above."""
    most = max((abs(row["scores"][metric or found["task"]["metrics"][0]]["value"]) for row in well(found)), default=0.0)
    return 3 if most <= 1 else 2 if most < 10 else 1


# The table


def columns(found: Mapping[str, Any]) -> list[tuple[str, Callable[[Row], Cell]]]:
    """The heading of every column and how a row fills it."""
    places, metrics = _places(found), found["task"]["metrics"][:SHOWN]
    scores = [(capital(spoken(m)), _scored(m, _places(found, m))) for m in metrics]
    costs = [
        ("Against the best", lambda row: _gap(row, metrics[0], places)),
        *([("Mean win rate", _won)] if any(row.get("mean_win_rate") for row in found["rows"]) else []),
        ("Trained", _trained),
        ("Stored", lambda row: _sized(at(row, "artifact", "bytes"))),
        ("Peak memory", lambda row: _sized(at(row, "training", "peak_memory_bytes"))),
        ("Training", _training),
        ("Per example", lambda row: _timed(row["inference_seconds_per_example"])),
        ("General text", _general),
        ("Rate", lambda row: Cell(number(row["rate"]), "", finite(row["rate"]))),
    ]
    return [*scores, *costs]


def cells(found: Mapping[str, Any], row: Row) -> list[Cell]:
    """The row under every column."""
    return [fill(row) for _, fill in columns(found)]


def _scored(metric: str, places: int) -> Callable[[Row], Cell]:
    def fill(row: Row) -> Cell:
        score, spread = row["scores"][metric], row["spread"][metric]
        note = f"{fixed(score['low'], places)} to {fixed(score['high'], places)}"
        if len(row["seeds"]) > 1:
            note += f"; seeds {fixed(spread['low'], places)} to {fixed(spread['high'], places)}"
        return Cell(fixed(score["value"], places), note, score["value"])

    return fill


def _gap(row: Row, metric: str, places: int) -> Cell:
    change = at(row, "difference", "best", metric)
    if change is None:
        return Cell("best", "", 0.0)
    p = probability(change["p"])
    return Cell(fixed(change["value"], places, sign=True), f"p {p if p.startswith('<') else f'= {p}'}", change["value"])


def _won(row: Row) -> Cell:
    rate = row["mean_win_rate"]
    return Cell(fixed(rate["value"], 2), f"{fixed(rate['low'], 2)} to {fixed(rate['high'], 2)}", rate["value"])


def _trained(row: Row) -> Cell:
    count = row["trainable_parameters"]
    kept, share = row.get("kept_parameters", count), percent(count / row["total_parameters"])
    note = share if kept == count else f"{share}; {number(kept)} kept"
    return Cell(number(count), note if count else "", count)


def _sized(count: Any) -> Cell:
    real = finite(count)
    return Cell(size(real), "", real) if real else Cell("–")


def _timed(value: Any) -> Cell:
    real = finite(value)
    return Cell(f"{number(real * 1000)} ms", "", real) if real else Cell("–")


def _training(row: Row) -> Cell:
    given = row["training"]
    if not given["seconds"]:
        return Cell("–")
    speed = f"{number(round(given['tokens_per_second']))} tokens/s" if given["tokens_per_second"] else ""
    return Cell(seconds(given["seconds"]), speed, given["seconds"])


def _general(row: Row) -> Cell:
    """Perplexity of general text before and after."""
    before, after = (finite(at(row, "forgetting", f"perplexity_{side}")) for side in ("base", "result"))
    if before is None or after is None:
        return Cell("–")
    right = [finite(at(row, "forgetting", f"instructions_{side}", "value")) for side in ("base", "result")]
    note = "" if None in right else f"questions {' → '.join(fixed(r or 0.0, 2) for r in right)}"
    return Cell(" → ".join(pair(before, after)), note, after)


def said(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ordinary questions, and what the base and each rung that may forget answer to them; None without any."""
    told = [(called(row), sections.said(row)) for row in well(found)]
    told = [(name, answers) for name, answers in told if answers]
    if not told:
        return None
    before = ("before", [base for _, base, _ in told[0][1]])
    after = [(name, [result for _, _, result in answers]) for name, answers in told]
    return {"questions": [prompt for prompt, _, _ in told[0][1]], "rows": [before, *after]}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The table for a terminal, and the verdict below it."""
    heads = ["", *(name for name, _ in columns(found))]
    body = [[called(row, 30), *(_short(cell) for cell in cells(found, row))] for row in well(found)]
    widths = [max(len(line[i]) for line in [heads, *body]) for i in range(len(heads))]
    table = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in [heads, *body]
    ]
    failed = [f"{called(row, 30)} failed: {row['failed']}" for row in found["rows"] if row["failed"]]
    return [*table, *failed, f"{headline(found)}. {' '.join(filter(None, sentences(found)))}"]


def _short(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note and " to " in cell.note else cell.text


# The pictures

COSTS: tuple[tuple[str, str, Callable[[Row], Any], Callable[[float], str]], ...] = (
    ("Trained weights", "trainable parameters", lambda r: r["trainable_parameters"], lambda v: _short_count(v)),
    ("Training time", "training time of one seed", lambda r: at(r, "training", "seconds"), lambda v: seconds(v)),
    ("Answering", "time per example", lambda r: r["inference_seconds_per_example"], lambda v: f"{number(v * 1000)} ms"),
    ("Memory", "peak memory of training", lambda r: at(r, "training", "peak_memory_bytes") or None, lambda v: size(v)),
)


def _short_count(value: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g}"


def pictures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Quality against each cost, with who is on the front."""
    first = found["task"]["metrics"][0] if found["task"]["metrics"] else ""
    drawn = []
    for title, axis, cost, shown in COSTS:
        points = [
            _point(i, r, first, value) for i, r in numbered(well(found)) if (value := finite(cost(r))) is not None
        ]
        if points:
            higher = found["task"]["directions"][first]
            chart = pareto.scatter(points, higher, (axis, spoken(first)), shown, _base(found, first))
            ahead = [(p.number, clean(p.name, 40)) for p in pareto.front(points, higher)]
            drawn.append({"title": title, "chart": chart, "front": ahead})
    return drawn


def _base(found: Mapping[str, Any], metric: str) -> float | None:
    return finite(at(found, "base", "scores", metric, "value"))


def _point(index: int, row: Row, metric: str, cost: float) -> pareto.Point:
    score = row["scores"][metric]
    return pareto.Point(index, called(row, 40), cost, score["value"], score["low"], score["high"])


def study(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one picture of a study: a line for every series, against a metric or the entry in which the rungs differ."""
    given, rows = found.get("picture"), numbered(well(found))
    if not given or not rows:
        return None
    if given["x"] in found["task"]["metrics"]:
        return frontier.frontier(found, [(number, called(row, 40), row) for number, row in rows])
    lines = given.get("series", {})
    series: dict[str, list[tuple[Any, pareto.Point]]] = {}
    for row in found["rows"]:
        if not row["failed"] and row["name"] in given["places"]:
            point = given["places"][row["name"]], _point(0, row, given["metric"], 0.0)
            series.setdefault(lines.get(row["name"], row["method"]), []).append(point)
    if not series:
        return None
    axes = (given["x"].rpartition(".")[2].replace("_", " "), spoken(given["metric"]))
    axes = ("training examples" if given["x"] == "data.limit.train" else axes[0], axes[1])
    chart, names = pareto.study(series, axes, _base(found, given["metric"]))
    return {"chart": chart, "names": [spoken(name) for name in names], "x": axes[0], "colours": 4, "numbered": False}


def seeds(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first metric of every seed of every rung; None where no rung has more than one."""
    rows = well(found)
    if not any(len(row["seeds"]) > 1 for row in rows):
        return None
    first, places, lines = found["task"]["metrics"][0], _places(found), []
    for index, row in numbered(rows):
        values = tuple(float(each["scores"][first]) for each in row["seeds"])
        ends = " to ".join(dict.fromkeys(fixed(end, places) for end in (min(values), max(values))))
        lines.append(boxes.Boxed(f"{index} {called(row, 28)}", ends, {"result": values}))
    label = f"{capital(spoken(first))} of each seed. " + ". ".join(f"{line.name}: {line.words}" for line in lines)
    return {"chart": boxes.boxes(lines, spoken(first), label), "metric": spoken(first)}


def _curve(row: Row) -> dict[str, Any]:
    train, dev = ([(float(a), float(b)) for a, b in row["curve"][side]] for side in ("train", "dev"))
    label = f"{called(row)}: loss {number(train[0][1])} at first, {number(train[-1][1])} at last"
    shown = [charts.Series("train", charts.thinned(train, 80))]
    shown += [charts.Series("dev", charts.thinned(dev, 40), dots=True)] if dev else []
    points = train + dev
    ends = min(x for x, _ in points), max(x for x, _ in points)
    floor = 0.0 if min(y for _, y in points) >= 0 else None
    return {"name": called(row, 40), "chart": charts.curve(shown, ends, ("step", "loss"), label, floor=floor)}


def _tried(trial: Mapping[str, Any], places: int) -> str:
    loss = finite(trial["loss"])
    return fixed(trial["score"], places) + ("" if loss is None else f" ({fixed(loss, 3)})")


def _search(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every trial of every rung, the rate that was chosen marked."""
    rows = []
    for row in well(found):
        for index, trials in enumerate(row["search"]["rounds"]):
            tried = [
                (
                    number(t["rate"]),
                    "ill" if t["score"] is None else _tried(t, _places(found)),
                    t["rate"] == row["rate"],
                )
                for t in trials
            ]
            rows.append(
                {
                    "name": called(row) if not index else "",
                    "steps": number(trials[0]["steps"]),
                    "tried": tried,
                }
            )
    return rows
