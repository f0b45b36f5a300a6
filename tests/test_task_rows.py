"""Rows of the task types: pairs, numbers, multiple choice, spans, tags — by the value they become or the sentence."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from acclimate.data.examples import Document, Example, Row, Tagged
from acclimate.data.formats import FORMATS, TASKS, Asked, formats, recognise
from acclimate.data.problem import Refused
from acclimate.data.read import read, validate
from acclimate.data.tasks import chosen, number
from acclimate.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"
PLAIN, NUMBERS = Asked(), Asked(numbers=True)
SIDES = ("different", "same")

GOOD: dict[str, dict[str, Any]] = {  # a row of each task's format
    "context + question + answers": {
        "context": "Ada was born in London.",
        "question": "Where?",
        "answers": {"text": ["London", "in London"], "answer_start": [16, 13]},
    },
    "question + choices + answer": {"question": "Two and two?", "choices": ["3", "4", "5"], "answer": "B"},
    "choice1 + choice2 + label": {
        "premise": "It rained.",
        "question": "effect",
        "choice1": "It dried.",
        "choice2": "It got wet.",
        "label": 1,
    },
    "context + endings + label": {"context": "They ran and", "endings": ["fell.", "flew.", "sang."], "label": 0},
    "sentence1 + sentence2 + label": {"sentence1": "A cat.", "sentence2": "A dog.", "label": "different"},
    "premise + hypothesis + label": {"premise": "It rains.", "hypothesis": "It is wet.", "label": "same"},
    "question + sentence + label": {"question": "Who?", "sentence": "Ada did.", "label": "same"},
    "question + passage + label": {"question": "Is it?", "passage": "It is.", "label": "same"},
    "sentence1 + sentence2 + score": {"sentence1": "A cat.", "sentence2": "A dog.", "score": 1.25},
    "sentence + label": {"sentence": "Lovely.", "label": "same"},
}


def parsed(row: dict[str, Any], asked: Asked = PLAIN) -> Row:
    """One row by its own format."""
    return recognise(row, formats(asked)).build(row, "f:1", asked)


def example(row: dict[str, Any], asked: Asked = PLAIN) -> Example:
    found = parsed(row, asked)
    assert isinstance(found, Example)
    return found


def refusal(row: dict[str, Any], asked: Asked = PLAIN) -> str:
    with pytest.raises(Refused) as caught:
        parsed(row, asked)
    return str(caught.value)


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# What all of them share.


def test_every_task_is_tried_and_keeps_its_row() -> None:
    assert {form.name for form in TASKS if form.kind is Example} == set(GOOD)
    for name, row in GOOD.items():
        found = example(row | {"id": 7})
        assert recognise(row, formats(PLAIN)).name == name
        assert found.prompt
        assert {key: found.fields[key] for key in row if key not in ("choices", "answers")} == {
            key: value for key, value in row.items() if key not in ("choices", "answers")
        }


def test_what_was_read_before_is_read_as_before() -> None:
    everything = {key: value for row in GOOD.values() for key, value in row.items()}
    for row in ({"text": "Fine.", "label": "good"}, {"prompt": "Why?", "completion": "So."}):
        assert parsed(everything | row).__dict__ | {"fields": {}} == parsed(row).__dict__ | {"fields": {}}
    assert parsed({"text": "Fine.", "score": 2.5}) == Document("Fine.", "f:1")  # web text brings scores along
    assert formats(PLAIN)[: len(FORMATS) - 1] == FORMATS[:-1]
    assert formats(PLAIN)[-1] == FORMATS[-1]


def test_columns_are_renamed_into_tasks(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", {"stem": "Two and two?", "options": ["3", "4"], "key": 1})
    (row,) = read(path, columns={"question": "stem", "choices": "options", "answer": "key"}).rows
    assert isinstance(row, Example)
    assert (row.prompt, row.target, row.fields["choices"]) == ("Two and two?", "4", ("3", "4"))


def test_a_misspelled_column_is_named_and_a_missing_one_is_not_guessed() -> None:
    row = {"premise": "a", "hypotesis": "b", "label": "same"}
    assert "Did you mean 'hypothesis' where it says 'hypotesis'?" in refusal(row)
    said = refusal({"question": "Why?", "answer": "So."})  # not a question that lacks its choices
    assert said.startswith("has answer, question; rows are known by text; ")
    said = refusal({"sentence": "a", "score": 2})  # not a pair, both of whose columns are misspelled the same way
    assert said.startswith("has score, sentence; rows are known by text; ")


@pytest.mark.parametrize("name", GOOD)
def test_every_column_must_hold_what_it_says(name: str) -> None:
    fine = [("score", -3), ("answers", [])]
    for key in name.split(" + "):
        for bad in (None, True, {"a": 1}, "", [], -3):
            if (key, bad) not in fine:
                assert refusal(GOOD[name] | {key: bad}).startswith("has ")


# Pairs and numbers.


def test_pairs_are_read_together() -> None:
    row = GOOD["sentence1 + sentence2 + label"]
    assert example(row) == Example("A cat.\nA dog.", "different", (), row, "f:1")
    assert example(row | {"label": 1}, Asked(SIDES)).target == "same"
    assert "label 'some' is not one of the task's labels. Did you mean 'same'?" in refusal(
        row | {"label": "some"}, Asked(SIDES)
    )
    assert "list the task's labels, and it counts into them" in refusal(row | {"label": 1})
    assert example(GOOD["question + passage + label"]).prompt == "Is it?\nIt is."
    assert example(GOOD["sentence + label"]).prompt == "Lovely."


@pytest.mark.parametrize(("value", "target"), [(3.8, "3.8"), (5, "5"), (5.0, "5"), ("2.40", "2.4"), (-1e-7, "-1e-07")])
def test_numbers_are_text_that_reads_the_same(value: object, target: str) -> None:
    pair = {"sentence1": "A cat.", "sentence2": "A dog."}
    rows = [(pair | {"score": value}, PLAIN), (pair | {"label": value}, NUMBERS)]
    rows += [({"text": "Fine.", name: value}, NUMBERS) for name in ("score", "label")]
    rows += [({"prompt": "How long?", "completion": value}, NUMBERS)]
    rows += [({"text": "Fine.", "stars": value}, Asked(target="stars", numbers=True))]
    assert {example(row, asked).target for row, asked in rows} == {target}
    assert float(target) == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["good", "", "nan", "1e999", None, True, [1.0], float("inf")])
def test_what_is_no_number_is_refused(value: object) -> None:
    pair = {"sentence1": "A cat.", "sentence2": "A dog."}
    assert refusal(pair | {"score": value}).endswith(("score must be a number.", "score must be a finite number."))
    assert refusal(pair | {"label": value}, NUMBERS).startswith("has ")
    assert refusal({"text": "Fine."}, NUMBERS) == "has no score; the task's answers are numbers."


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e299, max_value=1e299))
def test_a_number_survives_as_text(value: float) -> None:
    assert float(number(value, "score")) == value == float(number(repr(value), "score"))


# Multiple choice.


@pytest.mark.parametrize(
    ("answer", "offered", "wanted"),
    [
        ("A", ["x", "y"], "x"),
        ("y", ["x", "y"], "y"),
        (1, ["x", "y"], "y"),
        ("1", ["x", "y"], "y"),  # a table's cell
        (1, ["0", "4", "2", "6"], "4"),  # a number is a place
        ("2", ["0", "4", "2", "6"], "2"),  # its text is a text, where choices are numbers
        ("B", ["A", "B"], "B"),  # the letter and the text are the same one
    ],
)
def test_a_choice_by_letter_place_and_text(answer: object, offered: list[str], wanted: str) -> None:
    found = example({"question": "Which?", "choices": offered, "answer": answer})
    assert (found.prompt, found.target, found.fields["choices"]) == ("Which?", wanted, tuple(offered))


@pytest.mark.parametrize(
    ("answer", "offered", "says"),
    [
        ("C", ["x", "y"], "has 'C' as answer, which names none of the 2 choices; a choice is named by place"),
        (2, ["x", "y"], "has the number 2 as answer, which names none"),
        (-1, ["x", "y"], "has the number -1 as answer, which names none"),
        (True, ["x", "y"], "has true as answer, which names none"),
        (1.0, ["x", "y"], "has the number 1.0 as answer, which names none"),
        ("1", ["3", "4"], "has '1' as answer, which names none"),
        ("B", ["A", "~A", "B", "~B"], "has 'B' as answer, which is a choice and the letter of another"),
        ("A", ["x"], "has fewer than two choices in choices; one chooses among several."),
        ("A", ["x", "", "y"], "has an empty choices[1]"),
        ("A", ["x", 3], "has the number 3 as choices[1]; choices[1] must be text."),
    ],
)
def test_a_choice_that_is_none(answer: object, offered: list[object], says: str) -> None:
    assert refusal({"question": "Which?", "choices": offered, "answer": answer}).startswith(says)


def test_a_table_leaves_the_last_choices_empty() -> None:
    found = example({"question": "Which?", "choices": ["x", "y", "z", ""], "answer": "C"})
    assert (found.target, found.fields["choices"]) == ("z", ("x", "y", "z"))
    assert "names none of the 3 choices" in refusal({"question": "Which?", "choices": ["x", "y", "z", ""], "answer": 3})


def test_what_goes_before_a_choice() -> None:
    found = example(GOOD["choice1 + choice2 + label"])
    assert (found.prompt, found.target) == ("It rained.\neffect", "It got wet.")
    assert found.fields["choices"] == ("It dried.", "It got wet.")
    assert example(GOOD["context + endings + label"]).prompt == "They ran and"
    found = example(GOOD["question + choices + answer"] | {"passage": "Two and two are four."})
    assert found.prompt == "Two and two are four.\nTwo and two?"
    assert example(GOOD["question + choices + answer"], Asked(("A", "B", "C"))).target == "B"


@given(st.lists(st.text("aB1C0", min_size=1, max_size=2), min_size=2, max_size=5, unique=True), st.data())
def test_places_always_name_their_choice(offered: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(offered) - 1))
    assert chosen(place, offered, "answer") == offered[place]
    for spelled in ("ABCDE"[place], offered[place]):
        try:
            assert chosen(spelled, offered, "answer") == offered[place]
        except Refused:
            assert spelled in offered  # it is one choice's text and another's letter
            assert spelled in "ABCDE"[: len(offered)]


# Spans.


def test_spans_in_both_spellings() -> None:
    row = GOOD["context + question + answers"]
    found = example(row)
    assert (found.prompt, found.target, found.references) == ("Where?", "London", ("London", "in London"))
    assert found.fields["answers"] == ((16, "London"), (13, "in London"))
    assert found.fields["context"] == row["context"]
    pairs = [{"text": "London", "answer_start": 16}] * 2 + [{"text": "in London", "answer_start": 13}]
    found = example(row | {"answers": pairs})
    assert found.answers == ("London", "in London")
    assert len(found.fields["answers"]) == 3


@pytest.mark.parametrize("none", [{"text": [], "answer_start": []}, []])
def test_a_question_without_an_answer(none: object) -> None:
    found = example(GOOD["context + question + answers"] | {"answers": none})
    assert (found.target, found.answers, found.fields["answers"]) == ("", ("",), ())


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (
            {"text": ["London"], "answer_start": [15]},
            "has 'London' as answers[0], but at character 15 its context has ' Londo'.",
        ),
        ({"text": ["London"], "answer_start": [-7]}, "has 'London' as answers[0], but at character -7"),
        ({"text": ["London."], "answer_start": [17]}, "has 'London.' as answers[0], but at character 17"),
        ({"text": ["London"], "answer_start": []}, "has 1 texts and 0 places in answers; one each."),
        ({"text": ["London"]}, "has no answer_start in answers; each answer needs one."),
        ({"text": ["London"], "answer_start": ["16"]}, "has '16' as answers[0].answer_start"),
        ({"text": [""], "answer_start": [16]}, "has an empty answers[0].text"),
        ({"text": "London", "answer_start": 16}, "has 'London' as answers.text; answers.text must be a list."),
        (["London"], "has 'London' as answers[0]; an answer is an object"),
        ([{"text": "London"}], "has no answer_start at answers[0]"),
        ("London", "has 'London' as answers; answers must be a list."),
    ],
)
def test_a_span_that_is_not_there(answers: object, says: str) -> None:
    assert refusal(GOOD["context + question + answers"] | {"answers": answers}).startswith(says)


def squad(*questions: object) -> dict[str, Any]:
    paragraph = {"context": "Ada was born in London.", "qas": list(questions)}
    return {"version": "1.1", "data": [{"title": "Ada", "paragraphs": [paragraph, paragraph]}]}


def test_squad_as_it_is_published(tmp_path: Path) -> None:
    answered = {"id": "1", "question": "Where?", "answers": [{"text": "London", "answer_start": 16}]}
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps(squad(answered, {"id": "2", "question": "When?", "answers": [], "is_impossible": True})))
    rows = read(path).rows
    assert [row.where for row in rows] == [
        f"train-v2.0.json[0].paragraphs[{i}].qas[{j}]" for i in (0, 1) for j in (0, 1)
    ]
    assert [(row.prompt, row.target) for row in rows if isinstance(row, Example)][:2] == [
        ("Where?", "London"),
        ("When?", ""),
    ]


def test_a_wrong_place_in_squad_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps(squad({"question": "Where?", "answers": [{"text": "London", "answer_start": 3}]}, "why"))
    )
    found = validate(path)
    assert found.rules == {"spans": 2, "type": 2}
    assert found.problems[0].message == (
        "x.json[0].paragraphs[0].qas[0] has 'London' as answers[0], but at character 3 its context has ' was b'."
    )
    assert found.problems[1].message.startswith("x.json[0].paragraphs[0].qas[1] is 'why'; each row is an object")
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": 3}]}]}))
    assert validate(path).problems[0].message == "x.json[0].paragraphs[0] has no list qas; it needs a context and qas."
    path.write_text(json.dumps([{"text": "A page.", "paragraphs": ["A", "page."]}]))  # paragraphs of something else
    assert read(path).rows == (Document("A page.", "x.json[0]"),)


def test_a_wrong_place_in_a_file_is_a_data_error_with_its_line(tmp_path: Path) -> None:
    row = GOOD["context + question + answers"]
    path = written(tmp_path / "x.jsonl", row, row | {"answers": {"text": ["Paris"], "answer_start": [16]}})
    with pytest.raises(DataError, match=r"x\.jsonl:2 has 'Paris' as answers\[0\], but at character 16 its context has"):
        read(path)


def test_tasks_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for name in ("context + question + answers", "question + choices + answer", "context + endings + label"):
        parquet.write_table(pyarrow.table({key: [value] * 2 for key, value in GOOD[name].items()}), path)
        first = read(path).rows[0]
        assert isinstance(first, Example)
        assert first.target == example(GOOD[name]).target


# Tags.


@pytest.mark.parametrize("tags", ["O O O", "B-x I-x O", "B-x B-x I-x", "B-a-b I-a-b B-c", "NOUN VERB NOUN"])
def test_tags_in_order(tags: str) -> None:
    assert parsed({"tokens": ["a", "b", "c"], "tags": tags.split()}) == Tagged(
        ("a", "b", "c"), tuple(tags.split()), "f:1"
    )


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("O I-x O", "has 'I-x' as tags[1] after 'O'; an entity begins with 'B-x'."),
        ("I-x I-x O", "begins with 'I-x'; an entity begins with 'B-x'."),
        ("B-x I-y O", "has 'I-y' as tags[1] after 'B-x'; an entity begins with 'B-y'."),
        ("B-x O I-x", "has 'I-x' as tags[2] after 'O'; an entity begins with 'B-x'."),
        ("B-x E-x O", "has 'E-x' as tags[1]; a tag is O, B-type or I-type."),
        ("O B- O", "has 'B-' as tags[1]; a tag is O, B-type or I-type."),
        ("O B O", "has 'B' as tags[1]; a tag is O, B-type or I-type."),
        ("O b-x O", "has 'b-x' as tags[1]; a tag is O, B-type or I-type."),
        ("O Oh O", "has 'Oh' as tags[1]; a tag is O, B-type or I-type."),
    ],
)
def test_tags_out_of_order(tags: str, says: str) -> None:
    assert refusal({"tokens": ["a", "b", "c"], "tags": tags.split()}) == says


# Real files.

REAL = [
    ("stsb/dev.jsonl", (), 500, {}),
    ("mrpc/test.jsonl", ("not_equivalent", "equivalent"), 500, {}),
    ("rte/dev.jsonl", ("entailment", "contradiction"), 277, {}),
    ("qnli/dev.jsonl", ("entailment", "not_entailment"), 500, {}),
    ("boolq/dev.jsonl", ("no", "yes"), 500, {}),
    ("wic/dev.jsonl", SIDES, 638, {}),
    ("sst2/dev.jsonl", ("negative", "positive"), 872, {}),
    ("copa/dev.jsonl", (), 100, {}),
    ("hellaswag/dev.jsonl", (), 500, {}),
    ("arc_easy/dev.jsonl", (), 549, {}),
    ("arc_challenge/dev.jsonl", (), 294, {}),
    ("mmlu/test.jsonl", (), 1139, {"choices": ("test.jsonl:326",)}),  # choices A, ~A, B, ~B; answer B
    ("wnut17/dev.jsonl", (), 1009, {}),
]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")
@pytest.mark.parametrize(("name", "labels", "count", "dropped"), REAL, ids=[case[0] for case in REAL])
def test_real_files(name: str, labels: tuple[str, ...], count: int, dropped: dict[str, Any]) -> None:
    found = read(SHARED / name, labels=labels)
    assert (len(found.rows), found.dropped) == (count, dropped)
    for row in found.rows:
        if isinstance(row, Example):
            assert row.prompt
            assert row.target in row.fields.get("choices", labels or (row.target,))
            assert name != "stsb/dev.jsonl" or 0 <= float(row.target) <= 5
        else:
            assert isinstance(row, Tagged)
