"""Marks stand where their numbers are, inside the picture, on round ticks."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.report.charts import WIDTH, Line, Mark, Series, curve, forest, named, thinned, ticks

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


def drawn(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    """Attributes of every element of a tag and class, in order."""
    return [each.attrib for each in ElementTree.fromstring(svg).iter(tag) if each.get("class") == kind]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.53, 0.91, (0.6, 0.7, 0.8, 0.9)),
        (-0.3, 0.6, (-0.2, 0.0, 0.2, 0.4, 0.6)),
        (1.0, 40.0, (10.0, 20.0, 30.0, 40.0)),
        (7.0, 7.0, (7.0,)),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert ticks(low, high) == expected


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_ticks_are_few_rising_and_inside(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    places = ticks(low, high)
    slack = (high - low) * 1e-6
    assert 1 <= len(places) <= 8
    assert all(low - slack <= place <= high + slack for place in places)
    assert list(places) == sorted(set(places))
    assert len(set(named(places))) == len(places)


def test_marks_stand_in_proportion_to_their_numbers() -> None:
    svg = forest([Line("a", "", (Mark("base", 0.25, 0.0, 0.5), Mark("result", 1.0)))], "x", "label", within=(0.0, 1.0))
    span, base, result = (
        drawn(svg, "line", "span base")[0],
        *drawn(svg, "circle", "base"),
        *drawn(svg, "circle", "result"),
    )
    left, right = 14.0, WIDTH - 14.0  # the margins, where 0 and 1 are
    assert float(span["x1"]) == left
    assert float(span["x2"]) == pytest.approx((left + right) / 2)
    assert float(base["cx"]) == pytest.approx(left + 0.25 * (right - left), abs=0.05)
    assert float(result["cx"]) == right
    assert float(base["cy"]) == float(span["y1"]) < float(result["cy"])


def test_the_line_of_no_difference_is_drawn_at_zero() -> None:
    svg = forest([Line("a", "", (Mark("gain", 0.3, 0.2, 0.4),))], "difference", "label", zero=True)
    nought, mark = drawn(svg, "line", "nought")[0], drawn(svg, "circle", "gain")[0]
    assert nought["x1"] == nought["x2"]
    assert 0 < float(nought["x1"]) < float(drawn(svg, "line", "span gain")[0]["x1"]) < float(mark["cx"])
    assert drawn(forest([Line("a", "", (Mark("gain", 0.3),))], "x", "label"), "line", "nought") == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6), st.booleans())
def test_nothing_leaves_the_picture(triples: list[tuple[float, float, float]], zero: bool) -> None:
    lines = []
    for triple in triples:
        low, middle, high = sorted(triple)
        lines.append(Line("name", "words", (Mark("base", middle, low, high), Mark("result", middle))))
    svg = forest(lines, "axis", "label", zero=zero)
    height = float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])
    xs = [float(value) for value in re.findall(r'\b(?:x|x1|x2|cx)="([^"]*)"', svg)]
    ys = [float(value) for value in re.findall(r'\b(?:y|y1|y2|cy)="([^"]*)"', svg)]
    assert all(0 <= x <= WIDTH for x in xs)
    assert all(0 <= y <= height for y in ys)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.booleans())
def test_curves_stay_inside_too(points: list[tuple[int, float]], floored: bool) -> None:
    series = Series("train", thinned(sorted((float(x), abs(y) if floored else y) for x, y in points)))
    ends = float(min(x for x, _ in points)), float(max(x for x, _ in points))
    svg = curve([series], ends, ("step", "loss"), "label", floor=0.0 if floored else None)
    path = drawn(svg, "polyline", "trace train")[0]["points"]
    places = [tuple(map(float, place.split(","))) for place in path.split()]
    assert len(places) == len(series.points) <= 160
    assert all(0 <= x <= WIDTH and 0 <= y <= 220 for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)


def test_a_lower_loss_is_drawn_lower() -> None:
    svg = curve([Series("train", ((1.0, 2.0), (2.0, 1.0)))], (1.0, 2.0), ("step", "loss"), "label", floor=0.0)
    first, last = (float(place.split(",")[1]) for place in drawn(svg, "polyline", "trace train")[0]["points"].split())
    assert last > first  # y grows downwards


def test_one_point_is_a_dot() -> None:
    svg = curve([Series("train", ((1.0, 2.0),))], (1.0, 1.0), ("step", "loss"), "label")
    assert len(drawn(svg, "circle", "dot train")) == 1


def test_thinning_takes_means_of_equal_runs() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 401)]
    few = thinned(points, most=100)
    assert few == tuple((4.0 * run + 2.5, 0.5) for run in range(100))
    assert thinned(points[:100], most=100) == tuple(points[:100])


def test_names_are_escaped() -> None:
    svg = forest([Line("<b>&", '"', (Mark("base", 1.0),))], "<i>", '"><script>')
    root = ElementTree.fromstring(svg)
    assert {each.tag for each in root.iter()} == {"svg", "text", "circle", "line"}
    assert root.attrib["aria-label"] == '"><script>'
    assert [each.text for each in root.iter("text")][:2] == ["<b>&", '"']
