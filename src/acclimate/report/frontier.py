"""One score against another, such as reward against KL: a point a rung with both intervals, a line for each series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from acclimate.report.charts import MARGIN, WIDTH, Scale, linear, named, padded, rule, svg, ticks, words
from acclimate.report.figures import at, finite, number, spoken
from acclimate.report.pareto import FOOT, HEIGHT, RADIUS, TOP

AXES = {"kl": "KL to the base, nats a completion"}
COLOURS = 8  # classes s0, s1, … of the style sheet


@dataclass(frozen=True)
class Spot:
    """A rung: its number in the table, and (value, low, high) of both scores."""

    number: int
    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def frontier(found: Mapping[str, Any], rows: Sequence[tuple[int, str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The picture whose x is a metric. rows: (number in the table, name, row of compare.json)."""
    given, series = found["picture"], dict[str, list[Spot]]()
    order = {row["name"]: place for place, row in enumerate(found["rows"])}
    for index, name, row in sorted(rows, key=lambda each: order[each[2]["name"]]):
        both = (_ends(row["scores"][given[axis]]) for axis in ("x", "metric"))
        series.setdefault(given["series"][row["name"]], []).append(Spot(index, name, *both))
    places = [finite(at(found, "base", "scores", given[axis], "value")) for axis in ("x", "metric")]
    base = None if None in places else (places[0] or 0.0, places[1] or 0.0)
    axes = (AXES.get(given["x"], spoken(given["x"])), spoken(given["metric"]))
    names = [spoken(name) for name in series]
    return {"chart": drawn(series, axes, base), "names": names, "x": axes[0], "colours": COLOURS, "numbered": True}


def _ends(score: Mapping[str, float]) -> tuple[float, float, float]:
    return score["value"], score["low"], score["high"]


def drawn(
    series: Mapping[str, Sequence[Spot]], axes: tuple[str, str], base: tuple[float, float] | None = None
) -> Markup:
    """The chart. axes: the names of x and y. base: where the base model is, with a broken line at its height."""
    spots = [spot for line in series.values() for spot in line]
    own = [] if base is None else [base]
    low, high = padded([end for spot in spots for end in spot.y] + [y for _, y in own])
    left, right = padded([end for spot in spots for end in spot.x] + [x for x, _ in own])
    rows, columns = ticks(low, high, 4), ticks(left, right, 5)
    gutter = 12 + 7 * max(map(len, named(rows)))
    x, y = linear(left, right, gutter + RADIUS, WIDTH - MARGIN), linear(low, high, HEIGHT - FOOT, TOP)
    parts = [rule(gutter, y(tick), WIDTH, y(tick), "grid") for tick in rows]
    parts += [words(gutter - 6, y(tick) + 4, name, "tick", "end") for tick, name in zip(rows, named(rows))]
    parts += [words(x(tick), HEIGHT - 26, name, "tick", "middle") for tick, name in zip(columns, named(columns))]
    for place, height in own:
        parts += [rule(gutter, y(height), WIDTH, y(height), "base-line")]
        parts += [words(WIDTH, y(height) - 5, "base", "tick", "end"), _circle("base", x(place), y(height), 5)]
    lines = [sorted(line, key=lambda spot: spot.x[0]) for line in series.values()]
    parts += [part for index, line in enumerate(lines) for part in _spans(line, x, y, f"s{index % COLOURS}")]
    parts += [_dot(spot, x, y, f"s{index % COLOURS}") for index, line in enumerate(lines) for spot in line]
    titles = [words(0, 13, axes[1], "axis"), words((gutter + WIDTH) / 2, HEIGHT - 6, axes[0], "axis", "middle")]
    told = "; ".join(
        f"{name}: " + ", ".join(f"{spot.name} ({number(spot.x[0])}, {number(spot.y[0])})" for spot in line)
        for name, line in series.items()
    )
    return svg(HEIGHT, f"{axes[1]} against {axes[0]}. {told}.", [*parts, *titles])


def _spans(line: Sequence[Spot], x: Scale, y: Scale, kind: str) -> list[Markup]:
    """The intervals of a line's points, and the line."""
    parts = [rule(x(s.x[0]), y(s.y[1]), x(s.x[0]), y(s.y[2]), f"whisker {kind}") for s in line]
    parts += [rule(x(s.x[1]), y(s.y[0]), x(s.x[2]), y(s.y[0]), f"whisker {kind}") for s in line]
    joined = " ".join(f"{x(spot.x[0]):.1f},{y(spot.y[0]):.1f}" for spot in line)
    return [*parts, Markup('<polyline class="trace {}" points="{}"/>').format(kind, joined)]


def _circle(kind: str, a: float, b: float, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, a, b, radius)


def _dot(spot: Spot, x: Scale, y: Scale, kind: str) -> Markup:
    mark = Markup(
        '<g class="spot {}"><title>{}: {}, {}</title>{}<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text></g>'
    )
    a, b = x(spot.x[0]), y(spot.y[0])
    told = (number(spot.x[0]), number(spot.y[0]))
    return mark.format(kind, spot.name, *told, _circle("", a, b, RADIUS - 1), a, b + 3.5, spot.number)
