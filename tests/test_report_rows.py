"""The rows to look through: which are kept, what each is marked with, and texts that stay text."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from acclimate.report.browser import MOST, Browser, browser
from acclimate.report.numbers import numbers
from acclimate.report.page import page
from tests import reports
from tests.test_report_numbers import sure

LABELS = {"task": {"labels": ["no", "yes"], "metrics": ["accuracy"]}}


def kinds(found: Browser) -> dict[int, tuple[str, ...]]:
    return {entry.place: entry.kinds for entry in found.entries}


def test_labels_are_right_or_wrong_changed_and_sure_or_not() -> None:
    rows = [
        sure("yes", 0.9, 0.95),  # right both times
        sure("yes", 0.2, 0.9),  # fixed
        sure("yes", 0.9, 0.45),  # broken, and leads by 0.1 only
        sure("yes", 0.2, 0.1),  # wrong both times
        sure("no", 0.1, 0.41),  # right, leads by 0.18
        sure("no", 0.1, 0.39),  # right, leads by 0.22
    ]
    found = browser(LABELS, rows)
    assert kinds(found) == {
        0: (),
        1: ("wrong-before", "fixed"),
        2: ("wrong-after", "broken", "low"),
        3: ("wrong-before", "wrong-after"),
        4: ("low",),
        5: (),
    }
    assert [entry.place for entry in found.entries] == [1, 2, 3, 4, 0, 5]
    names = {name: count for _, name, count in found.filters}
    assert names == {"Wrong before": 2, "Wrong after": 2, "Fixed": 1, "Broken": 1, "Low confidence": 2}
    assert (found.total, found.exact, found.by) == (6, True, "")
    assert found.entries[1].sure == pytest.approx(0.55)
    assert found.entries[1].notes == ("yes 90 %, no 10 %", "no 55 %, yes 45 %")


def test_every_changed_row_comes_before_any_other() -> None:
    rows = [sure("yes", 0.9, 0.9) for _ in range(MOST)] + [sure("yes", 0.2, 0.9), sure("yes", 0.2, 0.2)]
    found = browser(LABELS, rows)
    assert len(found.entries) == MOST
    assert [entry.place for entry in found.entries[:3]] == [MOST, MOST + 1, 0]
    assert found.total == MOST + 2


def scored(index: int, before: float, after: float, metric: str = "rouge1") -> dict[str, Any]:
    sides = {side: {"text": f"{side} {index}", "scores": {}, "finish": "stop"} for side in ("base", "result")}
    values = {metric: {"base": [before], "result": [after]}}
    return {"where": f"f:{index}", "prompt": f"p {index}", "target": "t", **sides, "metrics": values}


def report_of(metric: str) -> dict[str, Any]:
    return {side: {"scores": {metric: reports.estimate(0.5, 0.4, 0.6)}} for side in ("base", "result")}


def test_texts_are_better_or_worse_by_their_score_the_greatest_change_first() -> None:
    rows = [scored(0, 0.2, 0.2), scored(1, 0.2, 0.3), scored(2, 0.9, 0.4), scored(3, 0.1, 0.3)]
    rows[3]["result"]["finish"] = "length"
    found = browser(report_of("rouge1"), rows)
    assert [entry.place for entry in found.entries] == [2, 3, 1, 0]
    assert kinds(found) == {0: (), 1: ("better",), 2: ("worse",), 3: ("better", "cut")}
    assert (found.exact, found.by, found.entries[0].change) == (False, "rouge1", pytest.approx(-0.5))
    assert found.entries[1].notes == ("ROUGE-1 0.10", "ROUGE-1 0.30, cut off at the length limit")
    assert all(entry.sure is None for entry in found.entries)


def test_a_score_of_nothing_or_one_is_right_or_wrong() -> None:
    found = browser(report_of("exact_match"), [scored(0, 0.0, 1.0, "exact_match"), scored(1, 1.0, 0.0, "exact_match")])
    assert kinds(found) == {0: ("wrong-before", "fixed"), 1: ("wrong-after", "broken")}


def test_numbers_go_by_their_distance() -> None:
    rows = [scored(0, 0.0, 0.0) | {"target": "3.5", "metrics": {"pearson": {"base": [3.5, 1], "result": [3.5, 3]}}}]
    rows.append(rows[0] | {"target": "1.0"})
    for row in rows:
        row["base"], row["result"] = ({"text": text, "scores": {}} for text in ("1", "3"))
    found = browser(report_of("pearson"), rows)
    assert found.by == "absolute_error"
    assert kinds(found) == {0: ("better",), 1: ("worse",)}
    assert [entry.change for entry in found.entries] == [2.0, -2.0]
    assert found.entries[0].notes == ("absolute error 2.50", "absolute error 0.50")


def test_tags_are_right_where_all_names_are() -> None:
    metrics = {"entity_f1": {"base": [0, 1, 1], "result": [1, 1, 1]}}
    row = scored(0, 0.0, 0.0) | {"target": "PER: Ada", "metrics": metrics}
    row["base"] = {"text": "", "scores": {}, "tags": ["O", "O"]}
    row["result"] = {"text": "PER: Ada", "scores": {}, "tags": ["B-PER", "O"]}
    found = browser(report_of("entity_f1"), [row])
    assert (found.exact, kinds(found)) == (True, {0: ("wrong-before", "fixed")})


def test_rows_that_nothing_can_be_said_of_are_listed_all_the_same() -> None:
    rows = [{"row": 4, "prompt": "p"}, {}]
    found = browser({}, rows)
    assert [(entry.where, entry.kinds, entry.change) for entry in found.entries] == [
        ("row 4", (), None),
        ("row 1", (), None),
    ]
    assert found.filters == ()


def test_what_the_prompt_was_made_of_is_told() -> None:
    row = sure("yes", 0.9, 0.8) | {"truncated": 12, "task": "copa", "template": 0}
    row["result"] |= {"shots": 4, "rationale": "Because."}
    (entry,) = browser(LABELS, [row]).entries
    assert entry.remarks == (
        "prompt truncated by 12 tokens",
        "0 before, 4 after worked examples",
        "task copa",
        "template 0",
    )
    assert entry.rationales == ("", "Because.")


def test_what_all_prompts_share_is_not_said_again() -> None:
    rows = [sure("yes", 0.9, 0.8) | {"prompt": f"Classify this review: {text}\nSentiment:"} for text in ("bad", "best")]
    assert [entry.glimpse for entry in browser(LABELS, rows).entries] == ["bad", "best"]
    same = [sure("yes", 0.9, 0.8) | {"prompt": "Which one?"}] * 2
    assert [entry.glimpse for entry in browser(LABELS, same).entries] == ["Which one?"] * 2


# In the page


class Rows(HTMLParser):
    """Attributes of the items of the list, of its buttons and options, and the items' texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.items: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.given: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text.split('<section id="rows"')[1].split("</section>")[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.given.append((tag, dict(attrs)))
        if tag == "li":
            self.items.append(dict(attrs))
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def whole(report: dict[str, Any], log: Any, rows: Any) -> str:
    return page({**report, **numbers(report, rows)}, log, rows)


def test_the_buttons_find_as_many_rows_as_they_say() -> None:
    report, log, rows = reports.classification(n=120)
    text = whole(report, log, rows)
    read = Rows(text)
    assert len(read.items) == 120
    pairs = [(row["base"]["text"] == row["target"], row["result"]["text"] == row["target"]) for row in rows]
    for item in read.items:
        marks = str(item["data-is"]).split()
        right = pairs[int(str(item["data-place"]))]
        assert (("wrong-before" in marks), ("wrong-after" in marks)) == (not right[0], not right[1])
        assert ("fixed" in marks, "broken" in marks) == (right == (False, True), right == (True, False))
    buttons = re.findall(r'data-filter="([^"]*)" aria-pressed="(\w+)">[^<]*<small>(\d+)</small>', text)
    assert [(name, pressed) for name, pressed, _ in buttons][:2] == [("", "true"), ("wrong-before", "false")]
    for name, _, count in buttons:
        assert sum(not name or name in str(item["data-is"]).split() for item in read.items) == int(count)
    assert [item["data-order"] for item in read.items] == [str(index) for index in range(120)]


def test_without_the_script_the_list_is_whole_and_no_dead_control_shows() -> None:
    report, log, rows = reports.classification(n=30)
    read = Rows(whole(report, log, rows))
    (controls,) = [given for tag, given in read.given if given.get("class") == "controls"]
    assert "hidden" in controls
    assert not [tag for tag, given in read.given if tag in ("li", "ol", "details") and "hidden" in given]
    assert all(GOOD in "".join(read.texts) for GOOD in reports.GOOD)


def test_orders_offered_are_those_that_the_rows_have_numbers_for() -> None:
    values = {}
    for name, run in (("labels", reports.classification(n=10)), ("texts", reports.summary(n=10))):
        read = Rows(whole(*run))
        values[name] = [given["value"] for tag, given in read.given if tag == "option"]
        for order in values[name]:
            numbers_of = [str(item[f"data-{str(order).split()[0]}"]) for item in read.items]
            assert all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", number) for number in numbers_of)
    assert values["labels"] == ["order", "sure", "sure down", "place"]
    assert values["texts"] == ["order", "change", "change down", "place"]


@pytest.mark.parametrize(
    "attack", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b x="', "]]>"]
)
def test_hostile_rows_stay_text(attack: str) -> None:
    report, log, rows = reports.classification(labels=("no", attack), n=6)
    for row in rows:
        row |= {"prompt": f"a {attack}", "where": attack, "task": attack}
        row["result"] |= {"rationale": attack}
    text = whole(report, log, rows)
    read = Rows(text)
    assert len(read.items) == 6
    assert text.count("<script") == 1
    assert "<img" not in text
    assert all(shown.count(attack) >= 4 for shown in read.texts)
    assert not [tag for tag, _ in read.given if tag in ("img", "script")]
    assert not any(name.startswith("on") or name == "x" for _, given in read.given for name in given)


def test_no_row_changed_or_no_row_at_all() -> None:
    text = whole(LABELS, [], [sure("yes", 0.9, 0.9)] * 3)
    assert 'data-filter="fixed"' not in text
    assert len(Rows(text).items) == 3
    assert 'id="rows"' not in whole(LABELS, [], [])


def test_ten_thousand_rows_make_no_larger_a_page() -> None:
    report, log, some = reports.classification(n=2 * MOST)
    few, many = (whole(report, log, some * times) for times in (1, 10))
    assert f"{MOST} of 10,000 rows" in many
    assert len(Rows(many).items) == MOST
    assert len(many) < 1.02 * len(few)
