"""Worked examples: which, in what order, how many fit; label scores by length and calibrated, by hand."""

import math

import numpy as np
import pytest

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.evaluation.predictor import Choose, Generate
from acclimate.evaluation.shots import Calibrated, Fixed, Nearest, calibrated, drawn, mean_shares, told, without_content
from acclimate.tokens.codec import codec
from tests import spelling

LABELS = ("bad", "good")
PLAIN = Template("{{ text }} is")


def example(text: str, label: str = "", **more: object) -> Example:
    return Example("", label, fields={"text": text, **more}, where=text)


ROWS = [example(f"row {i}", "bad" if i < 12 else "good") for i in range(16)]


def ask(row: Example) -> str:
    return row.fields["text"]


def test_shots_are_balanced_seeded_and_grow() -> None:
    shots = drawn(ROWS, 6, seed=1)
    assert sorted(row.target for row in shots) == ["bad"] * 3 + ["good"] * 3
    assert drawn(ROWS, 6, seed=1) == shots
    assert drawn(ROWS, 4, seed=1) == shots[:4]
    assert drawn(ROWS, 6, seed=2) != shots
    every = drawn(ROWS, 99, seed=1)
    assert sorted(map(ask, every)) == sorted(map(ask, ROWS))
    assert len(drawn(ROWS, 5, seed=0, balanced=False)) == 5
    assert drawn([], 3, seed=0) == ()


def test_balance_is_not_what_chance_gives() -> None:
    """Of 16 rows 12 are bad: drawn at random, five shots are hardly ever as even as they can be."""
    spreads = []
    for balanced in (True, False):
        counts = [sum(r.target == "bad" for r in drawn(ROWS, 4, seed, balanced)) for seed in range(40)]
        spreads.append(sum(count != 2 for count in counts))
    assert spreads[0] == 0
    assert spreads[1] > 10


def test_a_question_is_not_its_own_shot() -> None:
    assert Fixed(tuple(ROWS[:3]), ask)(ROWS[1]) == (ROWS[0], ROWS[2])


def test_the_nearest_come_last_by_hand() -> None:
    """By angle from (1, 0): itself at 0°, then 10°, 45° however long, 90°."""
    angles = {"a": (0.0, 3.0), "b": (45.0, 100.0), "c": (10.0, 0.1), "d": (0.0, 1.0)}
    vectors = np.array([[r * math.cos(math.radians(t)), r * math.sin(math.radians(t))] for t, r in angles.values()])
    vectors[0] = (0.0, 3.0)
    rows = [example(name) for name in angles]
    nearest = Nearest(rows, vectors, {"d": np.array([2.0, 0.0])}, ask, 2)
    assert [ask(row) for row in nearest(example("d"))] == ["b", "c"]
    assert [ask(row) for row in Nearest(rows, vectors, {"d": np.zeros(2)}, ask, 9)(example("d"))] == ["c", "b", "a"]


def test_as_many_shots_as_fit_the_last_ones_and_how_many_is_told(model, reader) -> None:
    shots = tuple(example(f"the lazy dog {n}", "good") for n in range(6))
    question = example("a film")
    texts = ["".join(f"the lazy dog {n} is good\n\n" for n in range(n, 6)) + "a film is" for n in range(7)]
    for context in (len(reader.plain(texts[6])) + 3, 60, 200):
        (output,) = Choose(model, reader, PLAIN, LABELS, context, lambda e: shots)([question])
        longest = max(len(reader.plain(f" {label}")) for label in LABELS)
        fit = next(n for n, text in enumerate(texts) if len(reader.plain(text)) + longest <= context)
        assert (output.shots, output.truncated) == (6 - fit, 0)
        assert reader.decode(output.prompt_ids) == texts[fit]
        (written,) = Generate(model, reader, PLAIN, context, longest, shots=lambda e: shots)([question])
        assert (written.shots, reader.decode(written.prompt_ids)) == (6 - fit, texts[fit])


def test_shots_are_turns_of_a_chat(model) -> None:
    chatty = codec(spelling.byte_level())
    template = Template("{{ text }} is", chat=chatty.chat())
    (output,) = Choose(model, chatty, template, LABELS, 400, lambda e: (ROWS[0],))([example("a film")])
    assert "user\nrow 0 is<|im_end|>\n<|im_start|>assistant\nbad<|im_end|>" in chatty.decode(
        output.prompt_ids, special=True
    )


def test_labels_per_token_and_per_byte(model, reader) -> None:
    labels = ("bad", "positive review")
    plain, tokens, size = (
        Choose(model, reader, PLAIN, labels, 99, per=per)([example("it")])[0].scores
        for per in ("sum", "tokens", "bytes")
    )
    for label in labels:
        assert tokens[label] == pytest.approx(plain[label] / len(reader.plain(f" {label}")))
        assert size[label] == pytest.approx(plain[label] / len(label))


def test_calibration_by_hand() -> None:
    """Shares (0.8, 0.2) under a bias of (0.9, 0.1) are (8/9, 2) over 26/9: (4/13, 9/13)."""
    output = Output("bad", {"bad": math.log(0.08), "good": math.log(0.02)})
    found = calibrated(output, {"bad": 0.9, "good": 0.1})
    assert found.text == "good"
    assert [math.exp(score) for score in found.scores.values()] == pytest.approx([4 / 13, 9 / 13])
    assert calibrated(output, {"bad": 0.5, "good": 0.5}).text == "bad"
    twice = [Output(scores={"bad": math.log(0.9), "good": math.log(0.1)}), Output(scores={"bad": 0.0, "good": 0.0})]
    assert mean_shares(twice) == pytest.approx({"bad": 0.7, "good": 0.3})
    assert all(math.isfinite(s) for s in calibrated(output, {"bad": 1.0, "good": 0.0}).scores.values())


def test_calibration_asks_without_content_and_corrects_all(model, reader) -> None:
    choose = Choose(model, reader, PLAIN, LABELS, 99)
    asked = [example("the quick fox", score=3), example("a dog")]
    empties = [without_content(asked[0], text) for text in ("N/A", "[MASK]", "")]
    assert empties[0].fields == {"text": "N/A", "score": 3}
    bias = mean_shares(choose(empties))
    found = Calibrated(choose)(asked)
    assert [o.scores for o in found] == [pytest.approx(calibrated(o, bias).scores) for o in choose(asked)]
    assert Calibrated(choose)([]) == []


def test_what_is_told_of_shots() -> None:
    (row,) = told([Output(shots=2), Output(shots=4)], 4)["Worked examples before a question"].values()
    assert row == {"asked": 4.0, "fewest": 2.0, "mean": 3.0, "most": 4.0}
    assert told([Output()], 0) == {}
