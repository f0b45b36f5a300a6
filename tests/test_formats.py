"""Each row format, by the value it becomes; what no row may be, by the sentence."""

from typing import Any

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
    Span,
    Tagged,
)
from acclimate.data.formats import FORMATS, Asked, formats, recognise
from acclimate.data.problem import Refused
from acclimate.data.values import sound
from tests.malformed_rows import VALID, turns

PLAIN = Asked()


def parsed(row: dict[str, Any], asked: Asked = PLAIN) -> Row:
    """One row by its own format."""
    return recognise(row, formats(asked)).build(row, "f:1", asked)


def refusal(row: dict[str, Any], asked: Asked = PLAIN) -> str:
    with pytest.raises(Refused) as caught:
        parsed(row, asked)
    return str(caught.value)


ASK = (Message("user", "Ask 7."),)
TALK = tuple(Message(turn["role"], turn["content"]) for turn in turns(7))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tokens + tags", Tagged(("Ada", "counts", "7"), ("B-person", "O", "O"), "f:1")),
        (
            "prompt + completions + ranking",
            Ranking((Message("user", "Rank 7."),), ("good", "bad", "fair"), (1, 3, 2), "f:1"),
        ),
        ("chosen + rejected", Preference(ASK, "yes", "no", "f:1")),
        (
            "prompt + completion + spans",
            Feedback((Message("user", "Say 7."),), "Some words", (Span(0, 4, "Wrong", -0.5),), "f:1"),
        ),
        ("messages", Conversation(TALK, "f:1")),
        ("conversations", Conversation(TALK, "f:1")),
        ("prompt + completion", Example("Two and 7?", "Six.", (), VALID["prompt + completion"](7), "f:1")),
        (
            "instruction + output",
            Example("Name it.\n\nThing 7", "A thing.", (), VALID["instruction + output"](7), "f:1"),
        ),
        ("text + label", Example("Lovely number 7.", "positive", (), VALID["text + label"](7), "f:1")),
        ("text", Document("Once there were 7 of them.", "f:1")),
    ],
)
def test_each_format_becomes_its_type(name: str, wanted: Row) -> None:
    assert parsed(VALID[name](7)) == wanted
    beside = {"id": 3, "note": None, "prompt_id": "7", "input_ids": [7], "label_id": 1}
    assert without_fields(parsed(VALID[name](7) | beside)) == without_fields(wanted)


def without_fields(row: Row) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name != "fields"}


def test_every_format_is_tried() -> None:
    assert {form.name for form in FORMATS} == set(VALID)


def test_a_list_of_completions_gives_references() -> None:
    row = parsed({"prompt": "Two and two?", "completion": ["Four.", "4"]})
    assert isinstance(row, Example)
    assert (row.target, row.references, row.answers) == ("Four.", ("Four.", "4"), ("Four.", "4"))


@pytest.mark.parametrize("about", [{}, {"input": ""}, {"input": None}])
def test_an_instruction_without_input_is_the_prompt(about: dict[str, Any]) -> None:
    row = parsed({"instruction": "Name a thing.", "output": "A cup."} | about)
    assert isinstance(row, Example)
    assert row.prompt == "Name a thing."


@pytest.mark.parametrize(
    ("label", "labels", "wanted"),
    [
        ("good", (), "good"),
        ("good", ("bad", "good"), "good"),
        (0, ("bad", "good"), "bad"),
        ("1", ("bad", "good"), "good"),
        (1, ("3", "1"), "1"),  # where labels are numbers, a number names one and counts nowhere
        ("1", ("3", "1"), "1"),
    ],
)
def test_labels_by_name_and_by_place(label: object, labels: tuple[str, ...], wanted: str) -> None:
    row = parsed({"text": "Fine.", "label": label}, Asked(labels))
    assert isinstance(row, Example)
    assert (row.prompt, row.target) == ("Fine.", wanted)
    assert row.fields == {"text": "Fine.", "label": label}


def test_labels_hold_for_every_example() -> None:
    asked = Asked(("bad", "good"))
    row = parsed({"prompt": "How?", "completion": "good"}, asked)
    assert isinstance(row, Example)
    assert row.target == "good"
    assert "label 'god' is not one of the task's labels. Did you mean 'good'?" in refusal(
        {"prompt": "How?", "completion": "god"}, asked
    )
    assert "label 0 is not one of the task's labels" in refusal({"text": "Fine.", "label": 0}, Asked(("1", "2")))
    assert "list the task's labels, and it counts into them" in refusal({"text": "Fine.", "label": 0})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "Why?", "why": "So."}, "Why?"),
        ({"question": "Why?", "id": 3, "why": "So."}, "Why?"),
        ({"prompt": "Why?", "about": "cats", "why": "So."}, "Why?"),
        ({"text": "Why?", "about": "cats", "why": "So."}, "Why?"),
        ({"instruction": "Why?", "input": "Cats.", "why": "So."}, "Why?\n\nCats."),
        ({"question": "Why?", "about": "cats", "why": "So."}, ""),  # only a template can say
        ({"choices": ["a", "b"], "why": "So."}, ""),
        ({"texts": "Why?", "why": "So."}, "Why?"),
    ],
)
def test_a_named_target(row: dict[str, Any], prompt: str) -> None:
    assert parsed(row, Asked(target="why")) == Example(prompt, "So.", (), row, "f:1")


def test_a_named_target_may_hold_several_answers_and_labels() -> None:
    row = parsed({"dialogue": "A: hi", "summary": ["one", "two"]}, Asked(target="summary"))
    assert isinstance(row, Example)
    assert row.answers == ("one", "two")
    row = parsed({"premise": "a", "hypothesis": "b", "label": 1}, Asked(("no", "yes"), "label"))
    assert isinstance(row, Example)
    assert (row.prompt, row.target) == ("", "yes")
    assert refusal({"why": "So."}, Asked(target="why")) == "has nothing beside 'why' that could be the prompt."


def test_the_more_particular_format_is_meant() -> None:
    talk = [{"role": "user", "content": "Ask 7."}, {"role": "assistant", "content": "yes"}]
    row = {"prompt": "Ask 7.", "chosen": talk, "rejected": [talk[0], talk[1] | {"content": "no"}], "messages": talk}
    assert parsed(row) == Preference(ASK, "yes", "no", "f:1")


@pytest.mark.parametrize("prompt", [None, "Ask 7.", [{"role": "user", "content": "Ask 7."}]])
def test_whole_conversations_as_chosen_and_rejected(prompt: object) -> None:
    ask = {"role": "user", "content": "Ask 7."}
    chosen, rejected = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    row = {"prompt": prompt, "chosen": [ask, chosen], "rejected": [ask, rejected]}
    assert parsed(row) == Preference(ASK, "yes", "no", "f:1")
    if prompt:
        assert parsed({"prompt": prompt, "chosen": [chosen], "rejected": "no"}) == Preference(ASK, "yes", "no", "f:1")
    else:
        del row["prompt"]
        assert parsed(row) == Preference(ASK, "yes", "no", "f:1")


def test_a_shared_prompt_of_several_turns() -> None:
    system = {"role": "system", "content": ""}
    rejected = [system, *turns(7)[:3], {"role": "assistant", "content": "no"}]
    row = parsed({"chosen": [system, *turns(7)], "rejected": rejected})
    assert row == Preference((Message("system", ""), *TALK[:3]), TALK[3].content, "no", "f:1")


def test_preferences_without_a_prompt() -> None:
    assert refusal({"chosen": "yes", "rejected": "no"}).startswith("has no prompt; each Preference needs one")
    row = {"chosen": turns(1)[1:], "rejected": [*turns(1)[1:3], {"role": "assistant", "content": "no"}]}
    assert refusal(row) == "has assistant first at chosen[0]; there it can be system or user."
    row = {"chosen": turns(1)[1:2], "rejected": [{"role": "assistant", "content": "no"}]}
    assert refusal(row) == "has a prompt that has no turn; an assistant answers a user or a tool."


def test_system_tool_and_untrained_turns() -> None:
    given = [("system", "Be kind."), ("user", "Sum?"), ("assistant", "add(1, 2)"), ("tool", ""), ("assistant", "3")]
    messages = [{"role": role, "content": content} for role, content in given]
    messages[2] |= {"train": False}  # type: ignore[dict-item]
    row = parsed({"messages": messages})
    assert row == Conversation(tuple(Message(r, c, i != 2) for i, (r, c) in enumerate(given)), "f:1")
    messages[2] = {"role": "assistant", "content": "", "weight": 0}  # type: ignore[dict-item]
    row = parsed({"messages": messages})
    assert isinstance(row, Conversation)
    assert row.messages[2] == Message("assistant", "", False)


def test_spans_have_a_score_of_minus_one_and_may_be_none() -> None:
    row = {"prompt": "Say.", "completion": "abc", "spans": [{"start": 1, "end": 3, "kind": "Wrong"}]}
    assert parsed(row) == Feedback((Message("user", "Say."),), "abc", (Span(1, 3, "Wrong", -1.0),), "f:1")
    assert parsed(row | {"spans": []}) == Feedback((Message("user", "Say."),), "abc", (), "f:1")
    misspelled = row | {"spans": [{"start": 1, "end": 3, "kind": "Wrong", "scores": 1}]}
    assert refusal(misspelled) == "has no score at spans[0]. Did you mean 'score' where it says 'scores'?"


def test_ties_are_ranks() -> None:
    row = parsed({"prompt": "Rank.", "completions": ["a", "b", "c"], "ranking": [1, 3, 1]})
    assert isinstance(row, Ranking)
    assert row.ranks == (1, 3, 1)


NAMES = st.sampled_from(sorted({key for make in VALID.values() for key in make(0)} | {"role", "content", "start"}))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "assistant", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(NAMES, JSON, max_size=5) | st.tuples(
    st.sampled_from(sorted(VALID)), st.dictionaries(NAMES | st.text(max_size=3), JSON, max_size=2)
).map(lambda pair: VALID[pair[0]](1) | pair[1])


@given(ROWS, st.sampled_from([Asked(), Asked(("negative", "positive")), Asked(target="text")]))
def test_any_row_becomes_sound_or_is_refused(row: dict[str, Any], asked: Asked) -> None:
    kept = repr(row)
    result = attempt(row, asked)
    if isinstance(result, Refused):
        assert str(result).endswith((".", "?"))
        assert str(result).isprintable()  # what it quotes, it quotes safely
    else:
        assert result.where == "f:1"
        for text in texts(result):
            assert text.strip()
            assert text.encode().decode() == text
    assert repr(row) == kept


def attempt(row: dict[str, Any], asked: Asked) -> Row | Refused:
    try:
        sound(row)
        return parsed(row, asked)
    except Refused as refused:
        return refused


def texts(row: Row) -> list[str]:
    """What of a row a model learns or reads."""
    match row:
        case Example():
            return [*([row.prompt] if row.prompt else []), *row.answers]
        case Document():
            return [row.text]
        case Tagged():
            return [*row.tokens, *row.tags]
        case Conversation():
            return [message.content for message in row.messages if message.train and message.role == "assistant"]
        case Preference():
            return [row.prompt[-1].content, row.chosen, row.rejected]
        case Ranking():
            return [row.prompt[-1].content, *row.completions]
        case Feedback():
            return [row.completion, *(row.completion[span.start : span.end].replace(" ", "_") for span in row.spans)]
