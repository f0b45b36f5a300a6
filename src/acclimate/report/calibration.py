"""Are answers as often right as they are sure? Confidence against accuracy, in bins. Guo et al. 2017, ICML.

Confidence is the answered label's share of the probability of all labels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from acclimate.metrics.calibration import Bin, Ece, reliability
from acclimate.metrics.intervals import wilson
from acclimate.report.answers import SIDES, Rows, confidence, is_right
from acclimate.report.charts import WIDTH, linear, rectangle, rule, svg, words
from acclimate.report.figures import fixed, number

BINS = 10  # fewer than the fifteen of the metric `ece`, so that a page's few hundred rows fill them
TOP, PLOT, COUNTS = 30, 250, 60  # units: above the diagram, its height, that of the counts below it


def calibration(rows: Rows) -> dict[str, Any]:
    """`{"base": side, "result": side}`, a side being {n, accuracy, confidence, ece, bins}; {} where none was sure of anything.

    ece: {value, low, high, bins}, that of `metrics.calibration.Ece` over so many bins. bins: those that hold rows, each
    {low, high, n, confidence, accuracy, interval}, means over the bin's rows and Wilson's 95 % interval of the accuracy.
    Rows without shares of labels do not count.
    """
    found = {side: _side(rows, side) for side in SIDES}
    return found if all(found.values()) else {}


def _side(rows: Rows, side: str) -> dict[str, Any]:
    pairs = [(sure, float(is_right(row, side))) for row in rows if (sure := confidence(row, side)) is not None]
    if not pairs:
        return {}
    known, measure = np.array(pairs, np.float64), Ece((), BINS)
    sure, right = known.mean(0).tolist()
    low, high = measure.interval(known)
    return {
        "n": len(pairs),
        "accuracy": right,
        "confidence": sure,
        "ece": {"value": measure.combine(known), "low": low, "high": high, "bins": BINS},
        "bins": [_bin(each) for each in reliability(known, BINS)],
    }


def _bin(each: Bin) -> dict[str, Any]:
    low, high = wilson(round(each.accuracy * each.n), each.n)
    return {**each._asdict(), "interval": [float(low), float(high)]}


def diagram(side: Mapping[str, Any], kind: str) -> Markup:
    """Accuracy over confidence with intervals; on the broken line both are alike. Below it the rows in each bin.

    kind: a class of the style sheet, base or result.
    """
    x, y = linear(0.0, 1.0, 40, WIDTH - 14), linear(0.0, 1.0, PLOT, TOP)
    parts = [rule(40, y(tick / 5), WIDTH - 14, y(tick / 5), "grid") for tick in range(6)]
    parts += [words(34, y(tick / 5) + 4, f"{tick / 5:.1f}", "tick", "end") for tick in range(6)]
    parts.append(rule(x(0.0), y(0.0), x(1.0), y(1.0), "base-line"))
    spots = [(x(each["confidence"]), each) for each in side["bins"]]
    joined = " ".join(f"{a:.1f},{y(each['accuracy']):.1f}" for a, each in spots)
    parts += [rule(a, y(each["interval"][0]), a, y(each["interval"][1]), f"span {kind}") for a, each in spots]
    parts.append(Markup('<polyline class="trace {}" points="{}"/>').format(kind, joined))
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>')
    parts += [dot.format(kind, a, y(each["accuracy"])) for a, each in spots]
    parts += _counts(side["bins"], kind)
    bottom = PLOT + COUNTS
    parts += [words(x(tick / 5), bottom + 17, f"{tick / 5:.1f}", "tick", "middle") for tick in range(6)]
    parts += [words(0, 13, "share answered rightly", "axis")]
    parts += [words(WIDTH / 2, bottom + 36, "confidence (and the number of rows in each bin)", "axis", "middle")]
    told = "; ".join(
        f"confidence {fixed(each['confidence'], 2)}, right {fixed(each['accuracy'], 2)}, {number(each['n'])} rows"
        for each in side["bins"]
    )
    return svg(bottom + 42, f"Share answered rightly against confidence: {told}.", parts)


def _counts(filled: list[Mapping[str, Any]], kind: str) -> list[Markup]:
    x, most = linear(0.0, 1.0, 40, WIDTH - 14), max(each["n"] for each in filled)
    bottom, parts = PLOT + COUNTS, []
    for each in filled:
        left, right = x(each["low"]) + 1.5, x(each["high"]) - 1.5
        tall = max(1.0, each["n"] / most * (COUNTS - 26))
        parts.append(rectangle(left, bottom - tall, right - left, tall, f"count {kind}"))
        parts.append(words((left + right) / 2, bottom - tall - 4, number(each["n"]), "tick", "middle"))
    return parts
