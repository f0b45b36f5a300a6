"""Mixtures: shares by hand and by a slow loop, and what an entry of a recipe's list becomes."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.data.examples import Conversation, Example
from acclimate.data.instruction import sources
from acclimate.data.mixture import Source, counts, held_out, leave_one_out, mix, shares
from acclimate.errors import DataError

DATA = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def source(name: str, size: int, cluster: str = "c", weight: float = 1.0, cap: int | None = None) -> Source:
    rows = tuple(Example(f"{name} {i}", "x", fields={"task": name}) for i in range(size))
    return Source(name, rows, cluster, weight, cap)


def tally(rows) -> Counter[str]:
    return Counter(row.fields["task"] for row in rows)


# Shares


def test_shares_by_hand():
    three = [source("a", 10), source("b", 100), source("c", 1000, cap=200)]
    assert shares(three) == pytest.approx({"a": 10 / 310, "b": 100 / 310, "c": 200 / 310}, abs=1e-12)
    assert counts(three) == {"a": 10, "b": 100, "c": 200}
    assert counts(three, total=31) == {"a": 1, "b": 10, "c": 20}
    assert counts([source("a", 4), source("b", 16)], 6, temperature=2) == {"a": 2, "b": 4}
    assert counts([source("a", 4), source("b", 16)], 10, temperature=1e9) == {"a": 5, "b": 5}
    assert counts([source("a", 10, weight=3), source("b", 10)], 8) == {"a": 6, "b": 2}
    assert counts([source("b", 1), source("a", 1), source("c", 1)], 4) == {"a": 2, "b": 1, "c": 1}


def apportioned(sizes: dict[str, int], cap: int, total: int) -> dict[str, int]:
    """Largest remainders in whole numbers, one row at a time."""
    capped = {name: min(size, cap) for name, size in sizes.items()}
    exact = {name: Fraction(total * size, sum(capped.values())) for name, size in capped.items()}
    rows = {name: int(share) for name, share in exact.items()}
    while sum(rows.values()) < total:
        best = max(exact[name] - rows[name] for name in exact if rows[name] == int(exact[name]))
        name = min(n for n in exact if rows[n] == int(exact[n]) and exact[n] - rows[n] == best)
        rows[name] += 1
    return rows


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 64))
def test_counts_are_the_largest_remainders(sizes, cap, total):
    named = {f"s{i}": size for i, size in enumerate(sizes)}
    made = counts([source(name, size, cap=cap) for name, size in named.items()], total)
    assert sum(made.values()) == total
    whole = sum(min(size, cap) for size in sizes)
    for name, size in named.items():
        assert abs(made[name] - Fraction(total * min(size, cap), whole)) < 1
    exact = {name: Fraction(total * min(size, cap), whole) % 1 for name, size in named.items()}
    if len(set(exact.values())) == len(exact):  # else the rounding of shares decides between equals
        assert made == apportioned(named, cap, total)


# Mixing


def test_a_mixture_does_not_depend_on_the_order_of_sources():
    two = [source("a", 30), source("b", 50, weight=2)]
    made = mix(two, seed=0, total=60)
    assert made == mix(two[::-1], seed=0, total=60)
    assert made == mix(two, seed=0, total=60)
    assert made != mix(two, seed=1, total=60)
    assert len(made) == 60


def test_a_mixture_is_well_mixed():
    made = mix([source("a", 300), source("b", 300)], seed=0)
    halves = tally(made[:300])
    assert abs(halves["a"] - 150) < 40  # sd 6.1
    order = [row.prompt for row in made if row.fields["task"] == "a"]
    assert order != sorted(order, key=lambda prompt: int(prompt.split()[1]))


def test_rows_come_again_only_when_all_have_come():
    made = mix([source("a", 5), source("b", 100)], seed=0, total=84)
    assert tally(made) == {"a": 4, "b": 80}
    assert len({row.prompt for row in made}) == 84
    twice = mix([source("a", 5)], seed=0, total=13)
    assert sorted(Counter(row.prompt for row in twice).values()) == [2, 2, 3, 3, 3]


def test_a_cap_takes_a_seeded_part():
    picked = [{row.prompt for row in mix([source("a", 100, cap=20)], seed=seed)} for seed in (0, 1)]
    assert [len(part) for part in picked] == [20, 20]
    assert picked[0] != picked[1]
    assert picked[0] != {f"a {i}" for i in range(20)}


def test_another_source_does_not_change_which_rows_are_drawn():
    alone = {row.prompt for row in mix([source("a", 100, cap=20)], seed=0)}
    beside = {row.prompt for row in mix([source("a", 100, cap=20), source("b", 7)], seed=0)}
    assert alone == {prompt for prompt in beside if prompt.startswith("a ")}


def test_what_cannot_be_mixed_is_told():
    with pytest.raises(DataError, match="Two sources are called 'a'"):
        mix([source("a", 1), source("a", 2)], seed=0)
    with pytest.raises(DataError, match="needs a source with rows"):
        mix([source("a", 0)], seed=0)
    with pytest.raises(DataError, match="temperature of a mixture is 0"):
        mix([source("a", 1)], seed=0, temperature=0)


# Holding out


def test_whole_clusters_are_held_out():
    three = [source("rte", 1, "nli"), source("cb", 1, "nli"), source("sst2", 1, "sentiment")]
    train, test = held_out(three, ["nli"])
    assert ([s.name for s in train], [s.name for s in test]) == (["sst2"], ["rte", "cb"])
    with pytest.raises(DataError, match="No cluster is called 'nly'"):
        held_out(three, ["nly"])
    with pytest.raises(DataError, match="no source is left"):
        held_out(three, ["nli", "sentiment"])
    turns = [(name, [s.name for s in train], [s.name for s in test]) for name, train, test in leave_one_out(three)]
    assert turns == [("nli", ["sst2"], ["rte", "cb"]), ("sentiment", ["rte", "cb"], ["sst2"])]


# Entries of a recipe


def rows_file(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def nli(tmp_path):
    labels = ["entailment", "contradiction", "neutral"]
    rows = [{"premise": f"{i} dogs.", "hypothesis": "Dogs.", "label": labels[i % 3]} for i in range(60)]
    return rows_file(tmp_path / "nli.jsonl", rows)


def test_rows_go_through_templates(nli):
    spec = {"name": "dogs", "rows": nli, "templates": "nli", "cluster": "animals", "weight": 2, "cap": 30}
    (made,) = sources(spec, "here")
    assert (made.name, made.cluster, made.weight, made.cap, len(made.rows)) == ("dogs", "animals", 2.0, 30, 60)
    assert {row.fields["task"] for row in made.rows} == {"dogs"}
    assert {row.fields["cluster"] for row in made.rows} == {"animals"}
    assert len({row.fields["template"] for row in made.rows}) > 5
    assert sources(spec, "here") == [made]
    assert sources(spec, "here", seed=1) != [made]
    (plain,) = sources({"rows": nli, "templates": "nli"}, "here")
    assert (plain.name, plain.cluster, plain.weight, plain.cap) == ("nli", "nli", 1.0, None)


def test_every_prompt_is_asked_of_every_row(nli):
    (made,) = sources({"rows": nli, "templates": "nli"}, "here", every_prompt=True)
    seen = Counter((row.where, row.fields["template"]) for row in made.rows)
    assert len(made.rows) == len(seen) == 60 * 8  # two of the ten are turned around
    assert all(row.target in row.fields["choices"] for row in made.rows)


def test_rows_without_templates_stay_as_they_are(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    chats = rows_file(tmp_path / "chats.jsonl", [{"messages": turns}])
    (made,) = sources({"name": "talk", "rows": chats}, "here")
    assert (made.name, made.cluster) == ("talk", "talk")
    assert isinstance(made.rows[0], Conversation)
    texts = rows_file(tmp_path / "texts.jsonl", [{"said": "Fine", "label": 1}])
    (made,) = sources({"rows": texts, "columns": {"text": "said"}, "labels": ["bad", "good"]}, "here")
    assert (made.name, made.rows[0].prompt, made.rows[0].target) == ("texts", "Fine", "good")


def test_columns_and_labels_fit_a_file_to_templates(tmp_path):
    odd = rows_file(tmp_path / "odd.jsonl", [{"first": "Rain.", "second": "Wet.", "gold": 1}])
    spec = {"rows": odd, "columns": {"premise": "first", "hypothesis": "second", "label": "gold"}}
    labels = {"labels": ["entailment", "contradiction", "neutral"]}  # CommitmentBank's order
    (made,) = sources({**spec, "templates": "nli", **labels}, "here", every_prompt=True)
    assert made.rows[0].target == "no"
    (made,) = sources({**spec, "templates": "nli"}, "here", every_prompt=True)
    assert made.rows[0].target == "maybe"


def test_one_row_in_a_hundred_may_be_unusable(tmp_path):
    rows = [{"sentence": f"Dog {i}", "label": i % 2} for i in range(99)]
    (made,) = sources(
        {"rows": rows_file(tmp_path / "a.jsonl", [*rows, {"label": 1}]), "templates": "sentiment"}, "here"
    )
    assert (len(made.rows), made.dropped) == (99, ("a.jsonl:100",))
    two = rows_file(tmp_path / "b.jsonl", [{"sentence": "x", "label": "7"}, *rows, {"sentence": "x", "label": 9}])
    with pytest.raises(DataError, match=r"b.jsonl:1: prompt .* of sentiment: No label is called '7'.*\(2 of 101 rows"):
        sources({"rows": two, "templates": "sentiment"}, "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": "nli"}, "here: No option of a source is called 'template'. Did you mean 'templates'?"),
        ({"weight": 0}, "here: weight is a number above 0, not 0."),
        ({"cap": 2.5}, "here: cap is a whole number of rows above 0, not 2.5."),
        ({"labels": "yes"}, "here: labels is a list of words"),
        ({"columns": ["a"]}, "here: columns is a table"),
        ({"name": ""}, "here: a source needs text as name"),
        ({"templates": "nly"}, "here: No set of templates is called 'nly'. Did you mean 'nli'?"),
        ({"columns": {"premise": "first"}, "templates": "nli"}, "nli.jsonl:1 has no first"),
        ({"labels": ["yes", "no"], "templates": "nli"}, "nli.jsonl:1 has 'entailment' as label; the source's labels"),
    ],
)
def test_an_entry_is_read_strictly(change, said, nli):
    with pytest.raises(DataError) as caught:
        sources({"rows": nli, **change}, "here")
    assert said in str(caught.value)


def test_an_entry_needs_rows():
    with pytest.raises(DataError, match="here: a source needs rows; or natural_instructions"):
        sources({"name": "x"}, "here")


@pytest.fixture
def collection(tmp_path):
    shown = [{"input": f"{i}", "output": f"{i}"} for i in range(4)]
    tasks = [
        {"task": f"t{i}", "category": f"c{i % 2}", "definition": "Do.", "positive_examples": shown} for i in range(3)
    ]
    rows_file(tmp_path / "tasks.jsonl", tasks)
    rows_file(tmp_path / "instances.jsonl", [{"task": f"t{i}", "input": "7", "outputs": ["8"]} for i in range(3)])
    return str(tmp_path)


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        (["definition"], "Your task: Do.\n\nInput: 7\nOutput:"),
        ({"positive": 1}, "Good example 1\nInput: 0\nOutput: 0\n\nInput: 7\nOutput:"),
        ({"definition": True, "positive": 0}, "Your task: Do.\n\nInput: 7\nOutput:"),
        (
            ["positive"],
            "Good example 1\nInput: 0\nOutput: 0\n\nGood example 2\nInput: 1\nOutput: 1\n\nInput: 7\nOutput:",
        ),
    ],
)
def test_a_collection_is_a_source_for_each_task(collection, parts, prompt):
    made = sources({"natural_instructions": collection, "parts": parts, "cap": 60}, "here")
    assert [(each.name, each.cluster, each.cap) for each in made] == [
        ("t0", "c0", 60),
        ("t1", "c1", 60),
        ("t2", "c0", 60),
    ]
    assert made[0].rows[0].prompt == prompt


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": ["definitions"]}, "here: No part of a task is called 'definitions'. Did you mean 'definition'?"),
        ({"parts": {"positive": True}}, "here: parts.positive is a number of examples, not True."),
        ({"parts": {"emphasis": 1}}, "here: parts.emphasis is true or false, not 1."),
        ({"parts": "definition"}, "here: parts is a list of definition, emphasis, positive"),
        ({"rows": "x"}, "here: No option of a source is called 'rows'."),
    ],
)
def test_the_parts_of_a_collection_are_read_strictly(collection, change, said):
    with pytest.raises(DataError) as caught:
        sources({"natural_instructions": collection, **change}, "here")
    assert said in str(caught.value)


@shared
@pytest.mark.parametrize(
    ("rows", "templates", "more", "count"),
    [
        ("rte/dev", "nli", {}, 277),
        ("mmlu/test", "multiple_choice", {}, 1139),  # of 1,140; one has B among its choices and as its letter
        ("super_glue__cb", "cb/dev", {"labels": ["entailment", "contradiction", "neutral"]}, 56),
    ],
)
def test_public_rows_go_through_templates(rows, templates, more, count):
    if "__" in rows:
        rows, templates = templates, str(DATA / "promptsource" / f"{rows}.yaml")
    (made,) = sources({"rows": str(DATA / f"{rows}.jsonl"), "templates": templates, **more}, "here")
    assert len(made.rows) == count
