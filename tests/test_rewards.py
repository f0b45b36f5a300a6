"""What completions earn: by rules, words, classifiers, functions and servers; and what is refused."""

import io
import json
import urllib.error
import urllib.request

import pytest

from acclimate.errors import DataError, ModelError, RecipeError
from acclimate.rewards import Answer, Endpoint, Function, Harmless, Length, Lexicon, Pattern
from acclimate.rewards.outside import marks
from acclimate.rewards.reward import Completion, Mark, Weighted, checked, total


def said(text, **fields):
    return Completion("why?", text, fields=fields, where="prompt 3")


def scores(reward, *given):
    return [total(found) for found in reward(given)]


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("2 and 3 make 5.", "5", 1),
        ("It is 1,250.0 in all", "1250", 1),
        ("5 or rather 6", "5", 0),
        ("no number", "5", 0),
        ("So it is Paris.", "paris", 1),
        ("Paris or London", "paris", 0),
        ("-3", "3", 0),
    ],
)
def test_a_verifiable_answer(text, wanted, right):
    assert scores(Answer(), said(text, answer=wanted)) == [right]


def test_an_answer_needs_its_column():
    with pytest.raises(DataError, match="prompt 3 has no column final"):
        Answer("final")([said("5", answer="5")])


def test_patterns_and_lengths():
    assert scores(Pattern(r"\bplease\b"), said("yes please!"), said("displeased")) == [1, 0]
    assert scores(Length(4), said("one two three four"), said("one"), said("w " * 40)) == [0, -0.75, -1]
    for bad in ("(", ""):
        with pytest.raises(RecipeError):
            Pattern(bad)


def test_words_with_ratings():
    good, bad = scores(Lexicon(), said("A wonderful film"), said("A terrible film"))
    assert good > 0.5 > -0.4 > bad
    assert scores(Lexicon(positive=False), said("A wonderful film")) == [-good]
    text = "Wonderful!  Terrible. Chairs"
    (found,) = Lexicon(per="sentence")([said(text)])
    assert [text[: mark.end] for mark in found] == ["Wonderful!", "Wonderful!  Terrible.", text]
    assert [mark.score > 0 for mark in found] == [True, False, False]
    assert Lexicon(per="sentence")([said("")]) == [()]


def test_insults():
    kind, rude = scores(Harmless(), said("What a lovely day."), said("You are a fucking idiot."))
    assert kind > 0.8 > 0.2 > rude
    (found,) = Harmless("sentence")([said("What a lovely day. You are a fucking idiot.")])
    assert [round(mark.score) for mark in found] == [1, 0]


def lengths(completions):
    return [len(c.text) for c in completions]


def test_a_function_of_the_users():
    assert scores(Function(f"{__name__}:lengths"), said("abc"), said("")) == [3, 0]
    for wrong in ("nothing", "no.such:thing", f"{__name__}:absent"):
        with pytest.raises(RecipeError):
            Function(wrong)([said("a")])


def test_a_server(monkeypatch):
    asked, answers = [], [urllib.error.URLError("down"), {"scores": [1, 2.5]}]

    def answer(request, timeout):
        asked.append(json.loads(request.data))
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return io.BytesIO(json.dumps(given).encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert scores(Endpoint("http://here/score"), said("a"), said("b", x=1)) == [1, 2.5]
    assert len(asked) == 2
    assert asked[1]["completions"][1] == {
        "prompt": "why?",
        "text": "b",
        "ended": True,
        "fields": {"x": 1},
        "where": "prompt 3",
    }
    answers[:] = [{"score": 1}]
    with pytest.raises(ModelError, match=r"no \{.scores."):
        Endpoint("http://here/score")([said("a")])
    answers[:] = [urllib.error.URLError("down")] * 3
    with pytest.raises(ModelError, match="after 3 tries"):
        Endpoint("http://here/score")([said("a")])
    with pytest.raises(RecipeError, match="http"):
        Endpoint("ftp://here")([said("a")])


def test_marks_of_outside_scorers():
    assert marks([[[1, 0.5], [3, 1]], []], [said("abc"), said("")], "f") == [(Mark(1, 0.5), Mark(3, 1.0)), ()]
    for wrong in (None, ["good"], [[1]]):
        with pytest.raises(ModelError, match="cannot be read"):
            marks(wrong, [said("abc")], "f")


@pytest.mark.parametrize("bad", [Mark(4, 1.0), Mark(0, 1.0), Mark(2, float("nan")), Mark(2, float("inf"))])
def test_a_score_lies_in_the_text_and_is_finite(bad):
    given = [said("abc")]
    assert checked([(Mark(3, 1.0), Mark(1, 0.0))], given, "f")
    with pytest.raises(ModelError, match="must be finite and lie within"):
        checked([(bad,)], given, "f")
    with pytest.raises(ModelError, match="scored 0 of 1"):
        checked([], given, "f")


def test_weights_multiply_marks():
    both = Weighted(((2.0, Length(1)), (0.5, Pattern("a"))))
    assert both([said("a b c")]) == [(Mark(5, -2.0), Mark(5, 0.5))]
