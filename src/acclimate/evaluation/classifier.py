"""A scikit-learn classifier on frozen features: fitted, chosen on dev, saved as plain numbers, asked like any predictor."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from acclimate.data.archive import atomically
from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import DataError, SourceError
from acclimate.evaluation.predictor import Tick

Kind = Literal["logistic", "svm", "neighbours"]
GRIDS: Mapping[Kind, tuple[float, ...]] = {  # strongest regularisation first; the first of the best is taken
    "logistic": (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0),  # C
    "svm": (0.0001, 0.001, 0.01, 0.1, 1.0),  # C
    "neighbours": (25, 15, 9, 5, 3, 1),  # how many
}
MIDDLE: Mapping[Kind, float] = {"logistic": 0.01, "svm": 0.001, "neighbours": 5}  # without a dev part
NUMBERS, FACTS = "classifier.safetensors", "classifier.json"

Rows = Float[np.ndarray, "n d"]


@dataclass(frozen=True, eq=False)
class Linear:
    """Logistic regression or a linear SVM: W z + b with z the standardised features; one row of W for each label."""

    labels: tuple[str, ...]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weight: Float[np.ndarray, "labels d"]
    bias: Float[np.ndarray, " labels"]
    margins: bool = False  # an SVM's: no probabilities

    @property
    def parameters(self) -> int:
        """Numbers that were fitted; of two labels one row is enough."""
        rows = len(self.labels) if len(self.labels) > 2 else 1
        return rows * (int(self.weight.shape[1]) + 1)

    def scores(self, rows: Rows) -> Float[np.ndarray, "n labels"]:
        """Natural-log probabilities; an SVM's margins."""
        logits = (rows.astype(np.float64) - self.mean) / self.scale @ self.weight.T + self.bias
        return np.asarray(logits if self.margins else logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Neighbours:
    """k nearest neighbours by Euclidean distance between standardised features, which it keeps."""

    labels: tuple[str, ...]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    kept: Rows  # standardised
    owner: Int[np.ndarray, " n"]  # the label of each
    count: int

    margins = False
    parameters = 0  # it keeps rows and fits no number

    def scores(self, rows: Rows) -> Float[np.ndarray, "n labels"]:
        """Natural log of each label's share of the neighbours, one added to every count so that it is finite."""
        asked = (rows.astype(np.float64) - self.mean) / self.scale
        far = (asked**2).sum(1)[:, None] - 2 * asked @ self.kept.T + (self.kept**2).sum(1)
        near = self.owner[np.argsort(far, axis=1, kind="stable")[:, : self.count]]
        votes = (near[:, :, None] == np.arange(len(self.labels))).sum(1) + 1.0
        return np.asarray(np.log(votes / votes.sum(1, keepdims=True)))


Classifier = Linear | Neighbours


def fit_classifier(
    rows: Rows, targets: Sequence[str], labels: Sequence[str], kind: Kind, strength: float
) -> Classifier:
    """Fit one classifier on features that are standardised by their own mean and deviation.

    strength: C of scikit-learn, or the number of neighbours. Raises DataError where only one label occurs.
    """
    present = tuple(label for label in labels if label in set(targets))
    if len(present) < 2:
        raise DataError(
            f"A classifier needs rows of two labels at least; these have only {', '.join(present) or 'none'}."
        )
    owner = np.array([present.index(target) for target in targets])
    wide = rows.astype(np.float64)
    mean, scale = wide.mean(0), wide.std(0)
    scale = np.where(scale > 1e-12 * (1 + np.abs(mean)), scale, 1.0)
    z = (wide - mean) / scale
    if kind == "neighbours":
        return Neighbours(present, mean, scale, z, owner, min(int(strength), len(z)))
    weight, bias = _linear(z, owner, kind, strength)
    if len(weight) == 1:  # of two labels scikit-learn keeps the second one's row; the first one's is zero
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return Linear(present, mean, scale, weight, bias, margins=kind == "svm")


def _linear(z: Rows, owner: Int[np.ndarray, " n"], kind: Kind, strength: float) -> tuple[Any, Any]:
    from sklearn.linear_model import LogisticRegression  # here, because it takes a second to import
    from sklearn.svm import LinearSVC

    if kind == "logistic":
        fitted = LogisticRegression(C=strength, max_iter=10_000).fit(z, owner)
    else:
        fitted = LinearSVC(C=strength, dual=False, max_iter=10_000).fit(z, owner)
    return fitted.coef_.astype(np.float64), fitted.intercept_.astype(np.float64)


class Chosen(NamedTuple):
    """The classifier that was best on dev, its strength, and the score of every strength that was tried."""

    classifier: Classifier
    strength: float
    tried: dict[float, float]


def choose_classifier(
    train: tuple[Rows, Sequence[str]],
    dev: tuple[Rows, Sequence[str]],
    labels: Sequence[str],
    kind: Kind,
    score: Callable[[Sequence[Output]], float],
) -> Chosen:
    """Fit on train with every strength of the kind's grid, and take the one whose answers on dev `score` highest.

    Of equals the strongest regularisation is taken; without dev rows the middle one, untried.
    """
    if not len(dev[1]):
        return Chosen(fit_classifier(*train, labels, kind, MIDDLE[kind]), MIDDLE[kind], {})
    fitted = {strength: fit_classifier(*train, labels, kind, strength) for strength in GRIDS[kind]}
    tried = {strength: score(answers(one, dev[0])) for strength, one in fitted.items()}
    best = max(tried, key=tried.__getitem__)
    return Chosen(fitted[best], best, tried)


def answers(classifier: Classifier, rows: Rows, truncated: Sequence[int] = ()) -> list[Output]:
    """The label of each row, with the log-probabilities of all where the classifier has any."""
    found = classifier.scores(rows)
    cut = truncated or [0] * len(rows)
    return [
        Output(
            classifier.labels[int(row.argmax())],
            {} if classifier.margins else dict(zip(classifier.labels, row.tolist(), strict=True)),
            truncated=less,
        )
        for row, less in zip(found, cut, strict=True)
    ]


class Embedded(NamedTuple):
    """(n, d) features of texts, and how many ids of each had to be left out."""

    rows: Rows
    truncated: tuple[int, ...]


@dataclass(frozen=True)
class Classify:
    """A predictor: the template's question as a vector, and the classifier's label for it."""

    embed: Callable[[Sequence[str]], Embedded]
    template: Template
    classifier: Classifier

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        return self.classifier.parameters

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        rows, truncated = self.embed([self.template.question(example) for example in examples])
        if tick is not None:
            tick(len(examples))
        return answers(self.classifier, rows, truncated)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write the classifier as numbers and a little JSON; nothing in it can run."""
    given = vars(classifier)
    numbers = {name: np.ascontiguousarray(value) for name, value in given.items() if isinstance(value, np.ndarray)}
    facts = {name: value for name, value in given.items() if name not in numbers}
    with atomically(folder) as partial:
        partial.mkdir()
        save_file(numbers, partial / NUMBERS)
        text = json.dumps({"kind": type(classifier).__name__, **facts}, ensure_ascii=False, indent=1, sort_keys=True)
        (partial / FACTS).write_text(text + "\n", encoding="utf-8")


def load_classifier(folder: Path) -> Classifier:
    """The inverse of `save_classifier`. Raises SourceError for a folder that is not whole."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        kind = {"Linear": Linear, "Neighbours": Neighbours}[facts.pop("kind")]
        made: Classifier = kind(**{**facts, **load_file(folder / NUMBERS), "labels": tuple(facts["labels"])})
        if made.scores(made.mean[None]).shape != (1, len(made.labels)):
            raise ValueError("its numbers are not those of its labels")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as problem:
        raise SourceError(f"{folder} holds no whole classifier: {problem}.") from problem
    return made
