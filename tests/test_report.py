"""The page: whole, offline, inert whatever the texts hold, the same for the same run, and of bounded size."""

import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from copy import deepcopy
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acclimate.report
from acclimate.report import verdict
from acclimate.report.numbers import numbers
from acclimate.report.page import page as drawn
from tests import reports

VOID = {"meta", "br", "input"}
SELF_CLOSED = {"circle", "line", "polyline", "rect"}
KNOWN_TAGS = """
    html head meta title style body header main section footer nav div p h1 h2 h3 small ul li a dl dt dd article b span
    table caption thead tbody tr th td figure figcaption svg text circle line polyline details summary mark code pre br
    rect ol button label input select option output script
"""
KNOWN_ATTRIBUTES = """
    lang charset name content http-equiv class id href aria-labelledby aria-label aria-hidden role tabindex scope style
    data-name dir viewbox x y x1 x2 y1 y2 cx cy r points text-anchor width height
    data-is data-filter data-order data-place data-sure data-change hidden type value aria-pressed aria-live
"""
TAGS, ATTRIBUTES = set(KNOWN_TAGS.split()), set(KNOWN_ATTRIBUTES.split())


def page(report: Mapping[str, Any], log: Sequence[Any], rows: Sequence[Any]) -> str:
    """The page of a run with the numbers that its report.json holds."""
    return drawn({**report, **numbers(report, rows)}, log, rows)


class Reader(HTMLParser):
    """Every element with its attributes and own text; fails on tags that do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (innermost tag, text)
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSED
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return (
            "".join(text for tag, text in self.texts if tag not in ("style", "script"))
            .replace("\u00a0", " ")
            .replace("\u2011", "-")
        )


RUNS = {
    "better": reports.classification(),
    "worse": reports.classification(before=0.8, after=0.6, seed=3),
    "same": reports.classification(before=0.7, after=0.71, seed=5, n=200),
    "tiny": reports.classification(n=8),
    "five labels": reports.classification(labels=("joy", "anger", "sadness", "surprise", "fear"), n=200, before=0.3),
    "sixty labels": reports.classification(labels=[f"intent {index:02}" for index in range(60)], n=300, before=0.1),
    "summaries": reports.summary(),
}
everywhere = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


@everywhere
def test_verdict_first_then_what_it_rests_on(run: reports.Run) -> None:
    text = page(*run)
    read, told = Reader(text), verdict(run[0])
    assert read.words.count(told.headline) >= 2  # title and heading
    assert all(sentence in read.words for sentence in told.sentences)
    order = [str(each["id"]) for each in read.all("section")]
    wanted = ["scores", "training", "labels", "calibration", "examples", "rows", "input", "forgetting", "resources"]
    of_labels = ("labels", "calibration") if run[0]["task"]["labels"] else ()
    wanted = [name for name in wanted if name not in ("labels", "calibration") or name in of_labels]
    assert order == [*wanted, "data", "provenance"]
    assert text.index("<h1>") < text.index('id="scores"')
    assert [each["href"] for each in read.all("a")] == [f"#{name}" for name in order]


def test_what_was_learned_is_shown() -> None:
    report, log, predictions = deepcopy(RUNS["better"])
    report["learned"] = {
        "Nearest": {"1": {"good<b>": 0.913, " fine": 0.5}, "2": {"bad": -0.2}},
        "Gates": {"layer 0": {"LoRA": 0.25, "adapter": 0.5}, "layer 1": {"LoRA": 0.75, "adapter": 0.125}},
    }
    read = Reader(page(report, log, predictions))
    assert "good<b> 0.91 · fine 0.50" in read.words
    assert "bad −0.20" in read.words
    assert [text for _, text in read.texts if text in ("layer 1", "0.75", "0.12")] == ["layer 1", "0.75", "0.12"]
    assert "#learned" in [each["href"] for each in read.all("a")]


@everywhere
def test_well_formed_and_accessible(run: reports.Run) -> None:
    read = Reader(page(*run))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {each["aria-labelledby"] for each in read.all("section")} <= set(ids)
    assert all(each.get("scope") in ("col", "row") for each in read.all("th"))
    assert all(each["role"] == "img" and each["aria-label"] for each in read.all("svg"))
    tags = [tag for tag, _ in read.elements]
    assert tags.count("table") == tags.count("caption")
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert read.all("html") == [{"lang": "en"}]


@everywhere
def test_nothing_is_fetched(run: reports.Run) -> None:
    text = page(*run)
    read = Reader(text)
    assert {tag for tag, _ in read.elements} <= TAGS  # no link, img, iframe, form, object
    assert {name for _, attributes in read.elements for name in attributes} <= ATTRIBUTES  # no src, no on…
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", text)
    (policy,) = [each["content"] for each in read.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    (script,) = [text for tag, text in read.texts if tag == "script"]  # the page's own, and no other may run
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@everywhere
def test_same_run_same_bytes_and_the_run_untouched(run: reports.Run) -> None:
    copy = deepcopy(run)
    assert page(*run) == page(*copy)
    assert run == copy


ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></pre><iframe src=//evil.example>",
    "{{ 7 * 7 }}{% for x in y %}",
    "&lt;script&gt; &#60;",
    "]]><!--",
    "\u202egnp.exe \u2066 \u200f \U000e0041",
    "\x00\x07\x1b[31m\x7f\x85\ufffe",
    "\ud800 alone",
    "--share: 1; background: url(//evil.example)",
]


def poisoned(attack: str) -> reports.Run:
    """A run in which every text that comes from outside is `attack`."""
    report, log, rows = deepcopy(reports.classification(labels=("no", attack), n=12))
    report |= {"model": attack, "method": attack, "objective": attack, "warnings": [attack]}
    report |= {"recipe": {attack: attack}, "machine": {attack: attack}}
    report["data"] = {"train": {"name": attack, "rows": 1, "dropped": {attack: 1}, "sha256": attack}}
    report["rendering"]["sample"] = [[attack, False], [attack, True]]
    report["provenance"] |= {"base": attack, "command": attack, "versions": {attack: attack}}
    for side in ("base", "result"):
        report[side]["scores"][attack] = reports.estimate(0.5, 0.4, 0.6, n=12)
    report["difference"][attack] = reports.estimate(0.1, -0.1, 0.3, p=0.5)
    for row in rows:
        row |= {"prompt": attack, "where": attack}
    return report, log, rows


def check_inert(text: str) -> Reader:
    text.encode("utf-8")
    read = Reader(text)
    assert {tag for tag, _ in read.elements} <= TAGS
    assert len(read.all("script")) == 1
    assert {name for _, attributes in read.elements for name in attributes} <= ATTRIBUTES
    assert all(re.fullmatch(r"--share: \d\.\d\d", str(each["style"])) for _, each in read.elements if "style" in each)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    return read


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_shown_and_do_nothing(attack: str) -> None:
    words = check_inert(page(*poisoned(attack))).words
    if attack.isprintable():
        assert words.count(attack) > 10


def test_unseen_characters_are_shown() -> None:
    words = Reader(page(*poisoned("a\u202eb\x00c\ud800d"))).words
    assert "a⟨U+202E⟩b␀c�d" in words


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_inert(text: str) -> None:
    check_inert(page(*poisoned(text)))


def test_long_text_is_clipped_and_says_so() -> None:
    read = Reader(page(*poisoned("start " + "x" * 100_000 + " end")))
    shown = max((text for _, text in read.texts), key=len)
    assert len(shown) < 25_000
    assert re.search(r"start x+ … \[\d[\d,]+ characters left out\] … x+ end", read.words)


def test_ten_thousand_predictions_make_a_page_below_two_megabytes() -> None:
    report, _, _ = reports.classification(labels=[f"label {index}" for index in range(300)], n=300)
    row = reports.classification(n=1)[2][0]
    rows = [row | {"prompt": f"{index} " + "word " * 4000, "target": f"label {index % 300}"} for index in range(10_000)]
    report["warnings"] = ["w" * 10_000] * 1000
    report["provenance"]["versions"] = {f"package{index}": "1.0" for index in range(5000)}
    report["rendering"]["sample"] = [[f"token{index} " * 50, index % 2 == 0] for index in range(5000)]
    text = page(report, reports.losses(20_000), rows)
    assert len(text.encode()) < 2_000_000
    assert "10,000" in Reader(text).words
    trace = re.search(r'<polyline class="trace train" points="([^"]*)"', text)
    assert trace is not None
    assert len(trace[1].split()) == 160
    assert "Each point is the mean of 125 steps." in text


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(RUNS["better"][0]))), st.sampled_from(list(RUNS)), st.booleans(), st.booleans())
def test_whatever_is_absent_is_left_out(absent: set[str], name: str, log: bool, rows: bool) -> None:
    report, losses, predictions = RUNS[name][0], RUNS[name][1], RUNS[name][2][:40]
    kept = {key: value for key, value in report.items() if key not in absent}
    read = Reader(page(kept, losses if log else [], predictions if rows else []))
    sections = {each["id"] for each in read.all("section")}
    assert ("training" in sections) == log
    assert ("examples" in sections) == rows
    assert ("forgetting" in sections) == ("forgetting" not in absent)
    assert "None" not in read.words


def test_ordinary_questions_are_answered_side_by_side() -> None:
    report, losses, rows = RUNS["better"]
    told = {
        "forgetting": {
            **report["forgetting"],
            "answers": [{"prompt": "Its name?", "base": "Charlie <b>", "result": " "}],
        }
    }
    text = page({**report, **told}, losses, rows)
    assert "Its name?" in text
    assert "Charlie &lt;b&gt;" in text
    assert "(nothing)" in text
    without = {name: value for name, value in report["forgetting"].items() if name != "answers"}
    assert "ordinary questions" not in page({**report, "forgetting": without}, losses, rows)


def test_an_empty_report_says_that_nothing_was_compared() -> None:
    read = Reader(page({}, [], []))
    assert "Nothing was compared" in read.words
    assert [each["id"] for each in read.all("section")] == ["provenance"]


def test_warnings_stand_before_the_scores() -> None:
    text = page(*reports.summary())
    assert text.index("14 prompts of the test set") < text.index('id="scores"')


def cells(text: str) -> list[str]:
    return re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", text)


def test_the_score_table_holds_the_reports_numbers() -> None:
    section = page(*reports.summary()).split('id="scores"')[1].split("</section>")[0]
    row = next(each for each in re.findall(r"<tr>.*?</tr>", section, re.DOTALL) if "ROUGE-2" in each)
    values = [re.sub(r"<small>.*", "", cell) for cell in cells(row)[1:]]
    intervals = re.findall(r"<td[^>]*>[^<]*<small>([^<]*)", row)
    assert values == ["0.064", "0.071", "+0.007", "0.22", "120"]
    assert intervals == ["0.053 to 0.076", "0.059 to 0.084", "−0.004 to 0.018"]
    assert "no clear difference" in row


def test_confusion_is_shown_as_counted() -> None:
    report, log, rows = reports.classification(n=200)
    text = page(report, log, rows)
    after = text.split("<caption>After</caption>")[1].split("</table>")[0]
    shown = [int(cell.split("<")[0]) for cell in cells(after.split("<tbody>")[1]) if cell[0].isdigit()]
    pairs = [(row["target"], row["result"]["text"]) for row in rows]
    assert shown == [pairs.count((target, answer)) for target in reports.SIGNS for answer in reports.SIGNS]
    assert after.count('class="hit"') == 2


def test_scored_text_is_marked_and_special_tokens_stand_out() -> None:
    text = page(*reports.classification())
    shown = text.split('<div class="rendered">')[1].split("</div>")[0]
    marked = re.findall(r"<mark>(.*?)</mark>", shown, re.DOTALL)
    plain = "".join(re.sub("<[^>]*>", "", each).replace("scored: ", "") for each in marked)
    assert plain == "positive&lt;|im_end|&gt;"
    assert shown.count('<span class="special">&lt;|im_start|&gt;</span>') == 2
    assert "user↵\nClassify" in shown
    assert "960 of 40,960 training tokens are scored (2.3\u00a0%). 2 training examples were truncated." in text


def test_losses_that_are_no_numbers_are_not_drawn() -> None:
    report, _, rows = reports.classification(n=8)
    log = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": math.inf},
        {"step": 4, "loss": 1.0},
    ]
    text = page(report, log, rows)
    trace = re.search(r'<polyline class="trace train" points="([^"]*)"', text)
    assert trace is not None
    assert len(trace[1].split()) == 2
    assert not re.search(r"\b(nan|inf)\b", text.split("<body>")[1])
    assert 'id="training"' not in page(report, log[1:3], rows)


def test_free_text_shows_references_outputs_and_scores_of_the_row() -> None:
    report, log, rows = reports.summary()
    words = Reader(page(report, log, rows)).words
    assert "As they come" in words
    assert "Two people agree on who hears about twelve plans." in words
    first = rows[0]["metrics"]["rouge1"]
    assert f"ROUGE-1 {first['base'][0]:.2f} → {first['result'][0]:.2f}" in words
    assert "prompt truncated by 312 tokens" in words


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def palettes() -> Mapping[str, dict[str, str]]:
    style = (Path(acclimate.report.__file__).parent / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return {
        name: dict(re.findall(r"--(\w+): (#\w{6})", block)) for name, block in zip(("light", "dark", "print"), blocks)
    }


@pytest.mark.parametrize("name", ["light", "dark", "print"])
def test_colours_can_be_read(name: str) -> None:
    colours = palettes()[name]
    assert len(colours) == 13
    for text in ("ink", "soft", "accent", "good", "bad", "mixed", "even"):
        assert contrast(colours[text], colours["paper"]) >= 4.5
        assert contrast(colours[text], colours["wash"]) >= 4.5
    assert contrast(colours["ink"], colours["mark"]) >= 4.5
    assert contrast(colours["mixed"], colours["mark"]) >= 4.5
    assert contrast(colours["ink"], colours["warn"]) >= 4.5
    assert contrast(colours["base"], colours["paper"]) >= 3.0
