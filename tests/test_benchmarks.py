"""Benchmarks: files of every form to rows, rows to what is asked, and what is asked to scores."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acclimate.data.benchmarks import READERS, examples, table
from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, InputError, SourceError, UsageError
from acclimate.evaluation.benchmarks import Benchmark, answers, load, names, questions
from acclimate.evaluation.continuations import spelled
from acclimate.metrics.choice import ChoiceAccuracy, Grade, NormalisedAccuracy, TrueMass
from acclimate.run.benchmarks import asked_of, read_tasks
from tests import bench
from tests.runs import verb

CHAIN = (
    "CANARY\n-----\nAdd numbers.\n\nQ: 1 and 1\nA: Let's think step by step.\nOne and one. So the answer is 2.\n\n"
    "Q: 1 and 2\nA: Let's think step by step.\nOne, two.\n\nThen three. So the answer is (C).\n\n"
    "Q: 0 and 0\nA: Let's think step by step.\nNothing. So the answer is 0."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bench.data(tmp_path_factory.mktemp("rows"), 8)


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def fields(path: Path, reader: str) -> dict:
    return dict(examples([path], READERS[reader])[0].fields)


# readers


def test_mmlu_as_its_authors_publish_it(tmp_path):
    path = put(tmp_path, "world_religions_test.csv", '"Who, ""then""?",a,b,"c, d",e,C\nWhat?,1,2,3,4,A\n')
    rows = examples([path], READERS["mmlu"])
    assert [row.fields["subject"] for row in rows] == ["world_religions"] * 2
    assert rows[0].fields["choices"] == ("a", "b", "c, d", "e")
    assert rows[0].fields["weights"] == (0, 0, 1, 0)
    assert (rows[1].where, rows[1].fields["answer"]) == ("world_religions_test.csv:2", 0)


def test_hellaswag_in_halves_and_in_one(tmp_path):
    whole = {
        "activity": "Running",
        "context": "He wakes up. He runs. the man",
        "endings": ["x [step] y", "b"],
        "label": 1,
    }
    halves = {"activity_label": "Running", "ctx_a": "He wakes up. He runs.", "ctx_b": "the man", "label": "1"}
    row = fields(put(tmp_path, "a.jsonl", json.dumps(whole)), "hellaswag")
    other = fields(put(tmp_path, "b.jsonl", json.dumps({**halves, "endings": ["x [step] y", "b"]})), "hellaswag")
    assert row["query"] == other["query"] == "Running: He wakes up. He runs. The man"
    assert row["choices"] == other["choices"] == ("x y", "b")
    assert row["weights"] == other["weights"] == (0, 1)
    ended = {"activity": "How to bake", "context": "Buy it. Mix all of it.", "endings": ["a", "b"], "label": 0}
    assert (
        fields(put(tmp_path, "c.jsonl", json.dumps(ended)), "hellaswag")["query"]
        == "How to bake: Buy it. Mix all of it."
    )


@pytest.mark.parametrize(
    "row",
    [
        {
            "question": {"stem": "Why?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]},
            "answerKey": "2",
        },
        {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Why?", "choices": ["x", "y"], "answer": "B"},
    ],
)
def test_arc_in_its_three_forms(row, tmp_path):
    read = fields(put(tmp_path, "a.jsonl", json.dumps(row)), "arc")
    assert (read["question"], read["choices"], read["weights"]) == ("Why?", ("x", "y"), (0, 1))


def test_truthfulqa_in_its_four_forms(tmp_path):
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"
    table = put(tmp_path, "TruthfulQA.csv", f"{header}\nAdversarial,Myths,Why?,a,a; b ;,c; d,https://x\n")
    lists = {"question": "Why?", "best_answer": "a", "correct_answers": ["a", "b"], "incorrect_answers": ["c", "d"]}
    maps = {
        "question": "Why?",
        "mc1_targets": {"a": 1, "c": 0, "d": 0},
        "mc2_targets": {"a": 1, "b": 1, "c": 0, "d": 0},
    }
    hub = {
        "question": "Why?",
        "mc1_targets": {"choices": ["a", "c", "d"], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["a", "b", "c", "d"], "labels": [1, 1, 0, 0]},
    }
    for path in (table, *(put(tmp_path, f"{i}.json", json.dumps([row])) for i, row in enumerate((lists, maps, hub)))):
        one, two = fields(path, "truthfulqa_mc1"), fields(path, "truthfulqa_mc2")
        assert (one["question"], one["choices"], one["weights"]) == ("Why?", ("a", "c", "d"), (1, 0, 0)), path.name
        assert (two["choices"], two["weights"]) == (("a", "b", "c", "d"), (1, 1, 0, 0)), path.name


def test_wic_with_places_and_without(tmp_path):
    row = {"word": "carry", "sentence1": "He carried it.", "sentence2": "Carry on.", "label": True}
    placed = {**row, "start1": 3, "end1": 10}
    for name, form in (("a", row), ("b", placed)):
        read = fields(put(tmp_path, f"{name}.jsonl", json.dumps(form)), "wic")
        assert (read["surface"], read["weights"]) == ("carried", (0, 1))


def test_bigbench_as_its_authors_publish_it(tmp_path):
    task = {
        "canary": "GUID",
        "name": "dates",
        "task_prefix": "Tell.\n",
        "examples": [
            {"input": "When?", "target_scores": {"then": 1, "now": 0.5}},
            {"input": "Why?", "target_scores": {"a": 1}},
        ],
    }
    row = fields(put(tmp_path, "task.json", json.dumps(task)), "bigbench")
    assert row["prompt"] == "Tell.\n\nQ: When?\n  choice: now\n  choice: then\nA:"
    assert (row["task"], row["choices"], row["weights"]) == ("dates", ("now", "then"), (0.5, 1))
    assert "canary" not in row


def test_bbh_and_its_chains(tmp_path):
    put(tmp_path, "bbh/sums.json", json.dumps({"canary": "GUID", "examples": [{"input": "2 and 2", "target": "4"}]}))
    put(tmp_path, "cot-prompts/sums.txt", CHAIN)
    (direct,), (chained,) = (questions(load(name), tmp_path) for name in ("bbh", "bbh_cot"))
    shots = "Q: 1 and 1\nA: 2\n\nQ: 1 and 2\nA: (C)\n\nQ: 0 and 0\nA: 0\n\n"
    assert direct.context == f"Add numbers.\n\n{shots}Q: 2 and 2\nA:"
    assert chained.context == CHAIN.split("-----\n")[1] + "\n\nQ: 2 and 2\nA: Let's think step by step.\n"
    (metric,) = load("bbh_cot").measures()
    assert metric.row(Output("It is. So the answer is 4."), chained.example) == (1,)
    assert metric.row(Output("So the answer is 5."), chained.example) == (0,)
    assert load("bbh").measures()[0].row(Output(" 4"), direct.example) == (1,)


def test_glue_tables_in_which_quotes_are_text(tmp_path):
    lines = 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t"So he said.\tHe said so."\n'
    put(tmp_path, "MRPC/dev.tsv", lines)
    (asked,) = questions(load("mrpc"), tmp_path)
    assert asked.context.startswith('Sentence 1: "So he said.\nSentence 2: He said so."\nQuestion:')
    assert (asked.continuations, asked.example.target) == ((" no", " yes"), "yes")
    put(
        tmp_path,
        "BoolQ/val.jsonl",
        json.dumps({"question": "is it", "title": "It", "answer": False, "passage": "It is."}),
    )
    (asked,) = questions(load("boolq"), tmp_path)
    assert (asked.context, asked.example.target) == ("It is.\nQuestion: is it?\nAnswer:", "no")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "mmlu/test.jsonl",
            '{"question": "Why?", "choices": ["a", "b"], "answer": "E"}',
            r"test\.jsonl:1 has 'E' as its answer",
        ),
        ("mmlu/test/x_test.csv", "a,b,c,d,e,A\na,b,c,A\n", r"x_test\.csv:2 has 4 fields; there should be 6"),
        ("mmlu/test.jsonl", '{"question": "Why?", "choices": ["a", "b"]}', r"test\.jsonl:1 has no answer"),
        ("mmlu/test.jsonl", "{", r"test\.jsonl:1 is not JSON"),
    ],
)
def test_a_row_that_cannot_be_asked_stops_everything(name, text, said, tmp_path):
    put(tmp_path, name, text)
    with pytest.raises(DataError, match=said):
        questions(replace(load("mmlu"), shots=None), tmp_path)


def test_a_label_that_there_is_not(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"label": "perhaps"}')
    with pytest.raises(DataError, match="perhaps"):
        examples([path], table({}, ("no", "yes")))


# tasks


@pytest.mark.parametrize("name", names())
def test_every_task_is_whole(name):
    task = load(name)
    assert task.about
    assert task.measures()
    assert callable(task.read())
    assert bool(task.max_new) == bool(task.finders)


def test_a_task_of_ones_own(tmp_path):
    path = put(
        tmp_path, "mine.yaml", 'about: mine\nfiles: rows.jsonl\nprompt: "{{ q }} is"\nchoices: [b, a]\nlabels: [x, y]\n'
    )
    put(tmp_path, "rows.jsonl", '{"q": "It", "label": "y"}\n{"q": "He", "label": 0}')
    first, second = questions(load(str(path)), tmp_path)
    assert (first.context, first.continuations, first.example.target) == ("It is", (" b", " a"), "a")
    assert second.example.target == "b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("about: x\nfiles: a\nprompt: b\nmetric: acc", "No key is called 'metric'. Did you mean 'metrics'"),
        ("about: x\nfiles: a", "has no prompt"),
        ("about: x\nfiles: a\nprompt: b\nmetrics: [akk]", "No metric is called 'akk'"),
        ("about: x\nfiles: a\nprompt: b\nreader: mmlo", "No reader is called 'mmlo'. Did you mean 'mmlu'"),
        ("about: x\nfiles: a\nprompt: b\nshots: {files: a, count: 1, draws: each}", "No key is called 'draws'"),
        ("about: [", "is not YAML"),
        ("- a", "holds no task"),
    ],
)
def test_a_task_file_that_says_what_there_is_not(text, said, tmp_path):
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(".", r"\.")):
        load(str(put(tmp_path, "mine.yaml", text)))


def test_names_and_data_that_there_are_not(tmp_path):
    with pytest.raises(UsageError, match=r"No task is called 'helaswag'\. Did you mean 'hellaswag'"):
        load("helaswag")
    with pytest.raises(SourceError, match=r"hellaswag has no data in .* it looks for hellaswag/dev\.jsonl or"):
        questions(load("hellaswag"), tmp_path)


def quiz(subject: str, number: int) -> str:
    row = {"subject": subject, "question": f"{subject} {number}?", "choices": list("wxyz"), "answer": "A"}
    return json.dumps(row) + "\n"


def test_shots_are_of_the_same_subject_and_the_limit_is_of_each(tmp_path):
    put(tmp_path, "mmlu/test.jsonl", "".join(quiz(s, n) for n in range(3) for s in ("law", "art_history")))
    put(tmp_path, "mmlu/dev.jsonl", "".join(quiz(s, n) for s in ("law", "art_history") for n in range(10, 16)))
    asked = questions(load("mmlu"), tmp_path, 2)
    assert [one.example.fields["question"] for one in asked] == ["law 0?", "art_history 0?", "law 1?", "art_history 1?"]
    options = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    shots = "".join(f"art_history {n}?{options} A\n\n" for n in range(10, 15))
    about = "The following are multiple choice questions (with answers) about art history.\n\n"
    assert asked[1].context == f"{about}{shots}art_history 0?{options}"
    put(tmp_path, "mmlu/dev.jsonl", quiz("law", 1))
    with pytest.raises(DataError, match=r"mmlu needs 5 worked examples for test\.jsonl:1; there are 1"):
        questions(load("mmlu"), tmp_path)


# asking


@torch.no_grad()
def slow(context: str, continuation: str) -> float:
    """Σ log p of the continuation's ids, each from a pass of its own."""
    asked = bench.asked()
    before, after = asked.codec.plain(context), asked.codec.plain(continuation)
    total = 0.0
    for t in range(len(after)):
        logits = asked.model(torch.tensor([[*before, *after[:t]]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[after[t]])
    return total


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "hellaswag"])
def test_log_probabilities_equal_the_slow_loop(name, folder):
    asked = questions(load(name), folder)[:3]
    outputs = answers(load(name), asked, bench.asked())
    for one, output in zip(asked, outputs, strict=True):
        expected = [slow(one.context, continuation) for continuation in one.continuations]
        assert list(output.scores.values()) == pytest.approx(expected, abs=1e-8)
        assert output.text == list(output.scores)[expected.index(max(expected))]
        assert output.prompt_ids == bench.asked().codec.plain(one.context)


@pytest.mark.parametrize("name", ["mmlu", "hellaswag", "arc_easy", "boolq", "wic", "gsm8k"])
def test_what_is_answered_does_not_depend_on_the_budget(name, folder):
    """Bit for bit: of the raw sums the last bits do, because a matrix library has other kernels for other shapes."""
    task = replace(load(name), max_new=min(load(name).max_new, 8))
    asked = questions(task, folder)
    small, large = (answers(task, asked, replace(bench.asked(), budget=budget)) for budget in (64, 8192))
    assert small == large


def test_a_context_that_does_not_fit_loses_its_oldest_part():
    row = replace(bench.asked(True), context=9)
    (cut,) = row.rows([("the quick brown fox jumps over the lazy dog", " is good")])
    whole = spelled(row.codec, "the quick brown fox jumps over the lazy dog", " is good")
    assert len(cut.ids) == 9
    assert cut.ids == whole.ids[:1] + whole.ids[-8:]
    assert cut.truncated == len(whole.ids) - 9
    assert sum(cut.scored) == sum(whole.scored)


def test_the_choices_of_a_question_are_read_after_one_context(folder):
    """Tokens that the model computes for HellaSwag: once for the context, and once for each ending."""
    asked = [replace(one, context=one.context * 4) for one in questions(load("hellaswag"), folder)]
    computed = Counter()
    hook = bench.asked().model.model.register_forward_pre_hook(
        lambda module, given, named: computed.update(tokens=named["input_ids"].numel()), with_kwargs=True
    )
    try:
        answers(load("hellaswag"), asked, bench.asked())
    finally:
        hook.remove()
    rows = [bench.asked().rows([(one.context, text) for text in one.continuations]) for one in asked]
    contexts = sum(row[0].scored.index(True) for row in rows)
    endings = sum(sum(one.scored) for row in rows for one in row)
    assert computed["tokens"] <= 1.3 * (contexts + endings)
    assert sum(len(one.ids) for row in rows for one in row) > 1.8 * computed["tokens"]


# scores


def test_metrics_by_hand():
    choices, weights = ("ab", "abcdef", "abcd"), (0.0, 1.0, 0.5)
    row = Example("", fields={"choices": choices, "weights": weights})
    output = Output(scores=dict(zip(choices, (-2.0, -3.0, -2.5), strict=True)))  # a character: -1, -0.5, -0.625
    found = [metric.row(output, row)[0] for metric in (ChoiceAccuracy(), NormalisedAccuracy(), Grade(), TrueMass())]
    assert found[:3] == [0, 1, 0]
    assert found[3] == pytest.approx(1 / (2.718281828459045 + 1 + 1.6487212707001282))  # e, 1 and √e
    swapped = Output(scores=dict(zip(choices, (-3.0, -3.0, -2.5), strict=True)))
    assert Grade().row(swapped, row) == (0.5,)
    assert ChoiceAccuracy().row(swapped, row) == (0,)  # half right is not right


def test_two_choices_of_one_text_stay_two(folder):
    task, (one, *_) = load("arc_easy"), questions(load("arc_easy"), folder)
    example = replace(one.example, fields={**one.example.fields, "choices": ("a", "a", "b", "c")})
    twin = replace(one, example=example, continuations=(" a", " a", " b", " c"))
    (output,) = answers(task, [twin], bench.asked())
    assert len(output.scores) == 4


def test_a_result_has_its_rows_and_the_scores_of_its_parts(tmp_path):
    put(tmp_path, "mmlu/test.jsonl", "".join(quiz(s, n) for n in range(4) for s in ("law", "art")))
    put(tmp_path, "mmlu/dev.jsonl", "".join(quiz(s, n) for s in ("law", "art") for n in range(5)))
    ((task, asked),) = read_tasks(["mmlu"], tmp_path, 0)
    result = asked_of(task, asked, bench.asked(), lambda what, count: lambda n: None)
    assert isinstance(task, Benchmark)
    assert sorted(result.groups) == ["art", "law"]
    right = [row["metrics"]["acc"][0] for row in result.rows]
    assert result.scores["acc"].value == sum(right) / 8
    assert result.groups["law"]["acc"].value == sum(right[::2]) / 4
    assert result.groups["law"]["acc"].n == 4
    assert [row["text"] == row["target"] for row in result.rows] == [bool(value) for value in right]


def test_the_verb(home, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("acclimate.run.open.choose", lambda precision, where: torch.float32)  # else it is tried out
    out = tmp_path / "out"
    given = ["--tasks", "arc_easy, boolq", "--data-folder", folder, "--limit", 3]
    verb("evaluate", "--model", home / "model", *given, "--out", out)
    assert "arc_easy         acc_norm" in capsys.readouterr().out
    table = json.loads((out / "scores.json").read_text())
    assert {name: list(found["scores"]) for name, found in table["tasks"].items()} == {
        "arc_easy": ["acc_norm", "acc"],
        "boolq": ["acc"],
    }
    assert table["tasks"]["boolq"]["scores"]["acc"]["n"] == 3
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["arc_easy"] * 3 + ["boolq"] * 3
    verb("evaluate", "--model", home / "model", *given, "--out", out, expect=2)
    verb("evaluate", "--model", home / "model", *given, "--data", "reviews", expect=2)
    verb("evaluate", "--model", home / "model", "--tasks", "arc_eazy", expect=2)
    capsys.readouterr()
    verb("list", "tasks", "--json")
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == names()
