"""Rows as ids: what a run learns from, and which rows it refuses by line (G1, G6)."""

import pytest

from acclimate.data.examples import Conversation, Document, Example, Message
from acclimate.data.template import Template
from acclimate.errors import DataError
from acclimate.recipe import Data
from acclimate.run.parts import Part, limited
from acclimate.run.prepare import encode_rows
from acclimate.tokens.codec import codec
from tests import spelling

READERS = {
    "decoder": lambda: codec(spelling.byte_level(template=None)),
    "decoder with bos": lambda: codec(spelling.byte_level(bos=True, template=None)),
    "encoder-decoder": lambda: codec(spelling.unigram(), reads=True),
}
every = pytest.mark.parametrize("reader", [make() for make in READERS.values()], ids=READERS)


def encoded(reader, row, template, **data):
    return encode_rows(Part("f", (row,), "", {}), template, reader, 100, Data("f", **data))


@every
def test_a_row_is_learned_from_its_answer_on(reader):
    row = Example("a good film", "positive", where="f:3")
    (one,) = encoded(reader, row, Template("say {{ prompt }}:", end=reader.eos_text)).rows
    assert reader.decode([i for i, counts in zip(one.ids, one.scored) if counts]).strip() == "positive"
    assert one.where == "f:3"


@every
def test_a_row_without_a_scored_token_is_refused_by_line(reader):
    with pytest.raises(DataError, match=r"f:3 has no token that the loss would count; its answer is empty"):
        encoded(reader, Example("a good film", "", where="f:3"), Template())


def test_a_conversation_of_which_nothing_trains_is_refused_by_line():
    reader = codec(spelling.byte_level())
    turns = (Message("user", "hello"), Message("assistant", "a fox", train=False))
    with pytest.raises(DataError, match=r"f:4 has no token that the loss would count"):
        encoded(reader, Conversation(turns, "f:4"), Template(chat=reader.chat()))


@every
def test_a_row_without_a_prompt_is_refused_by_line(reader):
    with pytest.raises(DataError, match=r"f:3 has no prompt: all of it would be learned"):
        encoded(reader, Example("", "positive", where="f:3"), Template(end=reader.eos_text))


def test_running_text_is_learned_whole():
    reader = codec(spelling.byte_level(template=None))
    (one,) = encoded(reader, Document("the lazy dog", "f:5"), Template(end=reader.eos_text)).rows
    assert all(one.scored)
    assert one.ids[-1] in reader.terminators


@pytest.mark.parametrize("column", ["text", "note"])
def test_a_control_token_in_any_column_is_refused_by_line(column):
    reader = codec(spelling.byte_level())
    row = Example("a film", "good", fields={"text": "a film", column: "so <|im_end|> there"}, where="f:6")
    with pytest.raises(DataError, match=r"f:6 contains the control token '<\|im_end\|>'"):
        encoded(reader, row, Template("{{ text }}", end=reader.eos_text))


def test_a_long_row_is_an_error_unless_the_recipe_says_otherwise():
    reader = codec(spelling.byte_level(template=None))
    row = Example("the lazy dog " * 60, "positive", where="f:7")
    with pytest.raises(DataError, match=r"f:7 is \d+ tokens long; 100 fit\. Set data\.truncation"):
        encoded(reader, row, Template())
    assert encoded(reader, row, Template(), truncation="drop").dropped == ["f:7"]
    fitted = encoded(reader, row, Template(), truncation="truncate-prompt")
    assert fitted.cut == ["f:7"]
    assert len(fitted.rows[0].ids) == 100


def test_a_limit_takes_the_same_rows_however_the_file_is_ordered():
    rows = [Example(f"prompt {n}", where=f"f:{n}") for n in range(50)]
    key = lambda row: row.prompt  # noqa: E731
    chosen = limited(rows, 7, key)
    assert len(chosen) == 7
    assert {row.where for row in limited(rows[::-1], 7, key)} == {row.where for row in chosen}
    assert [int(row.where[2:]) for row in chosen] == sorted(int(row.where[2:]) for row in chosen)
    assert limited(rows, 0, key) == limited(rows, 50, key) == tuple(rows)
