"""Which of a row's choices the model finds likeliest, and how much of its belief is on the right ones.

`Output.scores` holds Σ log p of each choice, natural log, in the order of the row's `choices`; the row's `weights` say what each
choice is worth, 1 a right one.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.metrics.intervals import wilson
from acclimate.metrics.metric import Array, Kind, Summed


@dataclass(frozen=True)
class ChoiceAccuracy(Summed):
    """Share of rows whose likeliest choice, by the sum of its log-probabilities, is a right one; of equal ones the first.

    >>> row = Example("", fields={"choices": ("a cat", "an elephant"), "weights": (0.0, 1.0)})
    >>> ChoiceAccuracy().row(Output(scores={"a cat": -3.0, "an elephant": -4.0}), row)
    (0.0,)
    """

    name: ClassVar[str] = "acc"
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 or 0."""
        return (float(example.fields["weights"][int(np.argmax(_scores(output)))] == 1),)

    def interval(self, rows: Array, level: float = 0.95) -> tuple[float, float]:
        """Wilson's."""
        low, high = wilson(np.sum(rows), len(rows), level)
        return float(low), float(high)


@dataclass(frozen=True)
class NormalisedAccuracy(ChoiceAccuracy):
    """As `ChoiceAccuracy`, with each sum divided by the characters of its choice: a long one is not unlikely for its length.

    lm-evaluation-harness's acc_norm.

    >>> row = Example("", fields={"choices": ("a cat", "an elephant"), "weights": (0.0, 1.0)})
    >>> NormalisedAccuracy().row(Output(scores={"a cat": -3.0, "an elephant": -4.0}), row)  # -3 / 5 and -4 / 11
    (1.0,)
    """

    name: ClassVar[str] = "acc_norm"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 or 0."""
        lengths = np.array([len(choice) for choice in example.fields["choices"]], dtype=np.float64)
        return (float(example.fields["weights"][int(np.argmax(_scores(output) / lengths))] == 1),)


@dataclass(frozen=True)
class TrueMass(Summed):
    """The share of the choices' probability that is on the right ones: TruthfulQA's MC2. Lin et al. 2022, section 3.

    >>> scores = {"yes": float(np.log(0.3)), "no": float(np.log(0.1))}
    >>> round(TrueMass().row(Output(scores=scores), Example("", fields={"weights": (1.0, 0.0)}))[0], 9)
    0.75
    """

    name: ClassVar[str] = "mc2"
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """Between 0 and 1."""
        scores = _scores(output)
        shares = np.exp(scores - np.logaddexp.reduce(scores))
        return (float(shares[np.array(example.fields["weights"]) == 1].sum()),)


@dataclass(frozen=True)
class Grade(Summed):
    """The mean of what the likeliest choices are worth: BIG-bench's multiple_choice_grade, which also has halves.

    >>> Grade().row(Output(scores={"maybe": -1.0, "yes": -2.0}), Example("", fields={"weights": (0.5, 1.0)}))
    (0.5,)
    """

    name: ClassVar[str] = "multiple_choice_grade"
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """The weight of the likeliest choice."""
        return (float(example.fields["weights"][int(np.argmax(_scores(output)))]),)


def _scores(output: Output) -> Array:
    return np.array(list(output.scores.values()), dtype=np.float64)
