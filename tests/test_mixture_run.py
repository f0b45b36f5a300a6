"""A mixture of tasks as the rows of a run: who is learned, who is held out, in which wordings, how many."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from acclimate.cli.main import app
from acclimate.data.examples import Example
from acclimate.data.mixture import Source, first
from acclimate.errors import DataError, RecipeError
from acclimate.recipe import parse
from acclimate.run.mixture import evenly
from acclimate.run.parts import parts
from tests import spelling, tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Three tasks of two clusters, 60 rows each; `other` is of its own cluster."""
    folder = tmp_path_factory.mktemp("mixture")
    for name in ("one", "two", "other"):
        rows = [{"text": f"{name} {i}", "label": i % 2, "stars": f"*{i % 3}"} for i in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [{"prompt": f"say {i}", "completion": "good" if i % 2 else "bad"} for i in range(60)]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    reader = spelling.byte_level(template=None)
    tiny.llama(vocab=len(reader)).save_pretrained(folder / "model")
    reader.save_pretrained(folder / "model")
    return folder


def mixture(home, sources=("one", "two", "other"), more="", **of):
    """The parts of a mixture of these sources under the built-in wordings of sentiment."""
    entries = [
        {"rows": f"{home}/{name}.jsonl", "templates": "sentiment", "name": name, "cluster": name[0], **of.get(name, {})}
        for name in sources
    ]
    entries = [{"rows": e["rows"]} if e["rows"].endswith("plain.jsonl") else e for e in entries]
    given = yaml.safe_dump({"model": "m", "data": {"mixture": {"sources": entries}}}, sort_keys=False)
    recipe = parse(given, overrides=more.split())
    return parts(recipe.data, recipe.task)


def tasks(part):
    return Counter(row.fields.get("task", "") for row in part.rows)


def wordings(part):
    return Counter(row.fields.get("template", "") for row in part.rows)


def test_a_mixture_is_parted_by_prompt_and_every_row_says_its_task(home):
    found = mixture(home)
    counts = {name: tasks(getattr(found, name)) for name in ("train", "dev", "test")}
    assert sum(sum(count.values()) for count in counts.values()) == 180
    assert set(counts["train"]) == {"one", "two", "other"}
    prompts = [{row.prompt for row in getattr(found, name).rows} for name in ("train", "dev", "test")]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    assert found.train.name == "a mixture of 3 tasks"
    assert all(row.rendered and row.fields["choices"] for row in found.train.rows if "choices" in row.fields)


def test_a_cluster_held_out_is_never_learned_and_asked_about_in_every_wording(home):
    found = mixture(home, more="data.mixture.hold_out=[t]")
    assert set(tasks(found.train)) == {"one", "other"}
    assert set(tasks(found.test)) == {"two"}
    asked = wordings(found.test)
    assert len(asked) > 5
    assert len(set(asked.values())) == 1
    assert found.test.name == "held out: t"
    with pytest.raises(DataError, match="No cluster is called 'x'"):
        mixture(home, more="data.mixture.hold_out=[x]")


def test_fewer_tasks_and_wordings_are_among_more_and_dev_and_test_stay(home):
    every = mixture(home, more="data.mixture.hold_out=[o]", sources=("one", "two", "other", "plain"))
    assert set(tasks(every.train)) == {"two", "plain"}
    base = mixture(home)
    seen: set[str] = set()
    for count in (1, 2, 3):
        fewer = mixture(home, more=f"data.mixture.tasks={count}")
        assert len(tasks(fewer.train)) == count
        assert seen <= set(tasks(fewer.train))
        seen = set(tasks(fewer.train))
        assert (fewer.dev.rows, fewer.test.rows) == (base.dev.rows, base.test.rows)
    for count in (1, 3):
        fewer = mixture(home, more=f"data.mixture.templates={count}")
        assert len(wordings(fewer.train)) == count
        assert sorted(row.where for row in fewer.train.rows) == sorted(row.where for row in base.train.rows)
        assert (fewer.dev.rows, fewer.test.rows) == (base.dev.rows, base.test.rows)


def test_shares_by_weight_cap_and_temperature(home):
    assert set(tasks(mixture(home, more="data.limit.train=30").train).values()) <= {9, 10, 11}
    heavy = tasks(mixture(home, more="data.limit.train=40", two={"weight": 8.0}).train)
    assert heavy["two"] > 25
    capped = tasks(mixture(home, two={"cap": 5}).train)
    assert capped["two"] == 5 < capped["one"]
    warm = tasks(mixture(home, more="data.limit.train=60 data.mixture.temperature=100", two={"cap": 2}).train)
    assert warm["two"] > tasks(mixture(home, more="data.limit.train=60", two={"cap": 2}).train)["two"]


def test_columns_labels_templates_parts_and_names_reach_the_source(home):
    renamed = mixture(home, sources=("one",), one={"columns": {"text": "stars"}})
    assert "*1" in "".join(row.prompt for row in renamed.train.rows)
    turned = mixture(home, sources=("one",), one={"labels": ["positive", "negative"]})
    usual = mixture(home, sources=("one",))
    assert [r.target for r in turned.train.rows] != [r.target for r in usual.train.rows]
    other = mixture(home, sources=("one",), one={"templates": "sentiment", "cluster": "zzz", "name": "new"})
    assert set(tasks(other.train)) == {"new"}
    assert other.train.rows[0].fields["cluster"] == "zzz"
    plain = mixture(home, sources=("plain",))
    assert not plain.train.rows[0].rendered


def test_natural_instructions_and_their_parts(tmp_path, home):
    task = {
        "Definition": ["Say whether it is good."],
        "Categories": ["Judging"],
        "Positive Examples": [{"input": "sun", "output": "yes", "explanation": "It is warm."}],
        "Negative Examples": [],
        "Instances": [{"id": str(i), "input": f"thing {i}", "output": ["yes"]} for i in range(40)],
    }
    (tmp_path / "task001_judge.json").write_text(json.dumps(task))

    def first_prompt(shown):
        text = f"model: m\ndata: {{mixture: {{sources: [{{natural_instructions: {tmp_path}{shown}}}]}}}}\n"
        recipe = parse(text)
        return parts(recipe.data, recipe.task).train.rows[0].prompt

    assert "sun" in first_prompt("")
    only = first_prompt(", parts: [definition]")
    assert "Say whether it is good." in only
    assert "sun" not in only


def test_what_is_said_of_a_mixture_that_cannot_be():
    for text, said in (
        ("{train: a, mixture: {sources: [{rows: b}]}}", "needs train, a built-in name or a file, or else a mixture"),
        ("{test: a}", "needs train, a built-in name or a file, or else a mixture"),
        ("{mixture: {sources: [{rows: b}], hold_out: [c]}, test: d}", "both say what is asked about"),
        ("{mixture: {sources: [{rows: b}], temperature: 0}}", "temperature above 0"),
        ("{mixture: {sources: [{row: b}]}}", "Did you mean 'rows'"),
    ):
        with pytest.raises(RecipeError, match=said):
            parse(f"model: m\ndata: {text}\n")
    recipe = parse("model: m\ndata: {mixture: {sources: [{templates: nli}]}}\n")
    with pytest.raises(RecipeError, match="needs rows"):
        parts(recipe.data, recipe.task)


def test_a_test_of_the_same_source_keeps_to_its_own_part(home):
    found = mixture(home, sources=("one", "plain"), more=f"data.test={home}/plain.jsonl data.dev={home}/plain.jsonl")
    kept = {
        name: {row.prompt for row in getattr(found, name).rows if not row.rendered} for name in ("train", "dev", "test")
    }
    assert all(kept.values())
    assert sum(map(len, kept.values())) == len(set().union(*kept.values())) == 60


def test_few_and_even():
    assert first(["a", "b", "c"], 0) == {"a", "b", "c"}
    assert first(["a", "b", "c"], 1) < first(["c", "b", "a"], 2)

    def rows(count, wordings):
        fields = [{"template": w} for w in wordings]
        return tuple(Example("", fields=f, where=f"f:{i}") for i in range(count) for f in fields)

    sources = [Source("a", rows(50, "xyz"), "a"), Source("b", rows(5, "x"), "b")]
    assert Counter(row.fields["template"] for row in evenly(sources, 20)) == {"x": 8, "y": 3, "z": 3}
    assert len(evenly(sources, 0)) == 155


def test_rows_without_templates_may_be_held_out_too(home):
    found = mixture(home, sources=("one", "plain"), more="data.mixture.hold_out=[plain]")
    assert tasks(found.test) == {"plain": 60}
    assert set(tasks(found.train)) == {"one"}


def test_a_run_shows_each_held_out_task_with_the_spread_over_its_wordings(home, tmp_path, capsys):
    sources = [
        {"rows": f"{home}/{n}.jsonl", "templates": "sentiment", "name": n, "cluster": n[0]}
        for n in ("one", "two", "other")
    ]
    recipe = {
        "model": f"{home}/model",
        "data": {"mixture": {"sources": sources, "hold_out": ["o"]}, "limit": {"train": 12, "dev": 4, "test": 64}},
        "task": {"metrics": ["exact_match"], "max_new_tokens": 4},
        "training": {"steps": 2, "tokens_per_step": 128, "precision": "float32"},
        "evaluation": {"forgetting": False, "draws": 50},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert not app(["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")], standalone_mode=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    shown = report["groups"]["tasks"]
    assert set(shown) == {"one", "other"}
    assert all(len(task["templates"]) > 5 for task in shown.values())
    again = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert again["data"]["mixture"]["hold_out"] == ["o"]
