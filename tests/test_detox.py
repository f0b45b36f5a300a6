"""Rewards by the sentence: what each is marked with, and that changes add up to the score of the whole."""

import pytest

from acclimate.rewards import Harmless, Lexicon
from acclimate.rewards.lexicon import marked
from acclimate.rewards.reward import Completion, total

TEXT = "What a lovely day. You are a fucking idiot. You stupid ass. I hate you, bastard"


def marks_of(reward, text=TEXT):
    (found,) = reward([Completion("", text)])
    return found


@pytest.mark.parametrize("kind", [Lexicon, Harmless])
def test_changes_add_up_to_the_score_of_the_whole(kind):
    whole, each, changes = (marks_of(kind(per=per)) for per in ("text", "sentence", "change"))
    assert [mark.end for mark in changes] == [mark.end for mark in each] == [18, 43, 59, len(TEXT)]
    assert total(changes) == pytest.approx(total(whole), abs=1e-9)
    assert changes[1].score < -0.3 < changes[0].score == each[0].score
    assert abs(total(each) - total(whole)) > 0.1


def test_a_text_without_sentences_has_the_score_of_the_whole():
    for kind in (Lexicon, Harmless):
        for text in ("", "fine", "fine.  "):
            assert total(marks_of(kind(per="change"), text)) == pytest.approx(total(marks_of(kind(), text)), abs=1e-9)


def test_by_hand():
    scored = {"a.": 0.5, "a. b!": 0.2, "b!": -1.0, "a. b! ": 9.0}
    assert marked("a. b! ", "change", scored.__getitem__) == ((2, 0.5), (5, -0.3))
    assert marked("a. b! ", "sentence", scored.__getitem__) == ((2, 0.5), (5, -1.0))
    assert marked("a. b! ", "text", scored.__getitem__) == ((6, 9.0),)
