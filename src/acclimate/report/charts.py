"""Charts as inline SVG: pure functions from numbers to markup. Colours and type come from the page's style sheet.

Every chart is drawn for a width of 420 units so that its 12-unit type stays readable on a phone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from acclimate.report.figures import fixed, number

WIDTH, MARGIN, BAND = 420, 14, 14


@dataclass(frozen=True)
class Mark:
    """A point and its interval, if any. `kind` is a class of the style sheet: base, result, gain, loss, even."""

    kind: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One row of a forest plot: a name, its numbers in words, its marks one below the other."""

    name: str
    words: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Series:
    """Points (x, y) joined by a line; `dots` also marks each."""

    kind: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


def ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `about` of them.

    >>> ticks(0.0, 1.0), ticks(3.0, 3.0)
    ((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (3.0,))
    """
    if not (high - low) > abs(high) * 1e-12 or math.isinf(high - low):
        return (low,)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= rough * 0.8), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))


def forest(
    lines: Sequence[Line], axis: str, label: str, zero: bool = False, within: tuple[float, float] | None = None
) -> Markup:
    """Marks on one axis, a row for each line. `zero` draws the line of no difference; `within` fixes the ends."""
    values = [
        end for line in lines for mark in line.marks for end in (mark.value, mark.low, mark.high) if end is not None
    ]
    low, high = within or padded([*values, 0.0] if zero else values)
    x = linear(low, high, MARGIN, WIDTH - MARGIN)
    deepest = max(2, *(len(line.marks) for line in lines))  # one height for all rows: charts side by side line up
    parts, top = [], 6.0
    for line in lines:
        parts.append(words(0, top + 13, line.name, "name"))
        parts.append(words(WIDTH, top + 13, line.words, "words", "end"))
        for index, mark in enumerate(line.marks):
            parts.append(_mark(mark, x, top + 28 + BAND * (index + (deepest - len(line.marks)) / 2)))
        top += 34 + BAND * deepest
    places = ticks(low, high)
    grid = [rule(x(tick), 24, x(tick), top, "grid") for tick in places]
    nought = [rule(x(0.0), 24, x(0.0), top, "nought")] if zero else []
    names = [words(x(tick), top + 15, name, "tick", "middle") for tick, name in zip(places, named(places))]
    title = words(WIDTH / 2, top + 33, axis, "axis", "middle")
    return svg(top + 40, label, [*grid, *nought, *parts, *names, title])


def curve(
    series: Sequence[Series], ends: tuple[float, float], axes: tuple[str, str], label: str, floor: float | None = None
) -> Markup:
    """Lines over x from `ends`. `axes` names x and y, the latter above its axis; `floor` is the least y shown."""
    points = [point for each in series for point in each.points]
    height, (left, right), (across, up) = 220, ends, axes
    low, high = padded([y for _, y in points] + ([] if floor is None else [floor]))
    low = low if floor is None else max(low, floor)
    rows = ticks(low, high, 4)
    gutter = 12 + 7 * max(map(len, named(rows)))
    x = linear(left, right, gutter, WIDTH - MARGIN)
    y = linear(low, high, height - 44, 28)
    parts = [rule(gutter, y(tick), WIDTH, y(tick), "grid") for tick in rows]
    parts += [words(gutter - 6, y(tick) + 4, name, "tick", "end") for tick, name in zip(rows, named(rows))]
    steps = [tick for tick in ticks(left, right) if tick == int(tick)]
    parts += [words(x(tick), height - 26, name, "tick", "middle") for tick, name in zip(steps, named(steps))]
    parts += [_path(each, x, y) for each in series]
    titles = [words(0, 13, up, "axis"), words((gutter + WIDTH) / 2, height - 6, across, "axis", "middle")]
    return svg(height, label, [*parts, *titles])


def thinned(points: Sequence[tuple[float, float]], most: int = 160) -> tuple[tuple[float, float], ...]:
    """At most `most` points: means over runs of equal length, so a long noisy curve stays a curve (and a small file).

    >>> thinned([(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)], most=2)
    ((1.5, 3.0), (3.0, 6.0))
    """
    run = -(-len(points) // most)
    if run <= 1:
        return tuple(points)
    groups = [points[start : start + run] for start in range(0, len(points), run)]
    return tuple((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups)


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds them, with some room."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    return low - room, high + room


Scale = Callable[[float], float]


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Linear map from [low, high] to [start, end]; the middle where low == high."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def named(places: Sequence[float]) -> tuple[str, ...]:
    """The labels of an axis: all with the decimals that their distance needs.

    >>> named((0.0, 0.5, 1.0)), named((0.0, 2000.0)), named((0.0, 2e-5))
    (('0.0', '0.5', '1.0'), ('0', '2,000'), ('0', '2e-5'))
    """
    gap = min((b - a for a, b in pairwise(places)), default=0.0)
    if not gap or gap < 1e-4 or max(map(abs, places)) >= 1e9:
        return tuple(number(place) if place else "0" for place in places)
    return tuple(fixed(place, max(0, -math.floor(math.log10(gap) + 1e-9))) for place in places)


def _mark(mark: Mark, x: Scale, y: float) -> Markup:
    if mark.low is None or mark.high is None:
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(mark.kind, x(mark.value), y)
    return Markup(
        '<line class="span {0}" x1="{1:.1f}" y1="{4:.1f}" x2="{2:.1f}" y2="{4:.1f}"/>'
        '<circle class="{0}" cx="{3:.1f}" cy="{4:.1f}" r="5"/>'
    ).format(mark.kind, x(mark.low), x(mark.high), x(mark.value), y)


def _path(series: Series, x: Scale, y: Scale) -> Markup:
    places = [(f"{x(a):.1f}", f"{y(b):.1f}") for a, b in series.points]
    joined = Markup('<polyline class="trace {}" points="{}"/>').format(series.kind, " ".join(map(",".join, places)))
    if len(places) > 1 and not series.dots:
        return joined
    dots = [Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(series.kind, a, b) for a, b in places]
    return joined + Markup("").join(dots)


def rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    """A filled box; (x, y) is its upper left corner."""
    template = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return template.format(kind, x, y, width, height)


def words(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    """Text at a place."""
    template = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return template.format(kind, x, y, anchor, text)


def svg(height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """The parts as one picture, with `label` for who cannot see it."""
    template = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {:.0f}">{}</svg>')
    return template.format(label, WIDTH, height, Markup("").join(parts))
