"""Leave one category out: a run for each cluster, none of which learns what it is asked about, and one table of all."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from acclimate.cli.main import app
from acclimate.errors import AcclimateError, RecipeError
from acclimate.recipe import parse
from acclimate.report.left_out import headline, left_out_page
from acclimate.run import leave_out
from acclimate.run.leave_out import leaves_out, one_out
from acclimate.run.parts import parts
from tests.test_mixture_run import home  # noqa: F401


def text(home: Path, **changes) -> str:  # noqa: F811
    """Three tasks of two clusters, each cluster left out in turn."""
    sources = [
        {"rows": f"{home}/{name}.jsonl", "templates": "sentiment", "name": name, "cluster": f"kind {name[0]}"}
        for name in ("one", "two", "other")
    ]
    mixture = {"sources": sources, "hold_out": "each", **changes}
    return yaml.safe_dump(
        {
            "model": f"{home}/model",
            "data": {"mixture": mixture, "limit": {"train": 12, "dev": 4, "test": 32}},
            "task": {"metrics": ["exact_match", "rougeL"], "max_new_tokens": 4},
            "training": {"steps": 2, "tokens_per_step": 128, "precision": "float32"},
            "evaluation": {"forgetting": False, "draws": 50},
        }
    )


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("left")
    (folder / "r.yaml").write_text(text(home))
    app(["run", str(folder / "r.yaml"), "--out", str(folder / "out"), "--quiet"], standalone_mode=False)
    return folder / "out"


def test_every_run_lacks_the_cluster_that_it_is_asked_about(home):  # noqa: F811
    recipe = parse(text(home))
    assert leaves_out(recipe)
    each = one_out(recipe)
    assert list(each) == ["kind o", "kind t"]
    for cluster, without in each.items():
        assert not leaves_out(without)
        found = parts(without.data, without.task)
        assert {row.fields["cluster"] for row in found.test.rows} == {cluster}
        assert {row.fields["cluster"] for row in found.train.rows} == set(each) - {cluster}


def test_one_table_has_every_cluster_and_their_mean(finished):
    table = json.loads((finished / "report.json").read_text())
    assert [row["cluster"] for row in table["held_out"]] == ["kind o", "kind t"]
    for row in table["held_out"]:
        own = json.loads((finished / row["folder"] / "report.json").read_text())
        assert row["result"] == own["result"]
        assert own["recipe"]["data"]["mixture"]["hold_out"] == [row["cluster"]]
    for metric in ("exact_match", "rougeL"):
        sides = {
            side: [row[side]["scores"][metric]["value"] for row in table["held_out"]] for side in ("base", "result")
        }
        mean = table["mean"][metric]
        assert mean["base"] == pytest.approx(np.mean(sides["base"]))
        assert mean["difference"]["value"] == pytest.approx(np.mean(sides["result"]) - np.mean(sides["base"]))
    page = (finished / "report.html").read_text()
    assert '<a href="kind-o/report.html">kind o</a>' in page
    assert "Mean over categories" in page
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["data"]["mixture"]["hold_out"] == ["each"]


def test_what_is_finished_is_not_carried_out_again(finished, tmp_path, monkeypatch, capsys):
    before = (finished / "report.json").read_bytes()
    (finished / "report.json").unlink()
    monkeypatch.setattr(leave_out, "carry", lambda *given: pytest.fail("a finished run began anew"))
    recipe = str(finished / "recipe.yaml")
    app(["run", recipe, "--out", str(finished), "--resume", "--quiet"], standalone_mode=False)
    assert (finished / "report.json").read_bytes() == before
    said = capsys.readouterr().out
    assert "kind t  exact_match: " in said
    assert "over 2 categories" in said
    with pytest.raises(AcclimateError, match="finished run"):
        app(["run", recipe, "--out", str(finished)], standalone_mode=False)


def test_the_headline_counts_what_is_clear():
    def row(cluster, value, low, high):
        side = {"scores": {"rougeL": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 40}}}
        gap = {"rougeL": {"value": value, "low": low, "high": high, "p": 0.01}}
        return {"cluster": cluster, "folder": cluster, "base": side, "result": side, "difference": gap}

    found = {
        "model": "m",
        "method": "lora",
        "task": {"metrics": ["rougeL"], "directions": {"rougeL": True}},
        "held_out": [row("a", 0.1, 0.05, 0.2), row("b<i>", -0.1, -0.2, -0.05), row("c", 0.1, -0.1, 0.2)],
        "mean": {"rougeL": {"base": 0.5, "result": 0.5, "difference": {"value": 0, "low": 0, "high": 0, "p": 1.0}}},
        "recipe": {},
    }
    assert headline(found).endswith("clearly better in 1 of 3, clearly worse in 1")
    assert "<i>" not in left_out_page(found)


def test_one_cluster_cannot_be_left_out(home):  # noqa: F811
    given = yaml.safe_load(text(home))
    for source in given["data"]["mixture"]["sources"]:
        source["cluster"] = "all"
    with pytest.raises(RecipeError, match=r"two at least; there is: \['all'\]"):
        one_out(parse(yaml.safe_dump(given)))
