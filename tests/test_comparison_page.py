"""The page of a comparison says what the numbers allow, shows every row, and needs nothing but itself."""

import copy
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from acclimate.report.comparison import comparison_page, headline, lines, pictures, sentences, well
from acclimate.report.pareto import Point, front, scatter, study, written


def score(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 200, "stderr": 0.02}


def gap(value, reach=0.04, p=0.01):
    return {"value": value, "low": value - reach, "high": value + reach, "p": p}


def row(name, method, value, trains, seconds=10.0):
    return {
        "name": name,
        "method": method,
        "options": {},
        "failed": "",
        "scores": {"accuracy": score(value)},
        "difference": {"base": {"accuracy": gap(value - 0.6)}},
        "trainable_parameters": trains,
        "total_parameters": 1_000_000,
        "kept_parameters": trains,
        "learned": {},
        "training": {
            "steps": 12,
            "tokens": 100,
            "scored_tokens": 9,
            "seconds": seconds,
            "tokens_per_second": 700.0 if seconds else 0.0,
            "peak_memory_bytes": 2_000_000_000 if seconds else 0,
        },
        "artifact": {"bytes": 4 * trains, "path": f"rungs/{name}/seed-0/adapter"},
        "inference_seconds_per_example": 0.04,
        "forgetting": {"perplexity_base": 21.3, "perplexity_result": 21.9},
        "rate": 1e-3 if seconds else None,
        "search": {"rounds": [], "trials": 0, "tokens": 0, "seconds": 0.0},
        "seeds": [{"seed": 0, "scores": {"accuracy": value}, "training": {}}],
        "spread": {"accuracy": {"mean": value, "low": value, "high": value}},
        "curve": {"train": [[1, 2.0], [2, 1.0]] if seconds else [], "dev": [[2, 1.5]] if seconds else []},
        "seconds": {"search": 1.0, "training": seconds, "saving": 0.0, "test": 1.0, "forgetting": 1.0, "all": 13.0},
    }


@pytest.fixture
def found():
    rows = [
        row("prompt only", "none", 0.60, 0, 0.0),
        row("lora", "lora", 0.88, 4_000),
        row("full", "full", 0.90, 1_000_000, 40.0),
        {
            "name": "<b>did</b>",
            "method": "did",
            "options": {},
            "failed": "Step 3: ill & gone.",
            "seconds": {"all": 2.0},
        },
    ]
    rows[0]["difference"]["best"] = {"accuracy": gap(-0.30)}
    rows[1]["difference"]["best"] = {"accuracy": gap(-0.02, p=0.4)}
    rows[1]["search"] = {
        "rounds": [
            [
                {"rate": 2e-4, "steps": 4, "score": None, "loss": None, "tokens": 0, "seconds": 1.0, "failed": "ill"},
                {"rate": 1e-3, "steps": 4, "score": 0.712, "loss": 0.3, "tokens": 9, "seconds": 1.0, "failed": ""},
            ]
        ],
        "trials": 2,
        "tokens": 9,
        "seconds": 2.0,
    }
    return {
        "acclimate": "0",
        "model": "some-model",
        "task": {"labels": ["a", "b"], "metrics": ["accuracy"], "directions": {"accuracy": True}},
        "data": {"train": {"name": "/home/me/reviews.jsonl", "rows": 90, "dropped": {}, "sha256": "sha256:ab"}},
        "search": {"rates": [2e-4, 1e-3], "keep": 0.5, "share": 0.25, "rows": 60},
        "seeds": [0],
        "base": {"scores": {"accuracy": score(0.60)}, "inference_seconds_per_example": 0.04},
        "best": "full",
        "rows": rows,
        "picture": None,
        "seconds": {"preparation": 2.0, "base": 3.0, "all": 60.0},
        "machine": {"threads": 2},
        "provenance": {"seed": 0, "command": "acclimate compare recipe.yaml"},
        "warnings": [],
        "recipe": {"model": "some-model"},
    }


class Reader(HTMLParser):
    """Tags with their attributes, and every element closed in order."""

    VOID = frozenset({"meta", "circle", "line", "polyline", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader.tags


def test_the_verdict_names_the_best_what_is_level_with_it_and_the_cheapest(found):
    assert headline(found) == "Full fine-tuning is best: accuracy 0.900"
    said = sentences(found)
    assert said[0] == (
        "It has 0.900 (95 % interval 0.850 to 0.950) on 200 held-out examples that the search never saw; the base model "
        "under the template has 0.600 (+0.300, p = 0.01)."
    )
    assert said[1].startswith(
        "Not clearly different from it (the paired interval holds zero, or p is 0.05 or more): LoRA; 1 is"
    )
    assert said[2] == "Of these LoRA trains least: 0.40 % of the weights."
    assert said[-1] == "Not carried out: <b>did</b>."


def test_no_lead_is_claimed_over_the_base_where_there_is_none(found):
    found["rows"][2]["difference"]["base"]["accuracy"] = gap(0.01, 0.05, 0.7)
    assert "no clear difference (+0.010, p = 0.70)" in sentences(found)[0]


def test_behind_means_by_its_interval_and_by_p(found):
    found["rows"][1]["difference"]["best"]["accuracy"] = {"value": -0.03, "low": -0.06, "high": -0.001, "p": 0.07}
    assert ": LoRA; 1 is clearly behind" in sentences(found)[1]
    found["rows"][1]["difference"]["best"]["accuracy"]["p"] = 0.03
    assert sentences(found)[1] == "All others are clearly behind it."


def test_a_row_that_is_behind_is_not_called_level(found):
    found["rows"][1]["difference"]["best"]["accuracy"] = gap(-0.2)
    assert "All others are clearly behind it." in sentences(found)


def test_where_less_is_better_the_least_comes_first(found):
    found["task"]["directions"]["accuracy"] = False
    found["best"] = "prompt only"
    assert [r["name"] for r in well(found)] == ["prompt only", "lora", "full"]


def test_the_page_is_one_file_without_anything_from_outside(found):
    page = comparison_page(found)
    tags = read(page)
    assert not [tag for tag, given in tags if tag in ("link", "img", "iframe", "object") or "src" in given]
    assert all(given["href"].startswith("#") for tag, given in tags if tag == "a")
    assert "http" not in page.replace("http-equiv", "")
    assert page == comparison_page(copy.deepcopy(found))


def test_the_one_script_is_the_one_that_the_policy_names(found):
    page = comparison_page(found)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_names_are_text_and_never_markup(found):
    page = comparison_page(found)
    assert "<b>did</b>" not in page
    assert "&lt;b&gt;did&lt;/b&gt;" in page
    assert "ill &amp; gone." in page


def test_the_table_holds_every_row_in_order_and_what_to_sort_by(found):
    page = comparison_page(found)
    body = page.split('<table class="sorted">')[1].split("</table>")[0].split("<tbody>")[1]
    ranked = re.findall(r'<th scope="row" data-value="(\d+)">.*?</span>(.*?)</th>', body)
    assert ranked == [("1", "full fine-tuning"), ("2", "LoRA"), ("3", "prompt only")]
    firsts = [float(row.split('<td data-value="')[1].split('"')[0]) for row in body.split("<tr")[1:]]
    assert firsts == [0.90, 0.88, 0.60]
    heads = page.split("<thead>")[1].split("</thead>")[0].count("<th ")
    assert all(row.count("<td") == heads - 1 for row in body.split("<tr")[1:])
    assert "4,000" in body
    assert "0.40\u00a0%" in body


def test_the_search_shows_every_trial_and_marks_the_chosen_one(found):
    page = comparison_page(found)
    assert "0.0002: ill" in page
    assert re.search(r"0\.001: <b>0\.712 \(0\.300\)</b>", page)


def test_lines_for_a_terminal_hold_the_same_table(found):
    said = lines(found)
    assert said[1].startswith("full fine-tuning  0.900 (0.850 to 0.950)")
    assert said[-2] == "<b>did</b> failed: Step 3: ill & gone."
    assert said[-1].startswith("Full fine-tuning is best")


def test_seeds_are_shown_as_a_spread(found):
    lora = found["rows"][1]
    lora["seeds"] = lora["seeds"] * 2
    lora["spread"]["accuracy"] = {"mean": 0.85, "low": 0.82, "high": 0.88}
    assert "seeds 0.820 to 0.880" in comparison_page(found)


def test_every_seed_is_a_point_where_a_rung_has_several(found):
    assert 'id="seeds"' not in comparison_page(found)
    found["rows"][1]["seeds"] = [{"seed": i, "scores": {"accuracy": 0.82 + 0.03 * i}, "training": {}} for i in range(3)]
    page = comparison_page(found)
    read(page)
    part = page.split('id="seeds"')[1].split("</section>")[0]
    assert "2 LoRA: 0.820 to 0.880" in part
    assert part.count('<circle class="result"') == 1 + 3 + 1  # one seed each for the other two


def test_nothing_but_failures_is_said_too(found):
    found["rows"] = found["rows"][3:]
    found["best"] = ""
    page = comparison_page(found)
    read(page)
    assert "No rung could be carried out" in page
    assert lines(found)[-1].startswith("No rung could be carried out")


# Quality against cost


def point(number, cost, value):
    return Point(number, f"p{number}", cost, value, value - 0.1, value + 0.1)


def test_the_front_is_what_nothing_beats_by_hand():
    points = [point(1, 0, 0.6), point(2, 10, 0.9), point(3, 10, 0.8), point(4, 100, 0.9), point(5, 1000, 0.95)]
    assert [p.number for p in front(points, True)] == [1, 2, 5]
    assert [p.number for p in front(points, False)] == [1]
    assert [p.number for p in front([point(1, 5, 0.5), point(2, 5, 0.5)], True)] == [1, 2]


def test_the_front_of_a_page_is_named_beside_its_picture(found):
    drawn = {each["title"]: each["front"] for each in pictures(found)}
    assert drawn["Trained weights"] == [(3, "prompt only"), (2, "LoRA"), (1, "full fine-tuning")]
    assert drawn["Memory"] == [(1, "full fine-tuning")]


def test_costs_stand_on_a_logarithmic_scale_with_nothing_at_the_left():
    points = [point(1, 0, 0.5), point(2, 10, 0.6), point(3, 1000, 0.7), point(4, 100000, 0.8)]
    chart = scatter(points, True, ("cost", "score"), str, None)
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert xs[0] < xs[1]
    assert xs[2] - xs[1] == pytest.approx(xs[3] - xs[2], abs=0.2)
    assert chart.count('class="point ahead"') == 4
    ys = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', chart)]
    assert ys == sorted(ys, reverse=True)


@pytest.mark.parametrize("costs", [(0.0,), (5.0,), (0.0, 3.0), (1e-9, 1e12), (2.0, 2.0)])
def test_any_costs_can_be_drawn(costs):
    chart = scatter([point(i, c, 0.5) for i, c in enumerate(costs)], True, ("cost", "score"), str, 0.4)
    assert chart.count("<circle") == len(costs)
    assert "nan" not in chart


def test_a_study_is_a_line_for_every_method(found):
    found["picture"] = {"x": "method.rank", "metric": "accuracy", "places": {"lora": 4, "full": 8}}
    page = comparison_page(found)
    read(page)
    assert "The study" in page
    assert "accuracy against rank. lora: 4 0.880; full: 8 0.900" in page


def test_lists_stand_below_a_study_as_their_rungs_are_called_and_no_line_joins_them(found):
    places = {"lora": ["query", "key", "value", "output"], "full": ["gate", "up", "down"]}
    found["picture"] = {"x": "method.targets", "metric": "accuracy", "places": places}
    page = comparison_page(found)
    shown = page[page.index('id="study"') : page.index('id="table"')]
    read(page)
    assert "accuracy against targets. lora: LoRA 0.880; full: full fine-tuning 0.900" in shown
    assert "polyline" not in shown
    found["picture"] = {"x": "method.rank", "metric": "accuracy", "places": {"lora": 4, "full": 8}}
    page = comparison_page(found)
    assert "polyline" in page[page.index('id="study"') : page.index('id="table"')]


@pytest.mark.parametrize(
    ("places", "ratio"),
    [((1, 2, 4, 8, 16), 1.0), ((1, 2, 3), 1.0), (("random", "words", "labels"), 1.0), ((0, 10, 20), 1)],
)
def test_what_is_varied_stands_evenly_where_it_is_even(places, ratio):
    line = [(place, point(0, 0, 0.5)) for place in places]
    chart, names = study({"lora": line}, ("x", "score"), None)
    xs = [float(x) for x in re.findall(r'<circle class="dot s0" cx="([\d.]+)"', chart)]
    assert names == ["lora"]
    assert xs == sorted(xs)
    assert (xs[1] - xs[0]) / (xs[2] - xs[1]) == pytest.approx(ratio, abs=0.01)
    assert all(f">{written(place)}<" in chart for place in places)
