"""Who answers: rolling windows score every token once, and what cannot fit is said."""

import math

import pytest
import torch

from acclimate.data.examples import Document, Example
from acclimate.data.template import Template, segments
from acclimate.errors import DataError
from acclimate.evaluation.predictor import Choose, Generate, Likelihood, windows
from acclimate.tokens.codec import Encoded


@pytest.mark.parametrize("context", [4, 5, 8])
@pytest.mark.parametrize("length", [3, 4, 5, 8, 9, 17, 40])
def test_every_token_is_scored_once_with_half_a_context_before_it(context, length):
    row = Encoded(tuple(range(length)), (True,) * length)
    seen = []
    for window in windows(row, context):
        assert len(window.ids) <= context
        places = [t for t, counts in enumerate(window.scored) if counts and t]
        seen += [window.ids[t] for t in places]
        if window.ids[0] > 0:
            assert min(places) >= context // 2
    assert seen == list(range(1, length))


def test_perplexity_of_a_long_text_equals_a_slow_sliding_loop(model, reader):
    text, context = "the quick brown fox jumps over the lazy dog " * 3, 12
    ids = reader.plain(text)
    expected = 0.0
    for t in range(1, len(ids)):
        if t < context:
            start = 0
        else:
            end = min(len(ids), context + -(-(t + 1 - context) // (context // 2)) * (context // 2))
            start = end - context
        with torch.no_grad():
            expected += torch.log_softmax(model(torch.tensor([ids[start:t]])).logits[0, -1], -1)[ids[t]].item()
    (output,) = Likelihood(model, reader, Template(), context)([Document(text)])
    assert output.logprob == pytest.approx(expected, abs=1e-9)
    assert output.tokens == len(ids) - 1


def test_a_long_prompt_is_cut_and_counted(model, reader):
    example = Example("the lazy dog " * 20, "good", where="f:1")
    (output,) = Choose(model, reader, Template(), ("bad", "good"), 16)([example])
    assert output.truncated > 0
    assert len(output.prompt_ids) < 16


def test_a_label_of_several_words_has_their_mean_probability(model, reader):
    example = Example("the lazy dog is", "bad")
    scores = Choose(model, reader, Template(), ("slow", "lazy", "quick"), 64)([example])[0].scores
    spoken = Template(words={"bad": ("slow", "lazy"), "good": ("quick",)})
    (output,) = Choose(model, reader, spoken, ("bad", "good"), 64)([example])
    mean = math.log((math.exp(scores["slow"]) + math.exp(scores["lazy"])) / 2)
    assert output.scores == pytest.approx({"bad": mean, "good": scores["quick"]}, abs=1e-9)
    assert segments(example, spoken)[1].text == " slow"
    shot = spoken(example, "quick", (Example("the fox is", "good"),))
    assert shot[0].text == "the fox is quick\n\nthe lazy dog is"


def test_an_answer_that_cannot_fit_is_said(model, reader):
    with pytest.raises(DataError, match="f:2 does not fit"):
        Likelihood(model, reader, Template(), 6)([Example("why", "the lazy dog " * 9, where="f:2")])
    with pytest.raises(DataError, match="f:3 does not fit: 0 tokens"):
        Generate(model, reader, Template(), 16, max_new=20)([Example("why", "so", where="f:3")])
