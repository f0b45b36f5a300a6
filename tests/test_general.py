"""The forgetting set: its sizes, its balance, its variety, and nothing in it that gives an answer away."""

import dataclasses
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import combinations

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from acclimate.data.examples import Document
from acclimate.evaluation.general import Question, instructions, texts

LINES = files("acclimate.evaluation").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]


def pieces() -> list[str]:
    """Every text that a model will see."""
    return [d.text for d in texts()] + [part for q in instructions() for part in (q.prompt, *q.choices)]


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def shared(first: str, second: str) -> int:
    return len(grams(first) & grams(second))


def answer_to(start: str) -> str:
    (found,) = [q.answer for q in instructions() if q.prompt.startswith(start)]
    return found


def test_what_is_read_is_what_the_file_holds() -> None:
    assert [row["kind"] for row in ROWS] == ["text"] * 48 + ["instruction"] * 60
    assert texts() == tuple(Document(row["text"], f"general.jsonl:{i}") for i, row in enumerate(ROWS[:48], start=1))
    assert instructions() == tuple(
        Question(row["prompt"], tuple(row["choices"]), row["answer"], f"general.jsonl:{i}")
        for i, row in enumerate(ROWS[48:], start=49)
    )


def test_every_row_has_exactly_its_columns() -> None:
    columns = {"text": ["kind", "genre", "text"], "instruction": ["kind", "prompt", "choices", "answer"]}
    assert all(list(row) == columns[row["kind"]] for row in ROWS)


def test_a_question_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        instructions()[0].answer = "Rome"  # type: ignore[misc]


def test_texts_are_short_and_each_of_another_genre() -> None:
    assert len({row["genre"] for row in ROWS[:48]}) == 48
    for document in texts():
        assert 60 <= len(document.text.split()) <= 110, document.where


def test_questions_have_four_choices_one_of_which_is_right() -> None:
    for question in instructions():
        assert len({choice.lower() for choice in question.choices}) == len(question.choices) == 4, question.where
        assert question.answer in question.choices, question.where


def test_the_right_answer_stands_in_each_place_equally_often() -> None:
    assert Counter(q.choices.index(q.answer) for q in instructions()) == {0: 15, 1: 15, 2: 15, 3: 15}


def test_choices_have_one_form() -> None:
    """One to five words, none two words longer than another; all sentences or none; all numbers or none."""
    for question in instructions():
        words = [len(choice.split()) for choice in question.choices]
        assert min(words) >= 1, question.where
        assert max(words) <= 5, question.where
        assert max(words) - min(words) <= 1, question.where
        assert len({choice.endswith(".") for choice in question.choices}) == 1, question.where
        assert len({choice[0].isdigit() for choice in question.choices}) == 1, question.where
        assert all(choice[0].isdigit() or choice[0].isupper() for choice in question.choices), question.where


def test_no_choice_begins_another() -> None:
    """The end of an answer is not scored: of "10" and "100" the shorter would always be the likelier."""
    for question in instructions():
        for first in question.choices:
            assert not any(other != first and other.startswith(first) for other in question.choices), question.where


@pytest.mark.parametrize("pick", [min, max])
def test_length_does_not_tell_the_answer(pick: Callable[[Iterable[int]], int]) -> None:
    """Always taking a shortest (longest) choice, at random among equals, is near the 15 of 60 that chance gets."""
    right = 0.0
    for question in instructions():
        size = pick(map(len, question.choices))
        likely = [choice for choice in question.choices if len(choice) == size]
        right += (question.answer in likely) / len(likely)
    assert 9 <= right <= 21


def test_no_prompt_names_its_answer_alone() -> None:
    """A prompt that names its answer names two of the other choices too, so that copying is no way to it."""
    for question in instructions():
        shown = [choice for choice in question.choices if choice.lower() in question.prompt.lower()]
        assert question.answer not in shown or len(shown) >= 3, question.where


def test_no_two_texts_are_alike() -> None:
    assert shared("a b c d e f", "A, b c d e x") == 1
    worst = max(combinations(texts(), 2), key=lambda pair: shared(pair[0].text, pair[1].text))
    assert shared(worst[0].text, worst[1].text) <= 1, [d.where for d in worst]


def test_no_two_prompts_are_alike() -> None:
    prompts = [q.prompt for q in instructions()]
    assert len({" ".join(sorted(p.lower().split())) for p in prompts}) == 60
    for first, second in combinations(prompts, 2):
        assert shared(first, second) == 0, (first, second)


def test_no_question_is_answered_by_a_text() -> None:
    assert max(shared(d.text, q.prompt) for d in texts() for q in instructions()) == 0


def test_sums_and_orders_are_right() -> None:
    assert answer_to("What is 7 plus 5") == str(7 + 5)
    assert answer_to("Multiply 9 by 6") == str(9 * 6)
    assert answer_to("Take 8 away from 20") == str(20 - 8)
    assert answer_to("What number is half of 50") == str(50 // 2)
    assert answer_to("Continue the series") == str(list(range(2, 12, 2))[-1])
    assert answer_to("A carton holds six eggs") == str(6 * 3)
    assert answer_to("Anna has three apples") == ["Six", "Seven", "Eight"][3 + 4 - 6]
    assert answer_to("Sort these numbers") == ", ".join(map(str, sorted([5, 2, 9])))
    assert answer_to("Write these three words") == ", ".join(sorted(["pear", "apple", "fig"])).capitalize()


def test_every_character_can_be_typed() -> None:
    """Plain ASCII; no control character but the line break, no blanks at the ends of lines."""
    for piece in pieces():
        assert piece.isascii(), piece
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in piece), piece
        assert all(line == line.rstrip() for line in piece.split("\n")), piece
        assert piece == piece.strip(), piece
        assert "\n\n\n" not in piece, piece


def test_a_byte_level_alphabet_spells_every_piece() -> None:
    """One id a byte, none unknown, and back to the same text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for piece in pieces():
        ids = tokenizer.encode(piece).ids
        assert len(ids) == len(piece.encode()), piece
        assert tokenizer.decode(ids) == piece
