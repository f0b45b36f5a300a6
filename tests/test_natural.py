"""Natural Instructions: both layouts, every part on and off, and what is wrong told by its place."""

import json
from pathlib import Path

import pytest

from acclimate.data.natural import Parts, encode, examples, natural_instructions
from acclimate.errors import DataError

DATA = Path(__file__).parents[2] / "shared" / "data" / "natural_instructions"
TASK = {
    "task": "subtask001_add",
    "category": "Arithmetic",
    "definition": "Add the numbers.\nThings to avoid: Words.\nEmphasis & Caution: Be exact.",
    "positive_examples": [
        {"input": "1 2", "output": "3", "explanation": "1 + 2 is 3."},
        {"input": "2 2", "output": "4", "explanation": "-"},
        {"input": "3 3", "output": "6"},
    ],
    "negative_examples": [{"input": "1 1", "output": "two", "explanation": "That is a word."}],
}
INSTANCES = [
    {"task": "subtask001_add", "id": "a", "input": "4 4", "outputs": ["8", "eight"]},
    {"task": "subtask001_add", "id": "b", "input": "2 2", "outputs": ["4"]},
]
SECOND = {  # the published schema, version 2
    "Categories": ["Arithmetic"],
    "Definition": ["Add the numbers."],
    "Positive Examples": TASK["positive_examples"],
    "Negative Examples": TASK["negative_examples"],
    "Instances": [{"id": "a", "input": "4 4", "output": ["8", "eight"]}, {"id": "b", "input": "2 2", "output": ["4"]}],
}
FIRST = {  # and version 1
    "Title": "Adding",
    "Definition": "Add the numbers.",
    "Emphasis & Caution": "Be exact.",
    "Things to Avoid": "-",
    "Examples": {
        "Positive Examples": [{"input": "1 2", "output": "3", "reason": "1 + 2 is 3."}],
        "Negative Examples": [{"input": "1 1", "output": "two", "reason": "That is a word.", "suggestion": "-"}],
    },
    "Instances": [{"input": "4 4", "output": "8"}],
}
WHOLE = """Your task: Add the numbers.

Mind this: Be exact.

Avoid this: Words.

Good example 1
Input: 1 2
Output: 3
Reason: 1 + 2 is 3.

Good example 2
Input: 2 2
Output: 4

Bad example 1
Input: 1 1
Output: two
Reason: That is a word.

Input: 4 4
Output:"""
NONE = {"definition": False, "emphasis": False, "positive": 0, "negative": 0, "explanations": False}


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def folder(path: Path, task: dict[str, object] = TASK, instances: list[dict[str, object]] = INSTANCES) -> Path:
    lines(path / "tasks.jsonl", [task])
    lines(path / "instances.jsonl", instances)
    return path


def test_a_task_is_told_whole(tmp_path):
    (task,) = natural_instructions(folder(tmp_path))
    assert encode(task, "4 4", Parts(positive=2, negative=1, explanations=True)) == WHOLE


@pytest.mark.parametrize(
    ("part", "there", "name"),
    [
        ({"definition": True}, "Your task: Add the numbers.", "definition"),
        ({"emphasis": True}, "Mind this: Be exact.\n\nAvoid this: Words.", "emphasis"),
        ({"positive": 1}, "Good example 1\nInput: 1 2\nOutput: 3", "positive1"),
        ({"negative": 3}, "Bad example 1\nInput: 1 1\nOutput: two", "negative3"),
    ],
)
def test_each_part_stands_alone(part, there, name, tmp_path):
    (task,) = natural_instructions(folder(tmp_path))
    assert encode(task, "4 4", Parts(**{**NONE, **part})) == f"{there}\n\nInput: 4 4\nOutput:"
    assert Parts(**{**NONE, **part}).name == name
    assert encode(task, "4 4", Parts(**NONE)) == "Input: 4 4\nOutput:"


def test_reasons_are_a_part_of_their_own(tmp_path):
    (task,) = natural_instructions(folder(tmp_path))
    with_reasons, without = (
        encode(task, "4 4", Parts(positive=3, negative=1, explanations=on)) for on in (True, False)
    )
    assert with_reasons.replace("\nReason: 1 + 2 is 3.", "").replace("\nReason: That is a word.", "") == without
    assert "Reason" not in without
    assert Parts(explanations=True).name != Parts().name


def test_an_example_never_gives_the_answer_away(tmp_path):
    (task,) = natural_instructions(folder(tmp_path))
    asked = encode(task, "2 2", Parts())
    assert asked.count("Input: 2 2") == 1
    assert "Good example 2\nInput: 3 3" in asked


def test_instances_are_examples(tmp_path):
    first, second = examples(natural_instructions(folder(tmp_path))[0], Parts(positive=1))
    assert (first.target, first.answers, first.where) == ("8", ("8", "eight"), "instances.jsonl:1")
    assert (second.target, second.answers) == ("4", ("4",))
    assert first.fields == {
        "task": "subtask001_add",
        "template": "definition+emphasis+positive1",
        "cluster": "Arithmetic",
        "input": "4 4",
    }


def test_published_files_are_read_as_they_are(tmp_path):
    (tmp_path / "task002_add.json").write_text(json.dumps(SECOND))
    (tmp_path / "subtask001_add.json").write_text(json.dumps(FIRST))
    old, new = natural_instructions(tmp_path)
    assert (old.name, old.emphasis, old.avoid, old.category) == ("subtask001_add", "Be exact.", "", "none")
    assert (old.positive[0].reason, old.negative[0].output) == ("1 + 2 is 3.", "two")
    assert (new.name, new.category, new.definition, len(new.positive)) == (
        "task002_add",
        "Arithmetic",
        "Add the numbers.",
        3,
    )
    assert [(each.input, each.outputs) for each in new.instances] == [("4 4", ("8", "eight")), ("2 2", ("4",))]
    assert natural_instructions(tmp_path / "task002_add.json") == (new,)


@pytest.mark.parametrize(
    ("task", "instances", "said"),
    [
        ({**TASK, "definition": ""}, INSTANCES, "tasks.jsonl:1 has an empty definition"),
        ({"task": "x"}, INSTANCES, "tasks.jsonl:1 has no definition"),
        ({**TASK, "positive_examples": [{"input": "1"}]}, INSTANCES, "tasks.jsonl:1 has no output at positive[0]"),
        (
            TASK,
            [*INSTANCES, {"task": "x", "input": "1", "outputs": []}],
            "instances.jsonl:3 has an empty list as outputs",
        ),
        (TASK, [{**INSTANCES[0], "task": "subtask001_ad"}], "instances.jsonl:1 is of no known task. No task is called"),
        ({**TASK, "task": "y"}, [], "instances.jsonl has no instance of y"),
    ],
)
def test_what_is_wrong_in_a_folder_is_told(task, instances, said, tmp_path):
    with pytest.raises(DataError) as caught:
        natural_instructions(folder(tmp_path, task, instances))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps({**SECOND, "Instances": [{"input": "1"}]}), "t.json Instances[0] has no output"),
        (json.dumps({**SECOND, "Instances": []}), "t.json has an empty list as Instances"),
        (json.dumps({**SECOND, "Definition": 3}), "t.json has the number 3 as Definition"),
        ("[]", "t.json is a list; a task file is an object"),
        ('{"Definition": "x",\n"Instances": [', "t.json:2 is not JSON"),
    ],
)
def test_what_is_wrong_in_a_task_file_is_told(text, said, tmp_path):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError) as caught:
        natural_instructions(tmp_path / "t.json")
    assert str(caught.value).startswith(said)


def test_a_folder_without_tasks_is_told(tmp_path):
    with pytest.raises(DataError, match="holds neither"):
        natural_instructions(tmp_path)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_the_collection_is_read():
    tasks = natural_instructions(DATA)
    assert len(tasks) == 119
    assert {len(task.instances) for task in tasks} == {60}
    assert sum(bool(task.avoid) for task in tasks) == 4
    for task in tasks:
        made = examples(task, Parts(positive=3, negative=3, explanations=True))
        assert len(made) == 60
        assert all(example.prompt.startswith("Your task: ") and example.target for example in made)
