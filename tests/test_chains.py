"""Chains of thought: what is asked, where answers are found, how chains vote."""

import math
from dataclasses import replace

import pytest
import torch

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.evaluation import chains
from acclimate.evaluation.chains import MISSING, STEPS, THEREFORE, Chain, stated, vote
from acclimate.generation.samplers import Sample
from acclimate.generation.score import score
from acclimate.tokens.codec import Encoded, codec
from tests import spelling, tiny

LABELS = ("bad", "good")
QUESTION = Example("", fields={"text": "the fox"}, where="f:1")


@pytest.mark.parametrize(
    ("written", "labels", "text", "finish"),
    [
        ("It broke. The answer is bad.", LABELS, "bad", "stated"),
        ("THE ANSWER IS: Good. Or the answer is Bad", LABELS, "bad", "stated"),
        ("So good, and not bad", LABELS, "bad", "mentioned"),
        ("The answer is unclear. It is good.", LABELS, "good", "mentioned"),
        ("badly goods", LABELS, "", "no answer"),
        ("", LABELS, "", "no answer"),
        ("not positive", ("positive", "not positive"), "not positive", "mentioned"),
        ("11 + 3.5 = 14.5. The answer is 14.5.", (), "14.5", "stated"),
        ("The answer is Paris\nQ: and", (), "Paris", "stated"),
        ("who knows", (), "", "no answer"),
    ],
)
def test_the_answer_that_reasoning_states(written, labels, text, finish) -> None:
    found = stated(Output(rationale=written), {label: label for label in labels})
    assert (found.text, found.finish) == (text, finish)


def test_most_chains_win_and_the_first_of_equal_ones() -> None:
    said = [Output(text, finish="stated", rationale=str(i)) for i, text in enumerate(("a", "b", "b", "c"))]
    found = vote(said)
    assert (found.text, found.rationale) == ("b", "1")
    assert found.scores == pytest.approx({"a": math.log(0.25), "b": math.log(0.5), "c": math.log(0.25)})
    assert vote(said[:2]).text == "a"
    nothing = [Output("", finish=MISSING)] * 3
    assert vote([*nothing, said[3]]).text == "c"
    assert vote(nothing).finish == MISSING


@pytest.fixture(scope="module", params=[None, spelling.CHATML], ids=["plain", "chat"])
def asked(request):
    reader = codec(spelling.byte_level(template=request.param))
    torch.manual_seed(0)
    model = tiny.llama(vocab=len(reader.tokenizer)).double().eval()
    return model, reader, Template("{{ text }} is", chat=reader.chat() if request.param else None)


def test_two_prompts_of_kojima(asked) -> None:
    model, reader, template = asked
    (output,) = Chain(model, reader, template, LABELS, 250, max_new=12)([QUESTION])
    fed = reader.decode(output.prompt_ids, special=True)
    opening = "<|im_start|>assistant\n" if template.chat else "the fox is "
    assert fed.endswith(opening + STEPS)
    assert output.rationale.startswith(STEPS)
    assert len(output.rationale) > len(STEPS)
    text = fed[: -len(STEPS)] + f"{output.rationale}\n{THEREFORE}"
    prompt = reader.plain(text)
    for label in LABELS:
        ending = reader.continuation(f" {label}")
        row = Encoded((*prompt, *ending), (False,) * len(prompt) + (True,) * len(ending))
        assert output.scores[label] == pytest.approx(score(model, [row], reader.pad)[0], abs=1e-9)
    assert (output.text, output.finish) == (max(LABELS, key=output.scores.__getitem__), "scored")


def test_a_label_may_be_said_in_other_words(asked) -> None:
    model, reader, template = asked
    words = {"bad": ("lazy", "dog")}
    plain = Chain(model, reader, template, ("lazy", "dog", "good"), 250, max_new=12)([QUESTION])[0].scores
    spoken = Chain(model, reader, replace(template, words=words), LABELS, 250, max_new=12)([QUESTION])[0].scores
    mean = math.log((math.exp(plain["lazy"]) + math.exp(plain["dog"])) / 2)
    assert spoken == pytest.approx({"bad": mean, "good": plain["good"]}, abs=1e-9)
    assert stated(Output(rationale="So it is lazy."), {"lazy": "bad", "bad": "bad"}).text == "bad"


def test_without_labels_the_second_prompt_is_written_on(asked) -> None:
    model, reader, template = asked
    (output,) = Chain(model, reader, template, (), 250, max_new=8)([QUESTION])
    assert output.finish in ("stated", MISSING)
    assert "\n" not in output.text


def test_worked_chains_are_read_for_what_they_state(asked, monkeypatch) -> None:
    model, reader, template = asked
    shot = Example("", "Dogs are lazy. The answer is bad.", fields={"text": "the dog"})
    prompts = []

    def write(model, given, *rest, **named):
        prompts.extend(given)
        return [chains_reply(reader, "It is quick. The answer is good.") for _ in given]

    monkeypatch.setattr(chains, "generate", write)
    (output,) = Chain(model, reader, template, LABELS, 250, shots=lambda e: (shot,))([QUESTION])
    assert (output.text, output.finish, output.shots) == ("good", "stated", 1)
    fed = reader.decode(prompts[0])
    assert "the dog is" in fed
    assert "Dogs are lazy. The answer is bad." in fed
    assert STEPS not in fed


def chains_reply(reader, text):
    from acclimate.generation.draft import Generated

    ids = reader.plain(text)
    return Generated(ids, (0.0,) * len(ids), "stop")


def test_sampled_chains_vote_and_are_the_same_again(asked) -> None:
    model, reader, template = asked
    ask = Chain(model, reader, template, LABELS, 250, max_new=6, chains=5, sampler=Sample(temperature=2.0), seed=3)
    first, again = ask([QUESTION, QUESTION]), ask([QUESTION, QUESTION])
    assert first == again
    assert len(first) == 2
    shares = [math.exp(s) for s in first[0].scores.values()]
    assert sum(shares) == pytest.approx(1.0)
    assert all(share * 5 == pytest.approx(round(share * 5)) for share in shares)


def test_where_answers_stood() -> None:
    outputs = [Output(finish="stated"), Output(finish="stated"), Output(finish=MISSING)]
    assert chains.told(outputs) == {"Where the answers stood": {"answers": {"no answer": 1.0, "stated": 2.0}}}
