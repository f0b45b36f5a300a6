"""Recipes are strict: unknown keys and values that do not fit are named with their line (G34)."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import RecipeError
from acclimate.methods import LoRA
from acclimate.recipe import Recipe, dump, load, parse
from acclimate.run import rungs
from acclimate.training.rates import Linear

GOOD = "model: m\ndata: {train: reviews}\ntask:\n  labels: [no, yes]\ntraining:\n  rate: 5e-4\n  steps: 10\n"
WRITTEN = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))
LADDERS = [path for path in WRITTEN if "\nrungs:" in path.read_text(encoding="utf-8")]
RECIPES = [path for path in WRITTEN if path not in LADDERS]

BAD = {
    "model: m\ndata: {train: r}\nmetod: lora\n": "recipe:3: No option of a recipe is called 'metod'. Did you mean 'method'?",
    "model: m\ndata: {trian: r}\n": "recipe:2: No option of data is called 'trian'. Did you mean 'train'?",
    "model: m\ndata: {train: r}\ntraining: {steps: many}\n": "recipe:3: training.steps must be a whole number, not 'many'.",
    "model: m\ndata: {train: r}\ntraining: {steps: 1.5}\n": "recipe:3: training.steps must be a whole number, not '1.5'.",
    "model: m\ndata: {train: r}\ntraining: {steps: '10'}\n": "recipe:3: training.steps must be a whole number, not '10'.",
    "model: m\ndata: {train: r}\ntraining: {steps: 0}\n": "recipe: training.steps must be above 0, not 0.",
    "model: m\ndata: {train: r}\ntraining: {rate: -1}\n": "recipe: training.rate must be 0 or more and finite, not -1.0.",
    "model: m\ndata: {train: r}\ntraining: {rate: .nan}\n": "training.rate must be",
    "model: m\ndata: {train: r}\ntraining: {rate: [1]}\n": "recipe:3: training.rate must be a number, not a list or table.",
    "model: m\ndata: {train: r}\nmethod: {name: lorra}\n": "recipe:3: No method is called 'lorra'. Did you mean 'lora'?",
    "model: m\ndata: {train: r}\nmethod: {rank: 4}\n": "recipe:3: method needs a name; there is: bitfit, did, dora",
    "model: m\ndata: {train: r}\nmethod: {name: lora, rnak: 4}\n": "No option of method is called 'rnak'. Did you mean 'rank'?",
    "model: m\ndata: {train: r}\nmethod: {name: full, rank: 4}\n": "No option of method is called 'rank'.",
    "model: m\n": "recipe:1: the recipe needs data.",
    "data: {train: r}\n": "recipe:1: the recipe needs model.",
    "model: m\ndata: {}\n": "recipe:2: data: needs train, a built-in name or a file",
    "model: m\nmodel: n\ndata: {train: r}\n": "recipe:2: model stands twice in the recipe.",
    "- a\n- b\n": "recipe is not a recipe",
    "": "recipe is not a recipe",
    "model: [m\n": "is not YAML",
    "model: m\n\tdata: x\n": "recipe:2 is not YAML",
    "model: &a m\ndata: {train: *a}\n": "recipe:2 uses a YAML alias (*a)",
    "model: m\ndata: reviews\n": "recipe:2: data must be a table of keys and values.",
    "model: m\ndata: {train: r}\ntask: {chat: maybe}\n": "recipe:3: task.chat must be true or false, not 'maybe'.",
    "model: m\ndata: {train: r}\ntask: {labels: [a]}\n": "task.labels must be at least two different names, not ['a'].",
    "model: m\ndata: {train: r}\ntask: {labels: [a, a]}\n": "task.labels must be at least two different names",
    "model: m\ndata: {train: r, truncation: cut}\n": "No choice is called 'cut'.",
    "model: m\ndata: {train: r}\ntraining: {precision: fp8}\n": "No choice is called 'fp8'.",
    "model: m\ndata: {train: r}\ntask: {sampler: {name: sample, temperature: 0}}\n": "temperature",
    "model: !!python/object:os.system m\ndata: {train: r}\n": "",
}


@pytest.mark.parametrize("text", [text for text, said in BAD.items() if said])
def test_bad_recipes_are_one_sentence_with_the_line(text):
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert BAD[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tags_are_text_and_run_nothing():
    assert parse("model: !!python/object:os.system m\ndata: {train: r}\n").model == "m"


def test_text_is_taken_as_it_is_written():
    recipe = parse(GOOD)
    assert recipe.task.labels == ("no", "yes")
    assert recipe.training.rate == 5e-4
    assert parse("model: 1.0\ndata: {train: 007}\n").data.train == "007"


def test_overrides_reach_every_level_in_any_order():
    recipe = parse(
        GOOD, overrides=["method.rank=16", "method.name=lora", "training.schedule=linear", "data.limit.test=7"]
    )
    assert recipe.method == LoRA(rank=16)
    assert recipe.training.schedule == Linear()
    assert recipe.data.limit.test == 7
    assert recipe.training.steps == 10


def test_options_may_follow_a_bare_name():
    recipe = parse(GOOD, overrides=["training.schedule=linear", "training.schedule.warmup=0.5"])
    assert recipe.training.schedule == Linear(0.5)
    assert parse(GOOD + "method: lora\n", overrides=["method.rank=3"]).method == LoRA(rank=3)


def test_another_choice_drops_the_options_of_the_old_one():
    text = GOOD + "method: {name: lora, rank: 4}\n"
    assert parse(text, overrides=["method.name=full"]) == replace(
        parse(text), method=type(parse(GOOD + "method: full\n").method)()
    )


@pytest.mark.parametrize("bad", ["training.steps", "=3", "training.stepz=3", "training.steps=x", "method=lorra"])
def test_bad_overrides_are_refused(bad):
    with pytest.raises(RecipeError):
        parse(GOOD, overrides=[bad])


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_recipes_of_the_project_are_read_and_written_back(path):
    recipe = load(path)
    assert parse(dump(recipe)) == recipe


def test_a_missing_recipe_names_its_neighbours(tmp_path):
    (tmp_path / "reviews.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"reviews\.yaml"):
        load(tmp_path / "review.yaml")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_recipes_only_raise_recipe_errors(data):
    raw = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        recipe = parse(raw.decode("utf-8", "replace"))
    except RecipeError:
        return  # what must not happen is any other error
    assert parse(dump(recipe)) == recipe


def test_every_default_is_written_out():
    text = dump(parse("model: m\ndata: {train: r}\n"))
    for entry in fields(Recipe):
        assert f"{entry.name}:" in text
        inner = entry.default
        if is_dataclass(inner) and not isinstance(inner, type):
            for option in fields(inner):
                assert f"{option.name}:" in text


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", LADDERS, ids=[p.stem for p in LADDERS])
def test_comparisons_that_come_with_it_are_read_and_written(path, quick, tmp_path):
    read = rungs.load(path, [], quick)
    (tmp_path / "again.yaml").write_text(rungs.dump(read), encoding="utf-8")
    assert rungs.load(tmp_path / "again.yaml", [], False) == read
    assert len({rung.name for rung in read.rungs}) == len(read.rungs) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{goood: [fine]}", "No label is called 'goood'"),
        ("{bad: []}", "at least one word"),
        ("{bad: [good]}", "the same one"),
    ],
)
def test_a_verbalizer_has_words_for_labels(words, said):
    text = f"model: m\ndata: {{train: t}}\ntask: {{labels: [bad, good], verbalizer: {words}}}\n"
    with pytest.raises(RecipeError, match=said):
        parse(text)
