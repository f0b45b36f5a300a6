"""Templates: what a row becomes, which prompt it gets, and what is wrong with a file of templates."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from acclimate.cli.main import app
from acclimate.data.prompts import Prompt, PromptSet, labelled
from acclimate.data.promptsets import FOLDER, builtin, parsed, prompt_set
from acclimate.errors import AcclimateError, DataError

DATA = Path(__file__).parents[2] / "shared" / "data"
ASK = Prompt("ask", "{{ text }}?\n{{ answer_choices | options }}", "{{ answer }}", "no ||| yes")
WRITE = Prompt("write", "Write: {{ answer }}", "{{ text }}", "bad ||| good", turned=True)
GOOD = PromptSet("films", "moods", (ASK, WRITE), {"text": ("review",)}, "label", (("0", "false"), ("1", "true")))
GOOD = replace(GOOD, columns={**GOOD.columns, "label": ()})
ROWS = {  # what the public data sets have, one row each
    "arithmetic": {"question": "Two and 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"},
    "coreference": {"text": "Ann saw her.", "span1_text": "Ann", "span2_text": "her", "label": 1},
    "data_to_text": {"meaning_representation": "name[The Inn]", "human_reference": "It is The Inn."},
    "dialogue_summarisation": {"dialogue": "A: Hi.\nB: Hi.", "summary": "They greet."},
    "entailment": {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0},
    "multiple_choice": {"question": "Which?", "choices": ["this", "that"], "answer": "B"},
    "nli": {"premise": "It rains.", "hypothesis": "It snows.", "label": 2},
    "paraphrase": {"sentence1": "It rains.", "sentence2": "Rain falls.", "label": 1},
    "question_answering": {
        "context": "Ann is 5.",
        "question": "How old is Ann?",
        "answers": {"text": ["5", "five"], "answer_start": [7, 7]},
    },
    "sentiment": {"sentence": "A fine film.", "label": 1},
    "summarisation": {"document": "Long.", "summary": "Short."},
    "topic": {"title": "Goal", "text": "They won.", "label": 1},
    "translation": {"en": "A dog.", "de": "Ein Hund."},
    "word_sense": {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "label": False},
    "yes_no": {"question": "is it so", "passage": "It is so.", "label": True},
}


def test_a_row_becomes_an_example():
    row = {"review": "A fine film", "label": 1, "id": 7}
    made = GOOD.render(ASK, row, "rows.jsonl:3")
    assert made is not None
    assert made.prompt == "A fine film?\nOPTIONS:\n- no\n- yes"
    assert (made.target, made.answers, made.where) == ("yes", ("yes",), "rows.jsonl:3")
    expected = {"task": "films", "template": "ask", "cluster": "moods", "choices": ("no", "yes")}
    assert made.fields == {**row, **expected}


def test_a_prompt_that_is_turned_around_has_no_choices():
    made = GOOD.render(WRITE, {"text": "A fine film", "label": "true", "choices": ["a", "b"]})
    assert made is not None
    assert (made.prompt, made.target) == ("Write: good", "A fine film")
    assert "choices" not in made.fields
    assert [example.fields["template"] for example in GOOD.every({"text": "x", "label": 0})] == ["ask"]


def test_several_answers_are_references():
    free = PromptSet("t", "c", (Prompt("p", "{{ q }}", "{{ a | join('|||') }}"),))
    (made,) = free.every({"q": "?", "a": ["5", " five ", ""]})
    assert (made.target, made.answers, "choices" in made.fields) == ("5", ("5", "five"), False)


def test_a_separator_in_the_data_is_text():
    free = PromptSet("t", "c", (Prompt("p", "{{ q }} of {{ answer_choices | either }}", "{{ a }}", "{{ a }} ||| x"),))
    (made,) = free.every({"q": "a ||| b", "a": "c|||d"})
    assert (made.prompt, made.target) == ("a ||| b of c|||d or x", "c|||d")
    assert made.fields["choices"] == ("c|||d", "x")


@pytest.mark.parametrize(("asked", "wanted"), [("{% if no %}x{% endif %}", "y"), ("x", " {% if no %}y{% endif %}\n")])
def test_what_comes_out_empty_is_no_example(asked, wanted):
    silent = Prompt("silent", asked, wanted)
    both = PromptSet("t", "c", (silent, Prompt("other", "x", "y")))
    assert both.render(silent, {"no": 0}) is None
    assert {both.draw({"no": 0, "id": i})[0].fields["template"] for i in range(20)} == {"other"}
    assert PromptSet("t", "c", (silent,)).draw({"no": 0}) == ()


def test_a_row_draws_its_prompt_by_its_content_and_the_seed():
    several = PromptSet("t", "c", tuple(Prompt(str(i), "{{ x }}", "y") for i in range(4)))
    rows = [{"x": i, "y": -i} for i in range(400)]

    def drawn(seed: int, rows: list[dict[str, int]]) -> list[str]:
        return [several.draw(row, seed=seed)[0].fields["template"] for row in rows]

    assert drawn(0, rows) == drawn(0, [dict(reversed(row.items())) for row in rows])
    assert drawn(0, rows)[::-1] == drawn(0, rows[::-1])
    assert drawn(0, rows) != drawn(1, rows)
    assert all(60 < count < 140 for count in Counter(drawn(0, rows)).values())  # 100 each, sd 8.7
    assert sum(a == b for a, b in zip(drawn(0, rows), drawn(1, rows))) < 160


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": 1}, "r:1: prompt 'ask' of films: No column of the data is called 'text'."),
        ({"text": "x", "label": "2"}, "No label is called '2'. There is: 0, 1."),
        ({"text": "x", "label": None}, "No label is called 'None'."),
    ],
)
def test_a_row_that_does_not_fit_is_told(row, said):
    with pytest.raises(DataError) as caught:
        GOOD.render(ASK, row, "r:1")
    assert said in str(caught.value)
    assert str(caught.value).startswith("r:1: prompt 'ask' of films: ")


def test_templates_run_in_the_sandbox():
    for source in ("{{ x.__class__.__mro__ }}", "{{ x.append(1) }}", "{% for i in range(9999999) %}{% endfor %}"):
        with pytest.raises(DataError, match="cannot be filled"):
            PromptSet("t", "c", (Prompt("p", source, "y"),)).every({"x": [1]})


def test_a_template_may_fill_a_table_but_never_the_row():
    row = {"x": {"a": 1}}
    (made,) = PromptSet("t", "c", (Prompt("p", "{% if x.update({'a': 2}) %}{% endif %}{{ x.a }}", "y"),)).every(row)
    assert (made.prompt, row) == ("2", {"x": {"a": 1}})


def test_labels_are_named_or_counted():
    names = ["entailment", "contradiction", "neutral"]  # CommitmentBank's order
    assert labelled({"label": "contradiction"}, names, by_name=False) == {"label": 1}
    assert labelled({"label": 1}, names, by_name=True) == {"label": "contradiction"}
    with pytest.raises(DataError, match="has 'no' as label; the source's labels are: entailment, contra"):
        labelled({"label": "no"}, names, by_name=True)


# The built-in sets


def test_every_built_in_set_has_a_row_here():
    assert builtin().keys() == ROWS.keys()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_built_in_set_says_a_row_in_many_ways(name):
    made = prompt_set(name)
    turned = [prompt for prompt in made.prompts if prompt.turned]
    assert len(made.prompts) >= 10
    assert 2 <= len(turned) <= 4
    spoken = [made.render(prompt, ROWS[name]) for prompt in made.prompts]
    assert None not in spoken
    assert len({example.prompt for example in spoken if example}) == len(spoken)
    several = [example for example in made.every(ROWS[name]) if "choices" in example.fields]
    if made.answer:
        assert len(several) == len(made.prompts) - len(turned)
        assert any("OPTIONS:\n- " in example.prompt for example in several)
        assert all(example.target in example.fields["choices"] for example in several)


@pytest.mark.parametrize(
    ("name", "target", "turned"),
    [
        ("nli", "no", "cannot be true if this one is"),
        ("entailment", "yes", "settles"),
        ("sentiment", "positive", "positive comment"),
        ("topic", "sports", "Sports"),
        ("multiple_choice", "that", "that"),
        ("word_sense", "no", "a different"),
        ("question_answering", "5", "5"),
        ("arithmetic", "1005", "1,005"),
    ],
)
def test_a_built_in_set_finds_the_right_answer(name, target, turned):
    made = prompt_set(name)
    assert made.every(ROWS[name])[0].target == target
    first = next(prompt for prompt in made.prompts if prompt.turned and prompt.name.startswith(("write", "ask")))
    example = made.render(first, ROWS[name])
    assert example is not None
    assert turned in example.prompt


def test_the_forms_of_public_data_sets_are_known():
    made = prompt_set("multiple_choice")
    row = {"question_stem": "Which?", "choices": {"text": ["this", "that"], "label": ["1", "2"]}, "answerKey": "1"}
    assert {example.target for example in made.every(row)} == {"this"}
    assert {example.fields["choices"] for example in made.every(row)} == {("this", "that")}
    answers = prompt_set("question_answering").every(ROWS["question_answering"])[0].answers
    assert answers == ("5", "five")


def test_a_worked_sum_loses_its_calculator_marks():
    made = prompt_set("arithmetic")
    (working,) = [prompt for prompt in made.prompts if prompt.name == "show working"]
    example = made.render(working, ROWS["arithmetic"])
    assert example is not None
    assert example.target == "2 + 3 = 5\nSo the answer is 1,005."


# Files of templates

TABLE = yaml.safe_load((FOLDER / "nli.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"promts": []}, "f.yaml: No key is called 'promts'. Did you mean 'prompts'?"),
        ({"task": ""}, "f.yaml: task must be text"),
        ({"columns": []}, "f.yaml: columns is a table"),
        ({"answer": "lable"}, "f.yaml: answer: No column is called 'lable'. Did you mean 'label'?"),
        ({"prompts": []}, "f.yaml: prompts must be a list that holds something."),
        ({"choices": [True, "no"]}, "f.yaml: choices must be text, not True; quote words such as yes"),
        ({"labels": [["0"], ["1"]]}, "f.yaml: prompt 'follows' has 3 choices for 2 labels"),
    ],
)
def test_a_file_of_templates_is_read_strictly(change, said):
    with pytest.raises(DataError) as caught:
        parsed({**TABLE, **change}, "f.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": "x"}, "f.yaml: prompt 2: No key is called 'inputs'. Did you mean 'input'?"),
        ({"input": "{{ premis }}"}, "f.yaml: prompt 'options': No column is called 'premis'. Did you mean 'premise'?"),
        ({"input": "{{ premise"}, "f.yaml: prompt 'options': The template is not valid Jinja"),
        ({"turned": "yes"}, "f.yaml: prompt 2 (options): turned is true or false"),
        ({"name": "follows"}, "f.yaml: prompt 'follows' stands there twice."),
        ({"target": None}, "f.yaml: prompt 2 (options): target must be text, not None"),
    ],
)
def test_a_prompt_of_a_file_is_read_strictly(change, said):
    first, second, *rest = TABLE["prompts"]
    with pytest.raises(DataError) as caught:
        parsed({**TABLE, "prompts": [first, {**second, **change}, *rest]}, "f.yaml")
    assert said in str(caught.value)


def test_a_set_is_a_name_or_a_file(tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text((FOLDER / "nli.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert prompt_set(str(copy)) == prompt_set("nli")
    with pytest.raises(DataError, match="No set of templates is called 'nly'"):
        prompt_set("nly")


# The command line


def verb(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def test_templates_are_listed(capsys):
    verb("list", "templates", "--json")
    rows = {row["name"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == ROWS.keys()
    assert rows["nli"] == "nli, cluster nli, 10 prompts"


def test_the_first_rows_are_shown_in_every_prompt(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**ROWS["nli"], "label": label}) + "\n" for label in (0, 1, 2)))
    verb("list", "templates", "nli", "--data", path)
    said = capsys.readouterr().out
    assert said.startswith(
        f"nli, cluster nli, the first rows of {path}\n\n== follows, rows.jsonl:1\nIt rains.\n\nDoes it"
    )
    assert (said.count("rows.jsonl:1\n"), said.count("rows.jsonl:2\n"), said.count("rows.jsonl:3\n")) == (10, 10, 0)
    assert "\n=> yes\n" in said
    verb("list", "templates", "nli")
    assert "== write premise (turned around)\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("nly",), ("nli", "--data", "none.jsonl")])
def test_what_cannot_be_shown_is_told(words):
    with pytest.raises(AcclimateError) as caught:
        verb("list", "templates", *words)
    assert caught.value.status == 2
    with pytest.raises(AcclimateError, match="reads no data"):
        verb("list", "models", "--data", "x")
