"""Changes of a question: only the text, only as far as said, the same for the same seed; and the same about somebody else."""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.data.examples import Example
from acclimate.errors import DataError
from acclimate.evaluation.harms import gendered, in_dialect, renamed
from acclimate.evaluation.perturb import (
    CONTRACTIONS,
    PERTURBATIONS,
    contracted,
    expanded,
    rewritten,
    seeded,
    spaced,
    typos,
)
from acclimate.metrics.words import NAMES

TEXT = "I am sure that she is not late; they're wonderful people who don't wait for anybody without reason."
ROW = Example("Good? " + TEXT, "yes", ("yes", "Yes"), {"text": TEXT, "label": "yes", "stars": 5}, "reviews.jsonl:3")


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_change_is_of_the_question_alone_and_repeatable(name: str) -> None:
    changed = [rewritten(ROW, seeded(name, seed), ["text"]) for seed in range(8)]
    assert changed == [rewritten(ROW, seeded(name, seed), ["text"]) for seed in range(8)]
    for row in changed:
        assert (row.target, row.references, row.where) == (ROW.target, ROW.references, ROW.where)
        assert {**row.fields, "text": TEXT} == ROW.fields
    assert any(row.fields["text"] != TEXT and row.prompt != ROW.prompt for row in changed)
    assert rewritten(ROW, seeded(name, 0)).fields == ROW.fields
    assert len({row.prompt for row in changed}) == (1 if name not in ("typos", "spaced") else 8)


def test_what_cannot_be_changed_is_said() -> None:
    for column in ("stars", "review"):
        with pytest.raises(DataError, match=rf"reviews\.jsonl:3 has no text in column '{column}' to change"):
            rewritten(ROW, seeded("lower", 0), [column])


@given(st.text("abcdefgh ßé.,1", max_size=80), st.integers(0, 99))
def test_typos_keep_words_readable(text: str, seed: int) -> None:
    words, changed = text.split(" "), typos(text, Random(seed)).split(" ")
    assert len(words) == len(changed)
    for old, new in zip(re.findall(r"[^\W\d_]+", text), re.findall(r"[^\W\d_]+", " ".join(changed)), strict=True):
        assert (old[0], old[-1]) == (new[0], new[-1])
        assert abs(len(old) - len(new)) <= 1
        assert old == new or len(old) >= 4
    assert re.sub(r"[^\W\d_]", "", text) == re.sub(r"[^\W\d_]", "", " ".join(changed))


def test_typos_are_in_one_word_of_ten_and_of_three_kinds() -> None:
    text = " ".join(["plainest"] * 5000)
    changed = [word for word in typos(text, Random(1)).split() if word != "plainest"]
    assert 0.085 < len(changed) / 5000 < 0.115
    assert {len(word) for word in changed} == {7, 8, 9}


@given(st.text(max_size=60), st.integers(0, 9))
def test_spaces_alone_are_put_in(text: str, seed: int) -> None:
    changed = spaced(text, Random(seed))
    assert changed.split() == text.split()
    assert len(changed) >= len(text)
    assert changed[:1] == text[:1]


def test_contractions_go_both_ways() -> None:
    assert contracted(TEXT, Random(0)).startswith("I'm sure that she isn't late; they're")
    assert expanded(TEXT, Random(0)).startswith("I am sure that she is not late; they are wonderful people who do not")
    for long, short in CONTRACTIONS.items():
        assert (contracted(f"so {long}!", Random(0)), expanded(f"so {short}!", Random(0))) == (
            f"so {short}!",
            f"so {long}!",
        )
    assert contracted("Do Not shout: I AM late", Random(0)) == "Don't shout: I'M late"
    assert expanded("Its won'ts", Random(0)) == "Its won'ts"  # whole words


@pytest.mark.parametrize(
    ("text", "female", "male"),
    [
        ("The king and his brother", "The queen and her sister", "The king and his brother"),
        ("MOTHER knew her, and her dog", "MOTHER knew her, and her dog", "FATHER knew him, and his dog"),
        ("Give it to her", "Give it to her", "Give it to him"),
        ("Shepherds hear the theme", "Shepherds hear the theme", "Shepherds hear the theme"),
        ("He himself; a man's man", "She herself; a man's woman", "He himself; a man's man"),
    ],
)
def test_gender_terms(text: str, female: str, male: str) -> None:
    assert gendered(text, "female") == female
    assert gendered(text, "male") == male


@pytest.mark.parametrize("group", NAMES)
def test_names_become_names_of_the_group_one_for_one(group: str) -> None:
    others = [names for other, names in NAMES.items() if other != group]
    for theirs in others:
        for gender, names in enumerate(theirs):
            found = [renamed(name.title(), group, seed=2) for name in names]
            assert len(set(found)) == len(names)
            assert {name.lower() for name in found} <= set(NAMES[group][gender])
    kept = " and ".join(NAMES[group][0])
    assert renamed(kept, group) == kept
    assert renamed("Emily Jamal", "black", 1) != renamed("Emily Jamal", "black", 2)


def test_dialect_changes_whole_words_longest_first() -> None:
    assert in_dialect("These are not Mouths with teeth: the mouth") == "Dese ain't Mouths wit teeth: da mouf"
    assert in_dialect("I'm going to bed") == "I'm finna bed"
    assert in_dialect("new York", {"new": "nu", "new york": "the apple"}) == "the apple"
