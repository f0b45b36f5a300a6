"""Classifiers on features: scikit-learn's own answers, chosen on dev, saved without pickle, asked like any predictor."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import DataError, SourceError
from acclimate.evaluation.classifier import (
    GRIDS,
    Classify,
    Embedded,
    Neighbours,
    answers,
    choose_classifier,
    fit_classifier,
    load_classifier,
    save_classifier,
)

KINDS = ("logistic", "svm", "neighbours")
every_kind = pytest.mark.parametrize("kind", KINDS)


def clouds(labels: int, count: int = 90, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Points around one centre for each label, on axes of very different size; the last axis never changes."""
    draw = np.random.default_rng(seed)
    owner = draw.integers(labels, size=count)
    centres = np.random.default_rng(99).normal(size=(labels, 4))
    rows = (centres[owner] + draw.normal(size=(count, 4))) * [1, 100, 0.01, 5] + 3
    return np.concatenate([rows, np.full((count, 1), 7.0)], 1).astype(np.float32), [f"l{i}" for i in owner]


def names(labels: int) -> tuple[str, ...]:
    return tuple(f"l{i}" for i in range(labels))


@every_kind
@pytest.mark.parametrize("labels", [2, 3])
def test_answers_are_those_of_scikit_learn(kind: str, labels: int) -> None:
    rows, targets = clouds(labels)
    asked = clouds(labels, seed=1)[0]
    scaler = StandardScaler().fit(rows.astype(np.float64))
    z, other = scaler.transform(rows.astype(np.float64)), scaler.transform(asked.astype(np.float64))
    peer = {
        "logistic": LogisticRegression(C=0.1, max_iter=10_000),
        "svm": LinearSVC(C=0.1, dual=False),
        "neighbours": KNeighborsClassifier(7),
    }[kind].fit(z, targets)
    ours = fit_classifier(rows, targets, names(labels), kind, 7 if kind == "neighbours" else 0.1)
    said = answers(ours, asked)
    votes = peer.predict_proba(other) if kind == "neighbours" else None
    clear = [True] * len(asked) if votes is None else list(np.sort(votes)[:, -1] > np.sort(votes)[:, -2])
    assert sum(clear) > 80
    assert all(one.text == label for one, label, sure in zip(said, peer.predict(other), clear, strict=True) if sure)
    if kind == "logistic":
        wanted = peer.predict_log_proba(other)
        assert np.abs(np.array([list(o.scores.values()) for o in said]) - wanted).max() <= 1e-6
        assert ours.parameters == (6 if labels == 2 else 18)
    if kind == "svm":
        assert said[0].scores == {}
    if votes is not None:
        assert np.exp(list(said[0].scores.values())) == pytest.approx((votes[0] * 7 + 1) / (7 + labels))


def test_neighbours_by_hand() -> None:
    """At 0, 1, 3 and 10 on a line, the last two another label; of 2's neighbours 1 and 3 are nearest, then 0."""
    rows = np.array([[0.0], [1.0], [3.0], [10.0]])
    found = fit_classifier(rows, ["a", "a", "b", "b"], ("a", "b"), "neighbours", 3)
    assert isinstance(found, Neighbours)
    (said,) = answers(found, np.array([[2.1]]))
    assert said.text == "a"
    assert said.scores == pytest.approx({"a": np.log(3 / 5), "b": np.log(2 / 5)})


@every_kind
def test_saved_as_numbers_and_read_back_equal(kind: str, tmp_path: Path) -> None:
    rows, targets = clouds(3)
    made = fit_classifier(rows, targets, names(3), kind, GRIDS[kind][0])
    save_classifier(made, tmp_path / "kept")
    again = load_classifier(tmp_path / "kept")
    assert type(again) is type(made)
    assert answers(again, rows) == answers(made, rows)
    assert again.parameters == made.parameters
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} == {".json", ".safetensors"}
    facts = tmp_path / "kept" / "classifier.json"
    for broken in ("{", json.dumps({"kind": "Other"}), json.dumps({"kind": "Linear", "labels": ["a"]})):
        facts.write_text(broken)
        with pytest.raises(SourceError, match="holds no whole classifier"):
            load_classifier(tmp_path / "kept")


def test_the_strength_is_chosen_on_dev() -> None:
    train, dev = clouds(2, 30), clouds(2, 60, seed=3)

    def right(outputs: list[Output]) -> float:
        return float(np.mean([o.text == t for o, t in zip(outputs, dev[1], strict=True)]))

    found = choose_classifier(train, dev, names(2), "logistic", right)
    by_hand = {c: right(answers(fit_classifier(*train, names(2), "logistic", c), dev[0])) for c in GRIDS["logistic"]}
    assert found.tried == by_hand
    assert len(set(by_hand.values())) > 1
    assert found.strength == min(c for c, value in by_hand.items() if value == max(by_hand.values()))
    worst = choose_classifier(train, dev, names(2), "logistic", lambda outputs: -right(outputs))
    assert worst.tried[worst.strength] == -min(by_hand.values())
    blind = choose_classifier(train, (dev[0][:0], []), names(2), "logistic", right)
    assert blind.tried == {}


def test_a_predictor_of_examples() -> None:
    rows, targets = clouds(2)
    made = fit_classifier(rows, targets, names(2), "logistic", 0.1)
    asked: list[str] = []

    def embed(texts: list[str]) -> Embedded:
        asked.extend(texts)
        return Embedded(rows[: len(texts)], (0, 4))

    heard: list[int] = []
    said = Classify(embed, Template("Is it {{ prompt }}?"), made)([Example("a"), Example("b")], heard.append)
    assert asked == ["Is it a?", "Is it b?"]
    assert [o.text for o in said] == [o.text for o in answers(made, rows[:2])]
    assert [o.truncated for o in said] == [0, 4]
    assert heard == [2]


def test_one_label_is_no_task() -> None:
    with pytest.raises(DataError, match="two labels at least; these have only l0"):
        fit_classifier(np.zeros((3, 2)), ["l0"] * 3, names(2), "logistic", 1.0)
