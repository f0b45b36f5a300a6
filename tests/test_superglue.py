"""MultiRC, ReCoRD, WSC and STS-B: their files in both forms, the same questions of either, and scores worked by hand."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest

from acclimate.data.benchmarks import READERS, examples
from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, InputError
from acclimate.evaluation.benchmarks import expected, load, questions
from acclimate.metrics.choice import ChosenExact, ChosenF1, WholeQuestions
from acclimate.metrics.intervals import score
from acclimate.run.benchmarks import asked_of
from tests import bench

MULTIRC = {
    "idx": 0,
    "passage": {
        "text": "It rained.",
        "questions": [
            {"question": "When?", "answers": [{"text": "now", "label": 1}, {"text": "never", "label": 0}], "idx": 3},
            {"question": "Why?", "answers": [{"text": "clouds", "label": 1}], "idx": 4},
        ],
    },
}
RECORD = {
    "passage": {
        "text": "Ann met Bo.\n@highlight\nBo sang\n@highlight\nAnn left",
        "entities": [{"start": 8, "end": 9}, {"start": 0, "end": 2}, {"start": 23, "end": 24}],
    },
    "qas": [{"query": "Then @placeholder went home", "answers": [{"start": 0, "end": 2, "text": "Ann"}]}],
}
WSC = {
    "text": "Mark told Pete many lies . He did n't (ever) stop",
    "target": {"span1_text": "Mark", "span1_index": 0, "span2_text": "He", "span2_index": 6},
    "label": True,
}


def asked(tmp_path: Path, name: str, rows: list) -> list:
    path = tmp_path / name / "dev.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions(load(name), tmp_path)


def test_multirc_in_both_forms(tmp_path):
    theirs = asked(tmp_path, "multirc", [MULTIRC])
    hub = [
        {"paragraph": "It rained.", "question": question, "answer": answer, "label": label}
        for question, answer, label in (("When?", "now", 1), ("When?", "never", 0), ("Why?", "clouds", 1))
    ]
    ours = asked(tmp_path, "multirc", hub)
    assert [one.context for one in theirs] == [one.context for one in ours]
    assert theirs[0].context == "It rained.\nQuestion: When?\nAnswer: now\nIs the answer correct?"
    assert [one.example.target for one in theirs] == ["yes", "no", "yes"]
    numbers = [one.example.fields["of"] for one in theirs]
    assert numbers[0] == numbers[1] != numbers[2]
    assert numbers == [one.example.fields["of"] for one in ours]
    assert float(numbers[0]) == numbers[0]  # a double holds it


def test_record_in_both_forms(tmp_path):
    (theirs,) = asked(tmp_path, "record", [RECORD])
    hub = {
        "passage": RECORD["passage"]["text"],
        "query": "Then @placeholder went home",
        "entities": ["Bo", "Ann", "Bo"],
        "answers": ["Ann"],
    }
    (ours,) = asked(tmp_path, "record", [hub])
    assert (theirs.context, theirs.continuations) == (ours.context, ours.continuations)
    assert theirs.context == "Ann met Bo.\n\n  - Bo sang.\n  - Ann left.\n"
    assert theirs.continuations == ("   - Then Ann went home", "   - Then Bo went home")
    assert theirs.example.fields["weights"] == (1.0, 0.0)


def test_wsc_in_both_forms(tmp_path):
    (theirs,) = asked(tmp_path, "wsc", [WSC])
    (ours,) = asked(tmp_path, "wsc", [{"text": WSC["text"], **WSC["target"], "label": 1}])
    assert theirs.context == ours.context
    assert theirs.context.startswith("Passage: Mark told Pete many lies. *He* didn't (ever) stop\nQuestion: ")
    assert 'does the pronoun "*He*" refer to "*Mark*"?' in theirs.context
    assert theirs.example.target == ours.example.target == "yes"


def test_stsb_answers_with_a_number(tmp_path):
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "score": i / 2} for i in range(6)]
    given = asked(tmp_path, "stsb", rows)
    assert [float(one.example.target) for one in given] == [0, 0.5, 1, 1.5, 2, 2.5]
    result = asked_of(load("stsb"), given, bench.asked(), lambda what, count: lambda n: None)
    shares = [np.exp(list(row["scores"].values())) for row in result.rows]
    means = [float(share @ np.arange(6) / share.sum()) for share in shares]
    assert result.scores["pearson"].value == pytest.approx(np.corrcoef(means, range(6))[0, 1])
    assert result.scores["pearson"].n == 6
    with pytest.raises(DataError, match=r"dev\.jsonl:1 has 'much' as its score"):
        asked(tmp_path, "stsb", [{"sentence1": "a", "sentence2": "b", "score": "much"}])


def test_the_expected_number_by_hand():
    assert expected(Output(scores={"0": log(0.5) - 7, "4": log(0.5) - 7})).value == pytest.approx(2)
    assert expected(Output(scores={"1": log(0.9), "2": log(0.1)})).value == pytest.approx(1.1)
    with pytest.raises(InputError, match="choices that are numbers, not no, yes"):
        expected(Output(scores={"no": 0.0, "yes": 0.0}))


def test_a_question_counts_only_where_all_its_answers_are_right():
    rows = np.array([[5.0, 1], [9.0, 1], [5.0, 0], [9.0, 1], [2.0, 1]])
    assert WholeQuestions().combine(rows) == pytest.approx(2 / 3)
    assert WholeQuestions().combine(rows[::-1]) == pytest.approx(2 / 3)
    # a resample without the wrong answer does not make its question right
    assert WholeQuestions().resampled(rows, np.array([[1.0, 1, 0, 0, 0]])).tolist() == [0.5]
    found = score(WholeQuestions(), np.repeat([[i, i % 2] for i in range(40)], 3, axis=0), draws=2000)
    whole = score(WholeQuestions(), [[i, i % 2] for i in range(40)], draws=2000)
    assert found.value == whole.value == 0.5
    assert found.stderr == pytest.approx(whole.stderr, rel=0.03)  # three answers a question say no more than one
    assert found.high - found.low == pytest.approx(whole.high - whole.low, rel=0.25)


def test_f1a_and_whole_questions_of_planted_answers(tmp_path):
    task, given = load("multirc"), asked(tmp_path, "multirc", [MULTIRC])
    f1a, whole, _ = task.measures()
    said = [Output(text, {"no": -1.0 if text == "no" else -2.0, "yes": -1.5}) for text in ("yes", "yes", "no")]
    examples_ = [one.example for one in given]
    # right are 1 and 3, said are 1 and 2: 2 · 1 / (2 + 2)
    assert f1a.combine([f1a.row(o, e) for o, e in zip(said, examples_, strict=True)]) == 0.5
    assert whole.combine([whole.row(o, e) for o, e in zip(said, examples_, strict=True)]) == 0.0
    said[1], said[2] = Output("no", {"no": 0.0, "yes": -1.0}), Output("no", {"no": 0.0, "yes": -1.0})
    assert whole.combine([whole.row(o, e) for o, e in zip(said, examples_, strict=True)]) == 0.5


def test_the_entity_that_is_chosen_is_compared():
    row = Example("", fields={"names": ("the Bo", "Ann", "Ann Lee"), "answers": ("Ann Lee", "Bo")})
    outputs = [Output(scores={str(i): -float(abs(i - best)) for i in range(3)}) for best in range(3)]
    assert [ChosenExact().row(output, row)[0] for output in outputs] == [1, 0, 1]
    assert [ChosenF1().row(output, row)[0] for output in outputs] == pytest.approx([1, 2 / 3, 1])


@pytest.mark.parametrize("name", ["multirc", "record", "wsc"])
def test_a_row_that_lacks_something_is_named(name, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        examples([tmp_path / "rows.jsonl"], READERS[name])
