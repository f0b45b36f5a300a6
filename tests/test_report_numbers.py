"""The numbers behind calibration curves, confusion matrices and box plots, by hand; and marks that stand where they are."""

import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from acclimate.metrics.calibration import Ece
from acclimate.metrics.intervals import wilson
from acclimate.report import pictures
from acclimate.report.answers import is_right
from acclimate.report.boxes import Boxed, Spread, boxes, spread
from acclimate.report.calibration import calibration, diagram
from acclimate.report.groups import groups
from acclimate.report.matrices import confusion
from acclimate.report.numbers import numbers
from tests import reports
from tests.runs import verb


def sure(target: str, before: float, after: float) -> dict[str, Any]:
    """A row whose `yes` has these shares before and after; what is over one half is answered."""
    sides = {}
    for side, share in (("base", before), ("result", after)):
        scores = {"no": math.log(1 - share) - 2, "yes": math.log(share) - 2}
        sides[side] = {"text": "yes" if share > 0.5 else "no", "scores": scores, "finish": ""}
    return {"target": target, "references": [target], **sides}


# Calibration


def test_calibration_by_hand() -> None:
    # Confidences after: 0.95 right, 0.91 wrong, 0.65 right, 0.75 right (a no); gaps 1 − 1.86, 1 − 0.65, 1 − 0.75.
    rows = [sure("yes", 0.6, 0.95), sure("no", 0.6, 0.91), sure("yes", 0.6, 0.65), sure("no", 0.6, 0.25)]
    found = calibration(rows)["result"]
    assert found["ece"]["value"] == pytest.approx((0.86 + 0.35 + 0.25) / 4, abs=1e-9)
    assert (found["n"], found["accuracy"], found["confidence"]) == (4, 0.75, pytest.approx(0.815, abs=1e-9))
    filled = {each["high"]: each for each in found["bins"]}
    assert list(filled) == [0.7, 0.8, 1.0]
    assert filled[1.0]["n"] == 2
    assert filled[1.0]["confidence"] == pytest.approx(0.93, abs=1e-9)
    assert filled[1.0]["accuracy"] == 0.5
    assert filled[1.0]["interval"] == pytest.approx([float(end) for end in wilson(1, 2)])
    before = calibration(rows)["base"]
    assert before["ece"]["value"] == pytest.approx(abs(2 - 2.4) / 4, abs=1e-9)  # one bin: the gaps cancel


def test_the_page_has_the_metric_over_ten_bins() -> None:
    chance = np.random.default_rng(3)
    rows = [sure("yes" if chance.random() < 0.6 else "no", *chance.uniform(0.01, 0.99, 2)) for _ in range(200)]
    pairs = [[max(s := math.exp(row["result"]["scores"]["yes"] + 2), 1 - s), is_right(row, "result")] for row in rows]
    found, measure = calibration(rows)["result"]["ece"], Ece(("no", "yes"), 10)
    assert found["value"] == pytest.approx(measure.combine(pairs), abs=1e-12)
    assert (found["low"], found["high"]) == pytest.approx(measure.interval(np.array(pairs, np.float64)), abs=1e-9)
    assert found["bins"] == 10
    shown = pictures.reliability({"calibration": calibration(rows)})[1]
    assert shown["told"].endswith(" over 10 bins")


def test_without_shares_of_labels_there_is_no_calibration() -> None:
    assert calibration(reports.summary()[2]) == {}
    assert calibration([]) == {}
    rows = [sure("yes", 0.4, 0.6)]
    rows[0]["base"]["scores"] = {}
    assert calibration(rows) == {}


def drawn(svg: str, tag: str, kind: str) -> list[dict[str, float]]:
    found = [each.attrib for each in ElementTree.fromstring(svg).iter(tag) if each.get("class") == kind]
    return [{name: float(value) for name, value in each.items() if name not in ("class", "points")} for each in found]


def test_the_diagram_stands_where_its_numbers_are() -> None:
    rows = [sure("yes", 0.6, 0.75), sure("yes", 0.6, 0.75), sure("no", 0.6, 0.75), sure("yes", 0.6, 0.95)]
    svg = diagram(calibration(rows)["result"], "result")
    first, second = drawn(svg, "circle", "result")
    (line,) = drawn(svg, "line", "base-line")
    across = line["x2"] - line["x1"]
    up = line["y1"] - line["y2"]
    assert first["cx"] == pytest.approx(line["x1"] + 0.75 * across, abs=0.1)
    assert first["cy"] == pytest.approx(line["y1"] - 2 / 3 * up, abs=0.1)
    assert (second["cx"], second["cy"]) == (pytest.approx(line["x1"] + 0.95 * across, abs=0.1), line["y2"])
    bars = drawn(svg, "rect", "count result")
    assert bars[0]["height"] == pytest.approx(3 * bars[1]["height"], abs=0.2)
    assert re.findall(r'text-anchor="middle">(\d)</text>', svg) == ["3", "1"]


def test_who_is_too_sure_is_told() -> None:
    rows = [sure("yes", 0.9, 0.55), sure("no", 0.9, 0.55)]
    before, after = pictures.reliability({"calibration": calibration(rows)})
    assert before["leaning"] == "surer than right: 90 % confident, 50 % right"
    assert after["leaning"] == "surer than right: 55 % confident, 50 % right"
    right = pictures.reliability({"calibration": calibration([sure("yes", 0.9, 0.99)])})
    assert [each["leaning"].split(" than")[0].split(":")[0] for each in right] == ["less sure", "as sure as right"]
    assert pictures.reliability({}) == []


# Confusion


def answered(target: str, before: str, after: str) -> dict[str, Any]:
    return {"target": target, "base": {"text": before}, "result": {"text": after}}


def test_confusion_by_hand() -> None:
    rows = [answered("yes", "no", " yes\n"), answered("yes", "no", "no"), answered("no", "no", "yes")]
    found = confusion(rows, ["no", "yes"])
    assert found == {
        "wanted": ["no", "yes"],
        "answered": ["no", "yes"],
        "folded": 0,
        "base": [[1, 0], [2, 0]],
        "result": [[0, 1], [1, 1]],
    }


def test_an_answer_that_is_no_label_has_a_column_on_both_sides() -> None:
    found = confusion([answered("yes", "no", "perhaps"), answered("odd", "no", "no")], ["no", "yes"])
    assert found["answered"] == ["no", "yes", "no label"]
    assert (found["base"], found["result"]) == ([[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 1]])


def test_rare_labels_share_a_row_and_a_column() -> None:
    rows = [answered("a", "a", "b")] * 3 + [answered("b", "c", "d")] + [answered("c", "a", "c")] * 2
    found = confusion(rows, ["d", "c", "b", "a"], most=3)
    assert (found["wanted"], found["folded"]) == (["c", "a", "2 other labels"], 2)
    assert found["base"] == [[0, 2, 0], [0, 3, 0], [1, 0, 0]]
    assert found["result"] == [[2, 0, 0], [0, 0, 3], [0, 0, 1]]


def test_at_most_twenty_rows_and_every_example_counted_once() -> None:
    names = [f"label {index}" for index in range(60)]
    report, _, rows = reports.classification(labels=names, n=300, before=0.1)
    found = numbers(report, rows)["confusion"]
    assert (len(found["wanted"]), found["folded"]) == (20, 41)
    assert [sum(map(sum, found[side])) for side in ("base", "result")] == [300, 300]
    shown = pictures.labels({**report, "confusion": found}, rows)
    assert shown is not None
    assert not shown["side_by_side"]
    shares = [sum(share for _, share in cells) for _, cells in shown["matrices"][1]["rows"]]
    assert shares == pytest.approx([1.0] * 20)


def test_recall_carries_its_interval() -> None:
    per_label = {"no": {"n": 4, "base": 0.25, "result": 0.5, "result_interval": {"low": 0.15, "high": 0.85}}}
    shown = pictures.labels({"task": {"labels": ["no", "yes"]}, "per_label": per_label}, [])
    assert shown is not None
    assert shown["rows"][0]["ends"] == {"base": None, "result": (0.15, 0.85)}
    assert shown["chart"].count('class="span result"') == 1


# Groups


def grouped(task: str | None, template: str | int | None, before: float, after: float) -> dict[str, Any]:
    row = {"metrics": {"rougeL": {"base": [before], "result": [after]}}}
    return row | {name: value for name, value in (("task", task), ("template", template)) if value is not None}


SCORES = {side: {"scores": {"rougeL": reports.estimate(0.5, 0.4, 0.6)}} for side in ("base", "result")}


def test_groups_by_hand() -> None:
    rows = [grouped("b", 0, 0.1, 0.3), grouped("a", 1, 0.2, 0.4), grouped("b", 0, 0.3, 0.5), grouped("a", 1, 0.4, 0.8)]
    rows += [grouped("b", 1, 0.5, 0.7), grouped("b", 1, 0.5, 0.9)]
    found = groups(SCORES, rows)
    assert found["metric"] == "rougeL"
    assert list(found["tasks"]) == ["a", "b"]
    task = found["tasks"]["b"]
    assert (task["n"], task["base"], task["result"]) == (4, pytest.approx(0.35), pytest.approx(0.6))
    assert {name: each["result"] for name, each in task["templates"].items()} == pytest.approx({"0": 0.4, "1": 0.8})
    assert task["templates"]["0"] == {"n": 2, "base": pytest.approx(0.2), "result": pytest.approx(0.4)}


def test_a_groups_score_is_the_metric_and_not_a_mean_of_rows() -> None:
    report, _, rows = reports.classification(n=40)
    for index, row in enumerate(rows):
        row["task"] = "abc"[index % 3]
    found = groups(report, rows)
    own = [row for row in rows if row["task"] == "b"]
    recalls = []
    for sign in reports.SIGNS:
        wanted = [row for row in own if row["target"] == sign]
        recalls.append(sum(row["result"]["text"] == sign for row in wanted) / len(wanted))
    assert found["tasks"]["b"]["result"] == pytest.approx(sum(recalls) / 2, abs=1e-9)  # balanced accuracy


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [grouped(None, None, 0.1, 0.2)] * 9,
        [grouped("one", 0, 0.1, 0.2)] * 9,  # a single group says no more than the score
        [grouped(f"text {index}", None, 0.1, 0.2) for index in range(9)],  # a column of its own for every row
    ],
)
def test_what_is_no_group_is_left_out(rows: list[dict[str, Any]]) -> None:
    assert groups(SCORES, rows) == {}
    assert pictures.groups({}) is None


def test_templates_without_tasks_are_one_box() -> None:
    rows = [grouped(None, f"t{index % 6}", 0.1, index % 6 / 10) for index in range(24)]
    found = groups(SCORES, rows)
    shown = pictures.groups({"groups": found})
    assert shown is not None
    assert (list(found["tasks"]), shown["left_out"], shown["spread"]) == ([""], 0, True)
    assert len(drawn(shown["chart"], "rect", "box result")) == 1
    assert "0.10 → 0.25 (n = 24, 6 wordings)" in shown["chart"]


def test_quartiles_and_the_box_that_shows_them() -> None:
    values = (0.0, 0.2, 0.4, 0.6, 1.0)
    assert spread(values) == Spread(0.0, 0.2, 0.4, 0.6, 1.0)
    assert spread((1.0, 2.0)) == Spread(1.0, 1.25, 1.5, 1.75, 2.0)
    svg = boxes([Boxed("a", "", {"base": values, "result": (0.5, 0.5)})], "score", "label", (0.0, 1.0))
    (box,), (median,), (whisker,) = (
        drawn(svg, tag, f"{kind} base") for tag, kind in (("rect", "box"), ("line", "median"), ("line", "span"))
    )
    assert (whisker["x1"], whisker["x2"]) == (14.0, 406.0)
    assert (box["x"], box["width"]) == (pytest.approx(14 + 0.2 * 392), pytest.approx(0.4 * 392))
    assert median["x1"] == median["x2"] == pytest.approx(14 + 0.4 * 392)
    assert drawn(svg, "rect", "box result") == []  # two points make no box
    assert [each["cx"] for each in drawn(svg, "circle", "result")] == [210.0, 210.0]


def test_only_what_the_run_has_is_told() -> None:
    assert numbers({}, []) == {}
    assert numbers(*reports.summary()[::2]) == {}
    assert list(numbers(*reports.classification(n=20)[::2])) == ["calibration", "confusion"]


def test_a_run_writes_the_numbers_behind_its_pictures(home: Any, tmp_path: Any) -> None:
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    named = [{**row, "task": f"task {i // 2 % 2}", "template": i // 2 % 2} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    data = (f"data.{part}={tmp_path}/rows.jsonl" for part in ("train", "test"))
    verb("run", home / "recipe.yaml", *data, "training.steps=2", "--out", tmp_path / "run", "--quiet")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    n = len(written)
    found = numbers(report, written)
    assert list(found) == ["calibration", "confusion", "groups"]
    assert {name: report[name] for name in found} == found
    assert report["calibration"]["result"]["n"] == sum(map(sum, report["confusion"]["result"])) == n
    assert sum(task["n"] for task in report["groups"]["tasks"].values()) == n
    entry = report["per_label"]["good"]
    low, high = wilson(entry["result"] * entry["n"], entry["n"])
    assert entry["result_interval"] == pytest.approx({"low": float(low), "high": float(high)})
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<li data-is=") == n
    assert all(f'id="{name}"' in page for name in ("calibration", "groups", "rows"))
