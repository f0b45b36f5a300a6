"""Segments to ids: the supervised tokens are the answer, the prompt's ids are the served ids, one BOS (G1–G6)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.data.examples import Conversation, Document, Example, Message
from acclimate.data.template import Segment, Template, dialogue, segments
from acclimate.errors import DataError
from acclimate.evaluation.predictor import prompt_row
from acclimate.tokens.codec import codec, refuse_control_tokens
from acclimate.tokens.truncate import fit_rows
from tests import spelling

BUILDS = {
    "byte": lambda: codec(spelling.byte_level()),
    "byte+bos": lambda: codec(spelling.byte_level(bos=True)),
    "metaspace": lambda: codec(spelling.metaspace()),
    "bare": lambda: codec(spelling.byte_level(template=None)),
}
every = pytest.mark.parametrize("build", BUILDS)
words = st.text("abc dé好\n<|>", min_size=1, max_size=12).filter(lambda t: t.strip() == t and t)


def scored_text(reader, row):
    return reader.decode([i for i, counts in zip(row.ids, row.scored, strict=True) if counts], special=True)


def talk(*contents, system=None, trains=()):
    turns = [Message("system", system)] if system else []
    for i, content in enumerate(contents):
        role = "user" if i % 2 == 0 else "assistant"
        turns.append(Message(role, content, train=not trains or i in trains))
    return tuple(turns)


SHAPES = {
    "one turn": talk("hello", "good dog"),
    "system": talk("hello", "good dog", system="be brief"),
    "three turns": talk("hello", "a fox", "and then", "the dog", "really", "the lazy dog"),
    "empty answer": talk("hello", ""),
    "only the last trains": talk("hello", "a fox", "and then", "the dog", trains=(3,)),
    "four turns": talk("a", "b", "c", "d", "e", "f", "g", "h"),
}


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_supervised_tokens_are_the_answers_and_their_ends(build, shape):
    reader, turns = BUILDS[build](), SHAPES[shape]
    if build == "metaspace" and turns[0].role == "system":
        turns = turns[1:]
    row = reader.encode(dialogue(turns, reader.chat(), "x"), "x")
    end = reader.eos_text
    answers = [m.content for m in turns if m.role == "assistant" and m.train]
    got = scored_text(reader, row)
    assert [piece.strip() for piece in got.split(end)] == [*answers, ""]
    ends = [i for i, counts in zip(row.ids, row.scored, strict=True) if counts and i in reader.terminators]
    assert len(ends) == len(answers)


@every
@pytest.mark.parametrize("asked", ["say {{ prompt }}:", "say {{ prompt }}: ", "{{ prompt }}\n", "{{ prompt }} is "])
def test_prompt_ids_are_a_prefix_of_the_training_row(build, asked):
    reader = BUILDS[build]()
    template = Template(asked, chat=reader.chat() if reader.has_chat else None, end=reader.eos_text)
    example = Example("a good film", "positive", where="x:1")
    whole = reader.encode(template(example, example.target), "x:1")
    prompt = prompt_row(reader, template(example), 10_000, "x:1")
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert not any(whole.scored[: len(prompt.ids)])
    assert all(whole.scored[len(prompt.ids) : len(prompt.ids) + 1])


@every
def test_every_turn_of_a_conversation_has_the_ids_it_would_be_served(build):
    reader, turns = BUILDS[build](), SHAPES["three turns"]
    whole = reader.encode(dialogue(turns, reader.chat(), "x"))
    for place in (1, 3, 5):
        served = prompt_row(reader, dialogue(turns[:place], reader.chat(), "x", reply=True), 10_000, "x")
        assert whole.ids[: len(served.ids)] == served.ids
        assert whole.scored[len(served.ids)]


@pytest.mark.parametrize(
    ("prompt", "answer"), [("the lazy d", "og"), ("qu", "ick"), ("posi", "tive"), ("over the", " lazy")]
)
@pytest.mark.parametrize("build", ["byte", "bare"])
def test_a_boundary_inside_a_word_keeps_the_ids_of_the_prompt(build, prompt, answer):
    """Encoded as one text, the boundary would lie inside a token, and neither side would have the ids it has alone."""
    reader = BUILDS[build]()
    row = reader.encode((Segment(prompt, False), Segment(answer, True)))
    assert row.ids == reader.plain(prompt) + reader.plain(answer)
    assert scored_text(reader, row) == answer


def test_an_answer_ends_with_a_scored_terminator():
    reader = BUILDS["bare"]()
    template = Template("say {{ prompt }}:", end=reader.eos_text)
    row = reader.encode(template(Example("a good film"), "positive"))
    assert scored_text(reader, row) == f" positive{reader.eos_text}"
    assert row.ids[-1] in reader.terminators


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_the_text_comes_back_whole(prompt, answer):
    for build in ("byte", "bare"):
        reader = BUILDS[build]()
        row = reader.encode((Segment(prompt, False), Segment(" " + answer, True), Segment(reader.eos_text, True)))
        assert reader.decode(row.ids, special=True) == f"{prompt} {answer}{reader.eos_text}"


def test_a_space_at_the_end_of_the_prompt_moves_to_the_answer():
    reader = BUILDS["bare"]()
    loose = reader.encode((Segment("positive or negative: ", False), Segment("positive", True)))
    tight = reader.encode((Segment("positive or negative:", False), Segment(" positive", True)))
    assert loose == tight
    assert scored_text(reader, loose) == " positive"


def test_a_continuation_is_spelled_as_inside_a_sentence():
    reader = BUILDS["metaspace"]()
    assert reader.continuation(" dog") == reader.plain("dog")  # this build puts the space before every text itself
    assert reader.decode(reader.plain("lazy") + reader.continuation("dog")) == "lazydog"
    assert reader.decode(reader.plain("lazy") + reader.plain("dog")) == "lazy dog"


@pytest.mark.parametrize("build", ["byte+bos", "metaspace"])
def test_exactly_one_bos(build):
    reader = BUILDS[build]()
    bos = reader.prefix[0]
    rendered = reader.chat().render([Message("user", "hello")], reply=True)
    for text in ("hello there", reader.decode([bos], special=True) + "hello there", rendered):
        ids = reader.encode((Segment(text, False),)).ids
        assert ids[0] == bos
        assert ids[1] != bos
    assert BUILDS["byte"]().prefix == ()


def test_masks_do_not_come_from_the_pad_id():
    reader = BUILDS["byte"]()
    assert reader.pad in reader.terminators  # pad == eos, as many models have it
    row = reader.encode(dialogue(SHAPES["one turn"], reader.chat(), "x"))
    ends = [i for i, token in enumerate(row.ids) if token == reader.pad]
    assert [row.scored[i] for i in ends] == [False, True]  # the user's end of turn, then the assistant's


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_answer():
    reader = codec(spelling.unigram(), reads=True)
    row = reader.encode((Segment("classify the dog", False), Segment("positive", True), Segment(reader.eos_text, True)))
    assert row.source == tuple(reader.tokenizer.encode("classify the dog"))
    assert row.ids == tuple(reader.tokenizer.encode("positive"))
    assert all(row.scored)


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_only_the_last_trains():
    reader = codec(spelling.byte_level(template=spelling.REWRITING))
    with pytest.raises(DataError, match=r"x:7 turn 4.*rewrites earlier turns"):
        dialogue(SHAPES["three turns"], reader.chat(), "x:7")
    assert dialogue(talk("hello", "good"), reader.chat(), "x:7")[-2:] == (
        Segment("good", True),
        Segment("<|im_end|>", True),
    )


def test_documents_are_scored_whole_and_end():
    reader = BUILDS["bare"]()
    row = reader.encode(segments(Document("the lazy dog"), Template(end=reader.eos_text)))
    assert all(row.scored)
    assert row.ids[-1] in reader.terminators


def test_a_conversation_needs_a_chat_format():
    with pytest.raises(DataError, match=r"a:3 is a conversation"):
        segments(Conversation(SHAPES["one turn"], "a:3"), Template())


def test_control_tokens_in_a_users_text_are_refused():
    with pytest.raises(DataError, match=r"a:1 contains the control token '<\|im_end\|>'"):
        refuse_control_tokens(BUILDS["byte"](), "ignore this <|im_end|> and", "a:1")


class TestTruncation:
    reader = codec(spelling.byte_level(bos=True, template=None))
    long = reader.encode((Segment("the quick brown fox jumps", False), Segment(" over the dog", True)), "f:9")

    def test_error_names_row_length_and_choices(self):
        with pytest.raises(DataError, match=rf"f:9 is {len(self.long.ids)} tokens long; 5 fit.*drop, truncate-prompt"):
            fit_rows([self.long], 5, "error")

    def test_drop(self):
        assert fit_rows([self.long], 5, "drop") == ([], ["f:9"], [])

    def test_prompt_keeps_bos_and_the_answer(self):
        limit = len(self.long.ids) - 2
        (row,) = fit_rows([self.long], limit, "truncate-prompt", keep=1).rows
        assert len(row.ids) == limit
        assert row.ids[0] == self.long.ids[0]
        assert row.ids[1:] == self.long.ids[3:]
        assert row.truncated == 2
        assert scored_text(self.reader, row) == scored_text(self.reader, self.long)

    def test_response_loses_its_end_and_is_dropped_when_nothing_is_left(self):
        prompt = self.long.scored.index(True)
        (row,) = fit_rows([self.long], prompt + 1, "truncate-response").rows
        assert row.scored == (False,) * prompt + (True,)
        assert fit_rows([self.long], prompt, "truncate-response").dropped == ["f:9"]

    def test_a_prompt_is_never_cut_into_the_answer(self):
        assert fit_rows([self.long], 3, "truncate-prompt", keep=1).dropped == ["f:9"]
