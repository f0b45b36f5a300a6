"""acclimate judge: pairs against people, runs against each other, grades; planted answers with known reports."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from acclimate.cli.main import app
from acclimate.errors import DataError, SourceError, UsageError
from acclimate.evaluation.judges import PAIRWISE
from acclimate.run.comparisons import pairs, person, systems
from tests import spelling, tiny
from tests.runs import verb

SHARED = Path("/work/shared/data/llmbar/test.jsonl")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    """Eight pairs: in subset x the longer answer is the better one, in y the shorter; one label is a tie."""
    made = []
    for subset, better in (("x", 1), ("y", 2)):
        for i in range(4):
            long, short = "a longer answer", "short"
            first = i % 2 == 0
            label = better if first else 3 - better
            made.append(
                {
                    "subset": subset,
                    "id": i,
                    "prompt": f"{subset} {i}?",
                    "output_1": long if first else short,
                    "output_2": short if first else long,
                    "label": label,
                }
            )
    made[-1]["label"] = "tie"
    return write(tmp_path / "pairs.jsonl", made)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Without the trial of what this machine multiplies well."""
    monkeypatch.setattr("acclimate.run.open.choose", lambda precision, where: torch.float32)


@pytest.fixture
def local(tmp_path):
    """A small model in whose context a judging prompt fits."""
    tokenizer = spelling.byte_level()
    torch.manual_seed(0)
    model = tiny.llama(vocab=len(tokenizer))
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def report(out):
    return json.loads((out / "report.json").read_text())


def fails(kind, match, *words):
    with pytest.raises(kind, match=match):
        app([str(word) for word in words], standalone_mode=False)


def test_planted_judges_against_people(rows, tmp_path, capsys):
    with (tmp_path / "ann.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("id", "subset", "verdict"), *((i, s, "1") for s in "xy" for i in range(4))])
    out = tmp_path / "out"
    verb("judge", "--judge", "length", "--judge", tmp_path / "ann.csv", "--data", rows, "--out", out, "--draws", 200)
    found = report(out)
    longer, ann = found["judges"]["length"], found["judges"][str(tmp_path / "ann.csv")]
    assert longer["verdicts"] == ann["verdicts"] | {"A": 4, "B": 4}
    assert ann["verdicts"] == {"A": 8}
    assert ann["win_rate"]["value"] == 1
    assert ann["first_position"]["value"] == 0.5  # a file has no order of its own
    people = longer["agreement"]
    assert [people[name]["accuracy"]["value"] for name in ("all", "x", "y")] == [0.5, 1.0, 0.0]
    assert people["all"]["tie_discounted"]["value"] == (4 + 0.5) / 8
    # people: A 4, B 3, tie 1; length: A 4, B 4; expected (16 + 12) / 64
    assert [people[n]["n"] for n in ("all", "x", "y")] == [8, 4, 4]
    labels = [row["label"] for row in map(json.loads, (out / "verdicts.jsonl").read_text().splitlines()[:8])]
    chance = (4 * labels.count("A") + 4 * labels.count("B")) / 64
    assert people["all"]["cohen_kappa"]["value"] == pytest.approx((0.5 - chance) / (1 - chance))
    # length and ann agree on four of eight; shares A 12/16, B 4/16
    assert found["between"]["fleiss_kappa"]["value"] == pytest.approx((0.5 - 0.625) / 0.375)
    # coincidences: AA 8, AB and BA 4; n_A 12, n_B 4
    assert found["between"]["krippendorff_alpha"]["value"] == pytest.approx(1 - 15 * 8 / (2 * 12 * 4))
    assert found["provenance"]["data"].keys() == {str(rows)}
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    head = next(i for i, line in enumerate(lines) if line[:2] == ["with", "people"])
    assert [line[:3] for line in lines[head + 2 : head + 4]] == [["x", "4", "1.000"], ["y", "4", "0.000"]]
    assert "mean" not in lines[head]  # length has no scores in either order
    assert people["x"]["first_position"]["value"] == 0.5
    assert people["x"]["flips"]["value"] == 0
    assert f"report: {out / 'report.json'}" in said


def test_a_finished_report_is_never_written_over(rows, tmp_path):
    words = ("judge", "--judge", "length", "--data", rows, "--out", tmp_path / "out", "--draws", 100)
    verb(*words)
    before = (tmp_path / "out" / "report.json").read_bytes()
    fails(UsageError, "never written over", *words)
    assert (tmp_path / "out" / "report.json").read_bytes() == before
    verb(*words[:-3], tmp_path / "again", "--draws", 100)
    same = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "again")]
    for one in same:
        del one["judges"]["length"]["seconds"]
    assert same[0] == same[1]


def test_a_local_model_and_the_likelier_answer(local, rows, tmp_path, capsys):
    names = [local, f"likelihood:{local}"]
    out = tmp_path / "out"
    verb("judge", "--judge", names[0], "--judge", names[1], "--data", rows, "--out", out, "--draws", 100, "--json")
    assert json.loads(capsys.readouterr().out) == report(out)
    judges = report(out)["judges"]
    assert judges[names[0]]["weights"] == judges[names[1]]["weights"]
    assert judges[names[0]]["truncated"] == 0
    assert judges[names[0]]["agreement"]["all"]["averaged"]["n"] == 8
    assert judges[names[1]]["flips"]["value"] == 0
    lines = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 16
    assert lines[0]["given"]["scores"].keys() == {"A", "B", "tie"}
    assert lines[0]["id"] == "x/0"


def test_a_model_that_gives_reasons_is_read(local, rows, tmp_path):
    out = tmp_path / "out"
    one = write(tmp_path / "one.jsonl", [json.loads(rows.read_text().splitlines()[0])])
    verb("judge", "--judge", local, "--data", one, "--reasons", "--out", out, "--draws", 100, "--quiet")
    found = report(out)["judges"][local]
    (line,) = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert line["given"]["reasons"]
    said = [PAIRWISE.read(line[order]["reasons"]) for order in ("given", "turned")]
    assert found["unreadable"]["value"] == said.count("") / 2
    assert found["truncated"] == 0
    assert report(out)["provenance"]["reasons"] is True


def runs(folder, **answers):
    """Run folders that answered the same prompts."""
    made = []
    for name, texts in answers.items():
        lines = [
            {"row": i, "where": f"rows:{i + 1}", "prompt": f"{i}?", "base": {"text": "b"}, "result": {"text": text}}
            for i, text in enumerate(texts)
        ]
        made.append(write(folder / name / "predictions.jsonl", lines).parent)
    return made


def test_many_runs_become_one_ranking(tmp_path, capsys):
    """Longer wins: against c, a wins 3 and b 2 of 4; a against b is 3 of 4."""
    folders = runs(tmp_path, a=["xxx", "xxx", "xxx", "x"], b=["xx", "xx", "x", "xxx"], c=["x", "x", "xx", "xx"])
    out = tmp_path / "out"
    verb("judge", "--judge", "length", "--runs", *folders, "--out", out, "--draws", 500)
    (found,) = report(out)["judges"].values()
    rates = {(row["first"], row["second"]): row["win_rate"]["value"] for row in found["contests"]}
    assert rates == {("a", "b"): 0.75, ("a", "c"): 0.75, ("b", "c"): 0.75}
    won = {name: rate["value"] for name, rate in found["mean_win_rate"].items()}
    assert won == {"a": 6 / 8, "b": 4 / 8, "c": 2 / 8}
    ranking = found["ranking"]
    assert [(row["place"], row["name"]) for row in ranking] == [(1, "a"), (2, "b"), (3, "c")]
    # by symmetry b is in the middle: strengths s, 0, -s with 6 = 4 σ(s) + 4 σ(2 s), the wins of a
    s = ranking[0]["strength"]
    assert ranking[1]["strength"] == pytest.approx(0, abs=1e-8)
    assert 4 / (1 + math.exp(-s)) + 4 / (1 + math.exp(-2 * s)) == pytest.approx(6, abs=1e-7)
    assert "1. a: strength +" in capsys.readouterr().out


def test_two_runs_have_the_closed_form_and_one_run_meets_its_base(tmp_path):
    folders = runs(tmp_path, a=["xxx", "xxx", "xxx", "x"], b=["xx", "xx", "xx", "xx"])
    verb("judge", "--judge", "length", "--runs", *folders, "--out", tmp_path / "two", "--draws", 100)
    (found,) = report(tmp_path / "two")["judges"].values()
    assert found["ranking"][0]["strength"] - found["ranking"][1]["strength"] == pytest.approx(math.log(3))
    verb("judge", "--judge", "length", "--runs", folders[0], "--out", tmp_path / "one", "--draws", 100)
    (found,) = report(tmp_path / "one")["judges"].values()
    ((first, second, rate),) = [(r["first"], r["second"], r["win_rate"]["value"]) for r in found["contests"]]
    assert (first, second, rate) == ("base", "result", 0.125)  # "b" against "x" is a tie
    assert found["ranking"][0]["name"] == "result"


def test_who_never_lost_is_said_and_the_win_rates_stay(tmp_path, capsys):
    folders = runs(tmp_path, a=["xxx", "xxx"], b=["x", "x"])
    verb("judge", "--judge", "length", "--runs", *folders, "--out", tmp_path / "out", "--draws", 100)
    (found,) = report(tmp_path / "out")["judges"].values()
    assert found["ranking"] == []
    assert found["contests"][0]["win_rate"]["value"] == 1
    assert "no ranking: No comparison was won or tied by b against a" in capsys.readouterr().out


def test_a_prompt_that_had_to_be_cut_is_counted(home, rows, tmp_path):
    verb("judge", "--judge", home / "model", "--data", rows, "--out", tmp_path / "out", "--draws", 100)
    assert report(tmp_path / "out")["judges"][str(home / "model")]["truncated"] == 8  # a model of 256 tokens


def test_a_real_run_is_read(finished, tmp_path):
    verb("judge", "--judge", "length", "--runs", finished, "--out", tmp_path / "out", "--draws", 100)
    (found,) = report(tmp_path / "out")["judges"].values()
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    longer = [
        (len(r["base"]["text"]) > len(r["result"]["text"])) + 0.5 * (len(r["base"]["text"]) == len(r["result"]["text"]))
        for r in rows
    ]
    assert found["contests"][0]["win_rate"]["value"] == pytest.approx(sum(longer) / len(longer))


def test_single_answers_are_graded(local, tmp_path, capsys):
    data = write(
        tmp_path / "answers.jsonl",
        [{"prompt": f"{i}?", "output": "so", "grade": grade} for i, grade in enumerate(("fail", "pass", "pass"))],
    )
    out = tmp_path / "out"
    verb("judge", "--judge", local, "--data", data, "--scale", "acceptance", "--out", out, "--draws", 100)
    found = report(out)["judges"][local]["systems"]["answers"]
    lines = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    places = [("fail", "pass", "excellent").index(line["grade"]) for line in lines]
    assert found["mean"]["value"] == pytest.approx(1 + sum(places) / 3)
    assert 1 <= found["mean"]["low"] <= found["mean"]["high"] <= 3
    assert sum(share["value"] for share in found["shares"].values()) == pytest.approx(1)
    right = [line["grade"] == line["label"] for line in lines]
    assert found["agreement"]["accuracy"]["value"] == pytest.approx(sum(right) / 3)
    assert "answers: mean " in capsys.readouterr().out


def test_what_cannot_be_judged_is_said_and_leaves_nothing(rows, tmp_path):
    folders = runs(tmp_path, a=["x", "x"], b=["x"])
    out = tmp_path / "out"
    ask = ("judge", "--judge", "length", "--out", out)
    fails(UsageError, "Give --data", *ask)
    fails(UsageError, "Give --data", *ask, "--data", rows, "--runs", folders[0])
    fails(UsageError, "named twice; each is asked once", *ask, "--judge", "length", "--data", rows)
    fails(UsageError, "No scale is called 'helpful'", *ask, "--data", rows, "--scale", "helpful")
    fails(UsageError, "compares two answers and grades none", *ask, "--runs", folders[0], "--scale", "helpfulness")
    fails(UsageError, "names no model", "judge", "--judge", "https://host/v1", "--out", out, "--data", rows)
    fails(DataError, "part at row 1 .from 0. of 2 and 1", *ask, "--runs", *folders)
    fails(UsageError, r"has no predictions.jsonl", *ask, "--runs", tmp_path)
    fails(SourceError, "nobody", "judge", "--judge", "nobody", "--out", out, "--data", rows)
    assert not out.exists()


def test_rows_that_are_wrong_are_named(tmp_path):
    good = {"prompt": "?", "output_1": "a", "output_2": "b"}
    for row, said in (
        ({"prompt": "?", "output_1": "a"}, "bad.jsonl:1 has no output_2"),
        ({**good, "label": 0}, "has the number 0 as the better one; it is 1, 2 or tie"),
        ({**good, "label": True}, "has true as the better one"),
        ({**good, "output_1": " "}, "has an empty output_1"),
    ):
        with pytest.raises(DataError, match=said):
            pairs(write(tmp_path / "bad.jsonl", [row]))
    with pytest.raises(DataError, match=r"bad.jsonl:2 has the id '7', as has bad.jsonl:1"):
        pairs(write(tmp_path / "bad.jsonl", [{**good, "id": 7}, {**good, "id": 7}]))
    with pytest.raises(DataError, match=r"bad.jsonl:2 judges '7' again"):
        person(write(tmp_path / "bad.jsonl", [{"id": 7, "verdict": "A"}, {"id": 7, "verdict": "B"}]))
    assert person(
        write(tmp_path / "some.jsonl", [{"id": 7, "verdict": ""}, {"id": 8, "subset": "s", "verdict": 2}])
    ) == {"s/8": "B"}
    renamed = pairs(write(tmp_path / "good.jsonl", [{"instruction": "?", "first": "a", "second": "b", "label": "Tie"}]))
    assert (renamed[0].prompt, renamed[0].target, renamed[0].fields["id"]) == ("?", "tie", "0")


def test_runs_of_one_name_are_told_apart(tmp_path):
    one, two = runs(tmp_path / "p", a=["x"])[0], runs(tmp_path / "q", a=["y"])[0]
    assert [system.name for system in systems([one, two])] == [str(one), str(two)]
    with pytest.raises(UsageError, match="named twice"):
        systems([one, one])


@pytest.mark.skipif(not SHARED.exists(), reason="LLMBar is not here")
def test_llmbar_is_read_and_the_longer_answer_is_no_judge(tmp_path):
    verb("judge", "--judge", "length", "--data", SHARED, "--out", tmp_path / "out", "--draws", 200)
    (found,) = report(tmp_path / "out")["judges"].values()
    people = found["agreement"]
    assert people["all"]["n"] == 419
    assert {name: row["n"] for name, row in people.items() if "/" not in name} == {"all": 419, "Natural": 100}
    assert people["Natural"]["accuracy"]["value"] > people["Adversarial/GPTOut"]["accuracy"]["value"]
