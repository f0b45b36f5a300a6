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
from acclimate.metrics.spans import SquadExact, SquadF1


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


@dataclass(frozen=True)
class WholeQuestions(Summed):
    """Share of questions all of whose answers are judged right: MultiRC's exact match. Khashabi et al. 2018, section 4.

    A row is one answer: (the question's number, whether it is judged right). A resample takes a question as often as it
    takes its first answer, for the answers of a question stand or fall together.

    >>> WholeQuestions().combine([[7, 1], [7, 0], [8, 1], [8, 1]])
    0.5
    """

    name: ClassVar[str] = "question_exact"
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """(the row's `of`, 1 or 0)."""
        return float(example.fields["of"]), ChoiceAccuracy().row(output, example)[0]

    def statistics(self, rows: Array) -> Array:
        """(n, 2): of the first answer of each question whether all are right, and 1; zeros for the other answers."""
        _, first, place = np.unique(rows[:, 0], return_index=True, return_inverse=True)
        found = np.zeros((len(rows), 2))
        found[first] = 1
        np.minimum.at(found[:, 0], first[place], rows[:, 1])
        return found


@dataclass(frozen=True)
class ChosenF1(Summed):
    """F1 of the words of the entity that is chosen, against the right one that gives the most: ReCoRD. Zhang et al. 2018.

    The row's `names` are the entities, in the order of its choices; its `answers` the right ones.

    >>> row = Example("", fields={"names": ("Ann", "Ann Lee"), "answers": ("Ann Lee",)})
    >>> ChosenF1().row(Output(scores={"a": -1.0, "b": -2.0}), row)  # 2 · 1 / (1 + 2)
    (0.6666666666666666,)
    """

    name: ClassVar[str] = "entity_words_f1"
    kind: ClassVar[Kind] = "labels"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """0 to 1."""
        return SquadF1().row(*_named(output, example))


@dataclass(frozen=True)
class ChosenExact(ChoiceAccuracy):
    """Share of rows whose chosen entity is a right one but for case, articles and punctuation: ReCoRD. Zhang et al. 2018."""

    name: ClassVar[str] = "entity_exact"

    def row(self, output: Output, example: Example) -> tuple[float]:
        """1 or 0."""
        return SquadExact().row(*_named(output, example))


def _named(output: Output, example: Example) -> tuple[Output, Example]:
    """The entity that is chosen as the answer, and the question with its right ones."""
    answers = tuple(example.fields["answers"])
    return Output(example.fields["names"][int(np.argmax(_scores(output)))]), Example("", answers[0], answers)


def _scores(output: Output) -> Array:
    return np.array(list(output.scores.values()), dtype=np.float64)
