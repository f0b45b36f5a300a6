"""Representation, stereotypes and toxicity: counts by hand, the classifier's own answers, what is missing said."""

import sys

import numpy as np
import pytest
from profanity_check import predict_prob

from acclimate.data.examples import Example, Output
from acclimate.errors import DataError, SourceError
from acclimate.metrics import toxicity as module
from acclimate.metrics.bias import Association, Representation, imbalance, mentions
from acclimate.metrics.toxicity import EverToxic, ExpectedMaximum, Toxicity, ToxicShare, toxicity
from acclimate.metrics.words import DIALECT, FEMALE, GENDERS, MALE, NAMES, OCCUPATIONS

NOBODY = Example("")


def test_imbalance_by_hand() -> None:
    found = imbalance(np.array([[[3.0, 1.0], [2.0, 2.0]], [[0.0, 5.0], [0.0, 0.0]]]))
    assert found[:, 0].tolist() == [0.25, 0.5]
    assert found[0, 1] == 0
    assert np.isnan(found[1, 1])
    assert imbalance(np.array([6.0, 0.0, 0.0])) == pytest.approx(2 / 3)
    assert imbalance(np.array([3.0, 2.0, 1.0])) == pytest.approx((1 / 6 + 0 + 1 / 6) / 2)


def test_representation_counts_over_all_texts() -> None:
    metric = Representation()
    rows = [metric.row(Output(text), NOBODY) for text in ("HE and he!", "she", "nobody", "The theme of heroes")]
    assert rows == [(0, 2), (1, 0), (0, 0), (0, 0)]
    assert metric.combine(rows) == pytest.approx(1 / 6)  # 1 of 3 and 2 of 3; the mean of the texts would be 1/2
    assert metric.combine(rows[2:]) == 0  # nobody is named
    three = Representation((frozenset({"red"}), frozenset({"blue"}), frozenset({"green"})))
    assert three.row(Output("Red, red, blue"), NOBODY) == (2, 1, 0)


def test_association_by_hand() -> None:
    metric = Association(("nurse", "driver", "baker"))
    texts = ("She is a nurse, her sister a driver", "The driver and his father", "He sat", "a baker")
    rows = [metric.row(Output(text), NOBODY) for text in texts]
    assert rows == [(3, 0, 3, 0, 0, 0), (0, 0, 0, 2, 0, 0), (0,) * 6, (0,) * 6]
    assert metric.combine(rows) == pytest.approx((0.5 + 0.1) / 2)  # nurse 3:0, driver 3:2; the baker stands alone
    assert metric.combine(rows[2:]) == 0
    assert metric.combine([rows[0], rows[0], rows[1]]) == pytest.approx((0.5 + 0.25) / 2)


def test_lists_of_words_are_consistent() -> None:
    assert not FEMALE & MALE
    pairs = [(a, b) for names in NAMES.values() for a, b in zip(*names, strict=True)]
    flat = [*(word for pair in pairs for word in pair), *OCCUPATIONS, *DIALECT]
    assert len(set(flat)) == len(flat)
    assert all(word == word.lower() for word in [*flat, *FEMALE, *MALE])
    assert len(dict(GENDERS)) == len(GENDERS)
    assert mentions("Himself, herself; mothers' sons", (FEMALE, MALE)) == (2, 2)


def test_toxicity_is_the_classifiers() -> None:
    texts = ["you are a stupid idiot", "have a nice day", ""]
    expected = predict_prob(texts)
    rows = [Toxicity().row(Output(text), NOBODY) for text in texts]
    assert [row[0] for row in rows] == pytest.approx(expected, abs=1e-12)
    assert rows[0][0] > 0.9 > 0.2 > rows[1][0]
    assert Toxicity().combine(rows) == pytest.approx(np.mean(expected))
    shares = [ToxicShare().row(Output(text), NOBODY) for text in texts]
    assert shares == [(1.0,), (0.0,), (0.0,)]
    assert ToxicShare().interval(np.array(shares))[0] > 0


def test_the_worst_of_several_samples() -> None:
    scores = [[0.1, 0.9, 0.2], [0.3, 0.2, 0.5], [0.6, 0.7, 0.1]]
    assert ExpectedMaximum().combine(scores) == pytest.approx((0.9 + 0.5 + 0.7) / 3)
    assert EverToxic().combine(scores) == 2 / 3  # 0.5 is not above 0.5
    assert EverToxic().interval(np.array(scores)) == ToxicShare().interval(np.array([[1.0], [0.0], [1.0]]))
    assert ExpectedMaximum().combine([[0.1], [0.3]]) == pytest.approx(0.2)
    with pytest.raises(DataError, match="toxicity needs at least one example"):
        ExpectedMaximum().combine([])


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    module._classifier.cache_clear()
    with pytest.raises(SourceError, match=r"pip install 'acclimate\[toxicity\]'"):
        toxicity("a text that nobody asked for before")
    module._classifier.cache_clear()
