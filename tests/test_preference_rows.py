"""Comparisons as ids: what is scored, how they are cut, shared and batched (G1, G2, G6, G9–G11)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acclimate.data.examples import Message, Preference, Ranking
from acclimate.data.read import read
from acclimate.data.template import ChatFormat, Template
from acclimate.errors import DataError
from acclimate.models.collate import collate
from acclimate.models.logprobs import logprobs
from acclimate.models.outline import outline
from acclimate.tokens.codec import codec
from acclimate.tokens.pairs import by_document, compared, dressed, fit_pairs, paired, reading, with_others
from acclimate.tokens.reading import Shape, sheet
from tests import spelling, tiny
from tests.compared import PAD, batch_of, logprobs_of, rows_for

ASK = (Message("user", "is the fox good or bad? "),)
TALK = (Message("user", "hello"), Message("assistant", "hello there"), Message("user", "how are you?"))
HH = Path("/work/shared/data/hh_rlhf")


def chat(reader):
    return Template(chat=reader.chat(), end=reader.eos_text)


@pytest.mark.parametrize("build", [spelling.byte_level, spelling.metaspace])
@pytest.mark.parametrize("prompt", [ASK, TALK])
def test_the_completion_and_its_end_of_turn_are_scored_and_nothing_else(build, prompt):
    reader = codec(build())
    row = compared(Preference(prompt, "a good dog", "bad", "f:1"), chat(reader), reader)
    for each, text in zip(row.rows, ("a good dog", "bad"), strict=True):
        scored = [i for i, counts in zip(each.ids, each.scored, strict=True) if counts]
        assert reader.decode(scored, special=True).strip() == text + reader.eos_text
        assert each.ids[-1] in reader.terminators
        start = each.scored.index(True)
        assert all(each.scored[start:])
        assert not any(each.scored[:start])
    starts = {each.ids[: each.scored.index(True)] for each in row.rows}
    assert len(starts) == 1


def test_without_a_chat_format_the_template_asks_and_its_end_is_scored():
    reader = codec(spelling.byte_level(template=None))
    template = Template("Q: {{ prompt }}\nA:", end=reader.eos_text)
    row = compared(Ranking(ASK, ("good", "bad", "lazy"), (2, 1, 2), "f:1"), template, reader)
    assert row.ranks == (2, 1, 2)
    shown = [reader.decode(each.ids, special=True) for each in row.rows]
    assert shown == [f"Q: is the fox good or bad? \nA: {text}{reader.eos_text}" for text in ("good", "bad", "lazy")]
    with pytest.raises(DataError, match="f:2 has a prompt of several turns, which needs a chat format"):
        compared(Preference(TALK, "a", "b", "f:2"), template, reader)


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_completion():
    reader = codec(spelling.unigram(), reads=True)
    row = compared(Preference(ASK, "good", "bad film", "f:1"), Template(end=reader.eos_text), reader)
    assert row.rows[0].source == row.rows[1].source
    assert all(each.scored == (True,) * len(each.ids) for each in row.rows)
    assert row.source == row.rows[0].source


def test_control_tokens_in_a_completion_are_refused():
    reader = codec(spelling.byte_level())
    with pytest.raises(DataError, match="f:3 contains the control token"):
        compared(Preference(ASK, "good", "bad<|im_end|>", "f:3"), chat(reader), reader)


# Long rows


def test_a_prompt_is_cut_alike_for_its_completions():
    rows = rows_for(tiny.build("llama"))
    longest = max(len(each.ids) for each in rows[2].rows)
    done, told = fit_pairs(rows[2:3], longest - 3, "truncate-prompt", 2)
    assert told.cut == ["f:2"]
    begins = {each.ids[: each.scored.index(True)] for each in done[0].rows}
    whole = rows[2].rows[0].ids[:10]
    assert begins == {whole[:2] + whole[5:]}
    assert [each.ids[-4:] for each in done[0].rows] == [each.ids[-4:] for each in rows[2].rows]
    assert done[0].truncated == 9


@pytest.mark.parametrize(("policy", "left"), [("drop", [1]), ("truncate-response", [0, 1])])
def test_a_row_goes_or_stays_whole(policy, left):
    rows = rows_for(tiny.build("llama"))[:2]
    rows[0] = rows[0]._replace(
        rows=(rows[0].rows[0], rows[0].rows[1]._replace(ids=(5,) * 40, scored=(False,) * 9 + (True,) * 31))
    )
    done, told = fit_pairs(rows, 20, policy)
    assert [row.where for row in done] == [f"f:{n}" for n in left]
    assert (told.dropped, told.cut) == ((["f:0"], []) if policy == "drop" else ([], ["f:0"]))
    with pytest.raises(DataError, match="40 tokens long; 20 fit"):
        fit_pairs(rows, 20, "error")


# Batches


@pytest.mark.parametrize("build", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("share", [True, False])
def test_a_completion_has_the_log_probability_that_it_has_alone(build, share):
    model = tiny.build(build)
    rows = rows_for(model)
    for some in (rows, rows[2:3]):
        batch = batch_of(model, some, share=share)
        sums, tokens = by_document(logprobs(model, batch), batch.owner, len(batch.ranks))
        expected = [logprobs_of(model, each) for row in some for each in row.rows]
        torch.testing.assert_close(
            sums, torch.tensor([sum(e) for e in expected], dtype=torch.float64), rtol=0, atol=1e-9
        )
        assert tokens.tolist() == [len(e) for e in expected]
        assert batch.group.tolist() == [g for g, row in enumerate(some) for _ in row.rows]
        assert batch.ranks.tolist() == [rank for row in some for rank in row.ranks]


def test_a_prompt_is_read_once_for_all_its_completions():
    model = tiny.build("llama")
    rows = rows_for(model, prompt=30)
    assert outline(model).shares
    for some in (rows[2:3], rows):
        batch = batch_of(model, some)
        assert batch.streamed == sum(30 + sum(len(each.ids) - 30 for each in row.rows) for row in some)
        assert batch.tokens == sum(row.size for row in some)


def test_the_reference_travels_with_its_row():
    model = tiny.build("llama")
    rows = [row._replace(reference=tuple(float(-n) for n in range(len(row.rows) + 1))) for row in rows_for(model)]
    documents = [each for row in rows for each in row.rows]
    batch = paired(collate(model, documents, PAD), rows)
    assert batch.reference.tolist() == [-n for row in rows for n in range(len(row.rows))]
    assert paired(collate(model, documents, PAD), [rows[0]._replace(reference=()), *rows[1:]]).reference is None


def test_others_are_prompts_with_completions_of_the_next():
    rows = rows_for(tiny.build("llama"))
    made = with_others(rows, 100, 0)
    for i, row in enumerate(made):
        assert row.other.ids[:10] == row.rows[0].ids[:10]
        assert row.other.ids[10:] == rows[(i + 1) % len(rows)].rows[0].ids[10:]
        assert row.other.scored == (False,) * 10 + (True,) * (len(row.other.ids) - 10)
    assert with_others(rows[:1], 100, 0)[0].other is None
    (source, *_) = with_others(rows_for(tiny.build("t5")), 100, 0)
    assert source.other.source == source.rows[0].source


def test_soft_tokens_stand_in_the_rows_and_not_in_what_the_reference_reads():
    reader = replace(codec(spelling.byte_level()), front=(900, 901), back=(902,))
    row = compared(Preference(ASK, "good", "bad", "f:1"), chat(reader), replace(reader, front=(), back=()))
    made = dressed(dressed(row, replace(reader, front=(), back=())), reader)
    assert made.bare == row.rows
    assert [each.ids[:2] for each in made.rows] == [(900, 901)] * 2
    assert [each.ids[each.scored.index(True) - 1] for each in made.rows] == [902] * 2


def test_a_reward_is_read_at_the_end_of_each_completion():
    row = rows_for(tiny.build("llama"))[2]
    read_ = reading(row, "last", 0)
    made = sheet([read_, read_], Shape("regress"), PAD)
    ends = [r * made.ids.shape[1] + len(each.ids) - 1 for r, each in enumerate((*row.rows, *row.rows))]
    assert made.predict.tolist() == ends
    assert made.targets.tolist() == [1, 2, 2, 1, 2, 2]
    assert made.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert reading(row, "first", 3).places == ((3,), (3,), (3,))


@pytest.mark.skipif(not HH.exists(), reason="the data of Anthropic's helpful and harmless conversations is not here")
def test_anthropics_rows_load_and_encode():
    reader = codec(spelling.byte_level())
    table = read(HH / "dev.jsonl")
    assert table.kind is Preference
    done = [compared(row, chat(reader), reader) for row in table.rows[:60]]
    assert all(each.ids[-1] in reader.terminators for row in done for each in row.rows)
    assert all(len({each.ids[: each.scored.index(True)] for each in row.rows}) == 1 for row in done)


def test_a_format_that_writes_after_the_turn_leaves_nothing_there():
    reader = codec(spelling.byte_level())
    assert reader.chat().source == spelling.CHATML  # it puts a line break behind every turn
    template = Template(chat=ChatFormat(spelling.CHATML, {}), end=reader.eos_text)
    row = compared(Preference(ASK, "good", "bad", "f:1"), template, reader)
    assert {reader.decode(each.ids[-1:], special=True) for each in row.rows} == {"<|im_end|>"}
