"""Our benchmarks beside lm-evaluation-harness's own, on the same model and rows, and the bridge both ways."""

import json
import logging
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from acclimate.errors import DataError, UsageError
from acclimate.evaluation.benchmarks import Asked, Benchmark, answers, load, questions
from acclimate.evaluation.evaluate import rows_of, scores
from acclimate.evaluation.harness import Harness, harness
from tests import bench

lm_eval = pytest.importorskip("lm_eval")
METRICS = {  # theirs → ours
    "exact_match,strict-match": "exact_match_strict",
    "exact_match,flexible-extract": "exact_match_flexible",
    "acc,none": "acc",
    "acc_norm,none": "acc_norm",
}
SHORT = 24  # tokens written here at most
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of every task; some of gsm8k's answers are what the model writes."""
    place = bench.data(tmp_path_factory.mktemp("rows"))
    task = mine("gsm8k")
    strict, flexible = task.measures()
    asked = questions(task, place)
    path = place / "gsm8k" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    written = answers(task, asked, bench.asked())
    assert strict.found(written[0].text) == "[invalid]"
    for row, output in list(zip(rows, written, strict=True))[::2]:
        row["answer"] = f"because\n#### {flexible.found(output.text)}"
    bench.write(place, "gsm8k/test", rows)
    return place


def shortened(name: str, folder: Any) -> Any:
    """Their task, which writes less than it would, and with MMLU's five shots, which its YAML leaves to the caller."""
    task = bench.their(name, folder)
    if name == "gsm8k":
        assert "max_gen_toks" not in task.config.generation_kwargs  # then it is 256
        task.set_config(key="generation_kwargs", value={"max_gen_toks": SHORT}, update=True)
    shots = 5 if name == "mmlu" else task.get_config("num_fewshot") or 0
    task.set_config(key="num_fewshot", value=shots)
    return task


@cache
def theirs(name: str, folder: Any, bos: bool) -> dict[str, Any]:
    """What lm-evaluation-harness finds with its own model class."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    asked = bench.asked(bos)
    lm = HFLM(pretrained=asked.model, tokenizer=asked.codec.tokenizer, batch_size=4, device="cpu", max_length=4096)
    task = shortened(name, folder)
    task.set_fewshot_seed(seed=1234)
    return evaluate(lm=lm, task_dict={"tasks": {task.task_name: task}}, bootstrap_iters=100)


def mine(name: str) -> Benchmark:
    """Our task; it writes as little as theirs does here."""
    task = load(name)
    return replace(task, max_new=min(task.max_new, SHORT))


def samples(made: dict[str, Any]) -> list[dict[str, Any]]:
    """One a row, of the first filter."""
    (rows,) = made["samples"].values()
    return [row for row in rows if row["filter"] == rows[0]["filter"]]


def contexts(asked: list[Asked]) -> list[list[tuple[str, ...]]]:
    return [[(one.context, text) for text in one.continuations] or [(one.context,)] for one in asked]


@pytest.mark.parametrize(
    ("name", "bos"), [*((name, False) for name in bench.TASKS), ("hellaswag", True), ("wic", True), ("copa", True)]
)
def test_requests_answers_and_scores_are_theirs(name, bos, folder):
    task, made = mine(name), theirs(name, folder, bos)
    asked = questions(task, folder)
    rows = samples(made)
    assert contexts(asked) == [[tuple(a[: len(asked[0].continuations[:1]) + 1]) for a in r["arguments"]] for r in rows]
    given = answers(task, asked, bench.asked(bos))
    for output, row in zip(given, rows, strict=True):
        if task.max_new:
            assert output.text == row["resps"][0][0]
        else:
            assert list(output.scores.values()) == pytest.approx([r[0][0] for r in row["resps"]], abs=1e-9)
    kind = "text" if task.max_new else "labels"
    measured = rows_of(task.measures(), {kind: given}, [one.example for one in asked])
    found = scores(task.measures(), measured, 100, 0)
    (table,) = made["results"].values()
    compared = {ours: their for their, ours in METRICS.items() if their in table}
    if name == "truthfulqa_mc2":
        compared = {"mc2": "acc,none"}
    assert set(compared) == set(found)
    for ours, their in compared.items():
        assert found[ours].value == pytest.approx(table[their], abs=1e-9)
        assert found[ours].stderr == pytest.approx(table[their.replace(",", "_stderr,")], abs=1e-9)


def test_some_answers_are_right_and_some_are_wrong(folder):
    """Else the comparison above would say little."""
    for name in bench.TASKS:
        (table,) = theirs(name, folder, False)["results"].values()
        values = [value for key, value in table.items() if key in METRICS and "strict" not in key]
        assert any(0 < value < 1 for value in values), (name, values)


@pytest.mark.parametrize("name", ["arc_easy", "gsm8k", "mmlu"])
def test_a_task_of_theirs_asked_through_the_bridge(name, folder):
    expected = theirs(name, folder, False)
    task = shortened(name, folder)
    (got,) = harness([task], bench.asked(), manager=bench.manager())
    ((their_name, table),) = expected["results"].items()
    assert isinstance(got, Harness)
    assert got.name == f"harness:{their_name}"
    for key in table:
        if key in METRICS:
            plain = key.removesuffix(",none").replace(",", "_")
            assert got.scores[plain].value == pytest.approx(table[key], abs=1e-9)
            assert got.scores[plain].stderr == pytest.approx(table[key.replace(",", "_stderr,")], abs=1e-9)
            assert got.scores[plain].n == 6
    assert len(got.rows) == 6 * len({row["filter"] for row in got.rows})
    assert [row["answered"] for row in got.rows] == _near(
        [row["resps"] for row in next(iter(expected["samples"].values()))]
    )


def _near(answers: Any) -> Any:
    """Numbers to nine digits, wherever they stand."""
    if isinstance(answers, list | tuple):
        return [_near(one) for one in answers] if isinstance(answers, list) else tuple(map(_near, answers))
    return pytest.approx(answers, abs=1e-9) if isinstance(answers, float) else answers


@pytest.mark.parametrize("bos", [False, True])
def test_as_their_model_it_answers_like_their_own(bos):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from acclimate.evaluation.harness_model import AcclimateLM

    asked = bench.asked(bos)
    own = AcclimateLM(asked)
    lm = HFLM(pretrained=asked.model, tokenizer=asked.codec.tokenizer, batch_size=2, device="cpu", max_length=4096)
    greedy = own.generate_until([Instance("generate_until", {}, ("the quick", {"until": [], "max_gen_toks": 3}), 0)])[0]
    pairs = [
        ("the quick", " brown fox"),
        ("the quick ", "brown"),
        ("the quick\n\n", "brown  fox"),
        ("", "the lazy dog"),
        ("the quick", greedy),
        ("good or b", "ad film"),  # the boundary lies inside a word
        *(("the quick", digit) for digit in "0123456789"),
    ]
    asks = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    expected = lm.loglikelihood(asks, disable_tqdm=True)
    got = own.loglikelihood(asks)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=1e-9)
    assert [flag for _, flag in got] == [flag for _, flag in expected]
    assert got[4][1]
    texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("the lazy dog is good", "a")]
    assert own.loglikelihood_rolling(texts) == pytest.approx(
        lm.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-9
    )
    for settings in (
        {"until": ["0", "1"], "max_gen_toks": 30},
        {"until": "7", "max_new_tokens": 5, "do_sample": False},
    ):
        writes = [Instance("generate_until", {}, (text, settings), 0) for text in ("the lazy dog", "hello", "the lazy")]
        assert own.generate_until(writes) == lm.generate_until(writes, disable_tqdm=True)
    with pytest.raises(DataError, match="'d film' adds no token"):  # "good or ba" takes as many as "good or bad film"
        own.loglikelihood([Instance("loglikelihood", {}, ("good or ba", "d film"), 0)])
    with pytest.raises(UsageError, match="typical_p"):
        own.generate_until([Instance("generate_until", {}, ("a", {"typical_p": 0.5}), 0)])


def test_a_long_text_rolls_through_the_context():
    """Every token is scored once, whatever the window; with one that holds it all the sum is the plain one."""
    from lm_eval.api.instance import Instance

    from acclimate.evaluation.harness_model import AcclimateLM

    text = [Instance("loglikelihood_rolling", {}, ("the quick brown fox jumps over the lazy dog " * 3,), 0)]
    asked = bench.asked()
    count = len(asked.codec.plain(text[0].args[0]))
    small = AcclimateLM(replace(asked, context=16))
    windows = small._windows(text[0].args[0])
    assert sum(sum(row.scored) for row in windows) == count
    assert max(len(row.ids) for row in windows) <= 16
    assert small.loglikelihood_rolling(text) != AcclimateLM(asked).loglikelihood_rolling(text)


def test_a_task_that_there_is_not():
    with pytest.raises(
        UsageError, match=r"No task of lm-evaluation-harness is called 'arc_eazy'\. Did you mean 'arc_easy'"
    ):
        harness(["arc_eazy"], bench.asked(), manager=bench.manager())
