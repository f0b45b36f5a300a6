"""Quality against cost, one point a row of a comparison; and a study's score against what its rungs vary."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from acclimate.report.charts import MARGIN, WIDTH, Scale, linear, named, padded, rule, svg, ticks, words
from acclimate.report.figures import finite, number

HEIGHT, TOP, FOOT = 300, 30, 44  # units: the drawing, above its frame, below it
RADIUS = 8.5
APART = 16  # units to the left of a logarithmic axis where 0 stands


@dataclass(frozen=True)
class Point:
    """One row: its number in the table, its cost (0 or more) and its score with the interval."""

    number: int
    name: str
    cost: float
    score: float
    low: float
    high: float


def front(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """Those that no other beats: none is at least as good and at least as cheap, and better in one. Cheapest first.

    >>> a, b, c = (Point(i, "", cost, score, 0, 0) for i, (cost, score) in enumerate([(1, 0.5), (2, 0.9), (3, 0.8)]))
    >>> [point.number for point in front([a, b, c], True)]
    [0, 1]
    """
    sign = 1 if higher_is_better else -1

    def beats(one: Point, other: Point) -> bool:
        ours, theirs = (one.cost, -sign * one.score), (other.cost, -sign * other.score)
        return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]

    best = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(best, key=lambda point: (point.cost, point.number))


def scatter(
    points: Sequence[Point], higher: bool, axes: tuple[str, str], shown: Callable[[float], str], base: float | None
) -> Markup:
    """Points with their intervals over a logarithmic cost; the front is filled and joined. `shown` writes a cost.

    axes: the names of x and y. base: the base model's score, as a broken line.
    """
    ahead = front(points, higher)
    ends = [end for p in points for end in (p.low, p.high)] + ([] if base is None else [base])
    low, high = padded(ends)
    rows = ticks(low, high, 4)
    gutter = 12 + 7 * max(map(len, named(rows)))
    x, places = _costs([p.cost for p in points], gutter)
    y = linear(low, high, HEIGHT - FOOT, TOP)
    parts = [rule(gutter, y(tick), WIDTH, y(tick), "grid") for tick in rows]
    parts += [words(gutter - 6, y(tick) + 4, name, "tick", "end") for tick, name in zip(rows, named(rows))]
    parts += [words(x(place), HEIGHT - 26, shown(place), "tick", "middle") for place in places]
    parts += _base_line(base, y, gutter)
    joined = " ".join(f"{x(p.cost):.1f},{y(p.score):.1f}" for p in ahead)
    parts.append(Markup('<polyline class="trace front" points="{}"/>').format(joined))
    spans = [rule(x(p.cost), y(p.low), x(p.cost), y(p.high), "whisker") for p in points]
    drawn = [_dot(p, x, y, p in ahead) for p in sorted(points, key=lambda p: p in ahead)]
    titles = [words(0, 13, axes[1], "axis"), words((gutter + WIDTH) / 2, HEIGHT - 6, axes[0], "axis", "middle")]
    told = ", ".join(f"{p.name} ({shown(p.cost)}, {number(p.score)})" for p in ahead)
    return svg(HEIGHT, f"{axes[1]} against {axes[0]}. On the front: {told}.", [*parts, *spans, *drawn, *titles])


def _base_line(base: float | None, y: Scale, gutter: float) -> list[Markup]:
    if base is None:
        return []
    return [rule(gutter, y(base), WIDTH, y(base), "base-line"), words(WIDTH, y(base) - 5, "base", "tick", "end")]


def _dot(point: Point, x: Scale, y: Scale, ahead: bool) -> Markup:
    mark = Markup(
        '<g class="point {}"><title>{}: {}</title><circle cx="{:.1f}" cy="{:.1f}" r="{}"/>'
        '<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text></g>'
    )
    a, b = x(point.cost), y(point.score)
    kind = "ahead" if ahead else "behind"
    return mark.format(kind, point.name, number(point.score), a, b, RADIUS, a, b + 3.5, point.number)


def _costs(costs: Sequence[float], gutter: float) -> tuple[Scale, list[float]]:
    """A logarithmic scale over the costs, 0 in a place of its own at the left, and the powers of ten to name."""
    above, none = [cost for cost in costs if cost > 0], any(cost <= 0 for cost in costs)
    start = gutter + RADIUS + (2 * APART if none else 0)
    low, high = (math.log10(min(above)), math.log10(max(above))) if above else (0.0, 0.0)
    room = max(0.06 * (high - low), 0.1)
    scale = linear(low - room, high + room, start, WIDTH - MARGIN)
    named_costs = _decades(10.0 ** (low - room), 10.0 ** (high + room)) if above else []
    return lambda cost: scale(math.log10(cost)) if cost > 0 else gutter + RADIUS, ([0.0] if none else []) + named_costs


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], six at most; 1, 2 and 5 times them, or any round numbers, where these are few.

    >>> _decades(9.0, 45.0), _decades(1.0, 1e8)
    ([10.0, 20.0], [1.0, 100.0, 10000.0, 1000000.0, 100000000.0])
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**n for n in exponents if low <= 10.0**n <= high]
    if len(powers) > 2:
        return powers[:: -(-len(powers) // 6)]
    some = [digit * 10.0**n for n in exponents for digit in (1, 2, 5) if low <= digit * 10.0**n <= high]
    return some if len(some) > 1 else list(ticks(low, high, 4))


def study(
    series: Mapping[str, Sequence[tuple[Any, Point]]], axes: tuple[str, str], base: float | None
) -> tuple[Markup, list[str]]:
    """Scores with intervals against what was varied, by series. Returns the chart and the names of its series.

    Numbers stand on a scale, logarithmic where they span a factor of 8, a line through each series; other values side by
    side in their order, without one; a list, too long to stand below the axis, is called what its point is called.
    """
    series = {name: [(_short(place, p), p) for place, p in line] for name, line in series.items()}
    every = [place for line in series.values() for place, _ in line]
    kept = [p for line in series.values() for _, p in line]
    low, high = padded([end for p in kept for end in (p.low, p.high)] + ([] if base is None else [base]))
    rows = ticks(low, high, 4)
    gutter = 12 + 7 * max(map(len, named(rows)))
    x, y = _places(every, gutter), linear(low, high, HEIGHT - FOOT, TOP)
    parts = [rule(gutter, y(tick), WIDTH, y(tick), "grid") for tick in rows]
    parts += [words(gutter - 6, y(tick) + 4, name, "tick", "end") for tick, name in zip(rows, named(rows))]
    parts += [words(x(place), HEIGHT - 26, written(place), "tick", "middle") for place in _distinct(every)]
    parts += _base_line(base, y, gutter)
    joined = all(finite(place) is not None for place in every)
    for index, line in enumerate(series.values()):
        parts += _trace(line, x, y, (index, len(series)), joined)
    titles = [words(0, 13, axes[1], "axis"), words((gutter + WIDTH) / 2, HEIGHT - 6, axes[0], "axis", "middle")]
    told = "; ".join(
        f"{name}: " + ", ".join(f"{written(v)} {number(p.score)}" for v, p in s) for name, s in series.items()
    )
    return svg(HEIGHT, f"{axes[1]} against {axes[0]}. {told}.", [*parts, *titles]), list(series)


def _trace(line: Sequence[tuple[Any, Point]], x: Scale, y: Scale, place: tuple[int, int], joined: bool) -> list[Markup]:
    index, count = place
    shift = 5.0 * (index - (count - 1) / 2)  # intervals of two series at one place stay apart
    spots = [(x(place) + shift, point) for place, point in line]
    way = " ".join(f"{a:.1f},{y(p.score):.1f}" for a, p in spots)
    parts = [Markup('<polyline class="trace s{}" points="{}"/>').format(index % 4, way)] if joined else []
    parts += [rule(a, y(p.low), a, y(p.high), f"whisker s{index % 4}") for a, p in spots]
    dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {}</title></circle>')
    return parts + [dot.format(index % 4, a, y(p.score), p.name, number(p.score)) for a, p in spots]


def _places(every: Sequence[Any], gutter: float) -> Callable[[Any], float]:
    left, right = gutter + 14, WIDTH - MARGIN - 6
    numbers = [n for place in every if (n := finite(place)) is not None]
    if len(numbers) < len(every):
        order = [written(place) for place in _distinct(every)]
        aside = linear(-0.5, len(order) - 0.5, gutter, WIDTH)
        return lambda place: aside(order.index(written(place)))
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 8:
        logs = linear(math.log(min(numbers)), math.log(max(numbers)), left, right)
        return lambda place: logs(math.log(place))
    return linear(min(numbers), max(numbers), left, right)


def _distinct(every: Sequence[Any]) -> list[Any]:
    return list({written(place): place for place in every}.values())


def _short(place: Any, point: Point) -> Any:
    return point.name if isinstance(place, list | tuple) else place


def written(place: Any) -> str:
    """A varied value as a label.

    >>> written(8), written("vocabulary")
    ('8', 'vocabulary')
    """
    return number(place) if finite(place) is not None else str(place)
