"""Box plots: how scores spread, a row of boxes for each name. Tukey 1977, Exploratory Data Analysis, chapter 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from acclimate.report.charts import MARGIN, WIDTH, Scale, linear, named, padded, rectangle, rule, svg, ticks, words

FEWEST = 5  # values that make a box; fewer are shown as points alone
DOTS = 60  # of a box at most
BAND, HALF = 18, 6  # units: from box to box, and half a box's height


@dataclass(frozen=True)
class Spread:
    """Least, lower quartile, median, upper quartile and greatest of some values."""

    least: float
    lower: float
    median: float
    upper: float
    most: float


@dataclass(frozen=True)
class Boxed:
    """One row: a name, its numbers in words, and values by class of the style sheet (base, result)."""

    name: str
    words: str
    values: Mapping[str, tuple[float, ...]]


def spread(values: Sequence[float]) -> Spread:
    """Quartiles by linear interpolation (Hyndman & Fan 1996, type 7).

    >>> spread([1, 2, 3, 4, 10])
    Spread(least=1.0, lower=2.0, median=3.0, upper=4.0, most=10.0)
    """
    return Spread(*map(float, np.quantile(np.array(values, np.float64), (0.0, 0.25, 0.5, 0.75, 1.0))))


def boxes(lines: Sequence[Boxed], axis: str, label: str, within: tuple[float, float] | None = None) -> Markup:
    """Every value as a point; from FEWEST on a box from quartile to quartile and a line at the median, whiskers to the ends."""
    low, high = within or padded([v for line in lines for values in line.values.values() for v in values])
    x = linear(low, high, MARGIN, WIDTH - MARGIN)
    parts, top = [], 6.0
    for line in lines:
        parts += [words(0, top + 13, line.name, "name"), words(WIDTH, top + 13, line.words, "words", "end")]
        top += 30
        for kind, values in line.values.items():
            parts += _box(values, kind, x, top)
            top += BAND
        top += 4
    marks = ticks(low, high)
    grid = [rule(x(tick), 24, x(tick), top, "grid") for tick in marks]
    names = [words(x(tick), top + 15, name, "tick", "middle") for tick, name in zip(marks, named(marks))]
    title = words(WIDTH / 2, top + 33, axis, "axis", "middle")
    return svg(top + 40, label, [*grid, *parts, *names, title])


def _box(values: Sequence[float], kind: str, x: Scale, y: float) -> list[Markup]:
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>')
    if len(values) < FEWEST:
        return [dot.format(kind, x(value), y, 5) for value in values]
    found = spread(values)
    return [
        rule(x(found.least), y, x(found.most), y, f"span {kind}"),
        rectangle(x(found.lower), y - HALF, x(found.upper) - x(found.lower), 2 * HALF, f"box {kind}"),
        *(dot.format(kind, x(value), y, 2.5) for value in sorted(values)[:: -(-len(values) // DOTS)]),
        rule(x(found.median), y - HALF, x(found.median), y + HALF, f"median {kind}"),
    ]
