"""Parts by hash: what moves a row (its prompt), and what does not (everything else)."""

import hashlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.data.examples import (
    Conversation,
    Document,
    Example,
    Feedback,
    Message,
    Preference,
    Ranking,
    Row,
    Tagged,
)
from acclimate.data.split import Shares, overlap, part, prompt_of, split
from acclimate.errors import DataError

ROWS = [Example(f"Question {i}?", "yes") for i in range(400)]


def slow_part(prompt: str, shares: tuple[str, str, str]) -> str:
    """The same in exact arithmetic, on all 256 bits."""
    place = Fraction(int(hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest(), 16), 2**256)
    train, _, test = map(Fraction, shares)
    return "train" if place < train else "test" if place >= 1 - test else "dev"


def test_a_part_worked_by_hand() -> None:
    # printf hello | sha256sum begins with 2cf24dba, and 0x2cf24dba / 2^32 = 0.17557
    assert part("hello") == "train"
    assert part("hello", Shares(0.175, 0.0, 0.825)) == "test"
    assert part("hello", Shares(0.175, 0.825, 0.0)) == "dev"
    assert part("hello", Shares(0.176, 0.0, 0.824)) == "train"


@given(
    st.text(), st.sampled_from([("0.8", "0.1", "0.1"), ("0.5", "0.25", "0.25"), ("0.7", "0", "0.3"), ("0", "1", "0")])
)
def test_parts_equal_exact_arithmetic(prompt: str, shares: tuple[str, str, str]) -> None:
    assert part(prompt, Shares(*map(float, shares))) == slow_part(prompt, shares)


def test_shares_are_met() -> None:
    parts = split(ROWS)
    # 400 prompts: 320, 40, 40 expected; five standard deviations are 40, 30, 30
    assert [abs(len(rows) - mean) < five for rows, mean, five in zip(parts, (320, 40, 40), (40, 30, 30))] == [True] * 3
    assert sorted(row.prompt for rows in parts for row in rows if isinstance(row, Example)) == sorted(
        row.prompt for row in ROWS
    )


@given(st.permutations(range(60)), st.integers(0, 40))
def test_order_and_growth_move_nothing(order: list[int], more: int) -> None:
    before = split(ROWS[:60])
    after = split([*(ROWS[i] for i in order), *ROWS[60 : 60 + more]])
    for old, new in zip(before, after):
        assert set(map(prompt_of, old)) <= set(map(prompt_of, new))


def test_one_prompt_is_never_in_two_parts() -> None:
    rows: list[Row] = []
    for row in ROWS:
        spaced = row.prompt.replace(" ", "\n  ")
        rows += [row, Example(f" {spaced}\t", "no", where="f:2")]
    train, dev, test = split(rows)
    assert overlap(train, test) == overlap(train, dev) == overlap(dev, test) == ()
    assert len(train) % 2 == len(dev) % 2 == len(test) % 2 == 0
    assert [row.where for row in train[:2]] == ["", "f:2"]  # in the order they came


def test_the_prompt_of_each_kind() -> None:
    ask = (Message("system", "Be kind."), Message("user", "Why?"))
    talk = (*ask, Message("assistant", "So."), Message("user", "How?"), Message("assistant", "Thus."))
    opening = "Be kind.\nWhy?"
    assert prompt_of(Conversation(talk)) == opening
    assert prompt_of(Preference(ask, "a", "b")) == prompt_of(Ranking(talk[:4], ("a", "b"), (1, 2))) == opening
    assert prompt_of(Feedback(ask[1:], "a", ())) == "Why?"
    assert prompt_of(Document("Once.")) == "Once."
    assert prompt_of(Tagged(("Ada", "counts"), ("B", "O"))) == "Ada counts"
    assert prompt_of(Example("Why?", "So.")) == "Why?"


def test_a_template_says_what_the_prompt_is() -> None:
    rows = [Example("", "a", fields={"q": f"Question {i % 30}?"}, where=f"f:{i}") for i in range(300)]
    with pytest.raises(DataError, match=r"^f:0 has several columns that could be its prompt; a template must say"):
        split(rows)
    parts = split(rows, Shares(0.5, 0.0, 0.5), lambda row: str(row.fields["q"]) if isinstance(row, Example) else "")
    assert parts.dev == ()
    questions = [{row.fields["q"] for row in rows if isinstance(row, Example)} for rows in parts]
    assert questions[0] | questions[2] == {f"Question {i}?" for i in range(30)}
    assert not questions[0] & questions[2]


def test_an_empty_part_is_an_error() -> None:
    rows = [Example("hello", "a"), Example(" hello ", "b"), Example("hello", "c")]
    with pytest.raises(DataError, match=r"^3 rows with 1 different prompts leave dev \(a share of 0\.1\) empty; give"):
        split(rows)
    assert split(rows, Shares(1.0, 0.0, 0.0)).train == tuple(rows)
    with pytest.raises(DataError, match=r"^0 rows with 0 different prompts leave train"):
        split([])


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_shares_that_are_none(shares: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="each is from 0 to 1, and together they are 1"):
        split(ROWS, Shares(*shares))


def test_overlap_lists_each_shared_prompt_once() -> None:
    train: list[Row] = [Example("a  b", "x"), Example("c", "y"), Document("d")]
    test: list[Row] = [Document("d"), Example("a b", "z"), Example("a\nb", "z"), Example("e", "z")]
    assert overlap(train, test) == ("d", "a b")
    assert overlap(train, []) == ()
