"""What a judge says of two answers in both orders, what that counts as, and how much of it is the order's doing.

A comparison is an Example whose fields are prompt, first and second, and whose target is what people said, if anything.
A judge is a predictor of A, B or tie on such examples. An answer that says none of them is unreadable and has no text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from acclimate.data.examples import Example, Output
from acclimate.evaluation.predictor import Predictor, Tick
from acclimate.metrics.agreement import TIE
from acclimate.metrics.metric import Array, Kind, Summed, ratio

A, B = "A", "B"
ABSENT = "absent"  # what a person's file says of a comparison that the person was not asked
SIDES = (A, TIE, B)  # in order, for weighted agreement
TURNED = {A: B, B: A}


@dataclass(frozen=True)
class Share(Summed):
    """Σ part / Σ whole; a row is both, of one item."""

    name: ClassVar[str] = "share"
    kind: ClassVar[Kind] = "number"

    def row(self, output: Output, example: Example) -> tuple[float, float]:
        """The number answered, of 1."""
        return output.value, 1.0

    def statistics(self, rows: Array) -> Array:
        """The rows themselves."""
        return rows

    def value(self, sums: Array) -> Array:
        """part / whole; NaN where there is nothing."""
        return ratio(sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class Verdict:
    """What a judge said of a comparison as it stands and of the same with the answers exchanged; A is the first shown."""

    given: Output
    turned: Output

    @property
    def winner(self) -> str:
        """A where the comparison's first answer wins, B, tie or absent.

        One must win in both orders: a verdict that changes with the order is a tie (Zheng et al. 2023, arXiv:2306.05685,
        3.4), and so is what cannot be read.
        """
        one, other = self.given.text, self.turned.text
        if ABSENT in (one, other):
            return ABSENT
        return one if one and one == TURNED.get(other, other) else TIE

    @property
    def flips(self) -> bool:
        """Whether each order has another winner: the same place twice."""
        return self.given.text in TURNED and self.given.text == self.turned.text

    @property
    def averaged(self) -> str:
        """The winner by the mean of both orders' scores, in which a liking for one place cancels; "" without scores.

        Balanced position calibration, Wang et al. 2023, arXiv:2305.17926, 3.2, with log-probabilities as scores.
        """
        if not (self.given.scores and self.turned.scores):
            return ""
        gaps = [output.scores[A] - output.scores[B] for output in (self.given, self.turned)]
        return A if gaps[0] > gaps[1] else B if gaps[0] < gaps[1] else TIE

    @property
    def votes(self) -> tuple[str, str]:
        """What was said in both orders."""
        return self.given.text, self.turned.text


def comparison(prompt: str, first: str, second: str, target: str = "", where: str = "") -> Example:
    """Two answers to one prompt."""
    fields = {"prompt": prompt, "first": first, "second": second, "turned": False}
    return Example(prompt, target, fields=fields, where=where)


def turned(example: Example) -> Example:
    """The same comparison with its answers exchanged, and so what people said of it."""
    given = example.fields
    changed = {"first": given["second"], "second": given["first"], "turned": not given["turned"]}
    return replace(example, target=TURNED.get(example.target, example.target), fields={**given, **changed})


def verdicts(judge: Predictor, comparisons: Sequence[Example], tick: Tick | None = None) -> list[Verdict]:
    """Ask about every comparison in both orders; two answers that are the same are a tie unasked. tick hears of orders."""
    asked = [i for i, example in enumerate(comparisons) if example.fields["first"] != example.fields["second"]]
    rows = [comparisons[i] for i in asked]
    said = judge([*rows, *map(turned, rows)], tick)
    found = [Verdict(Output(TIE), Output(TIE))] * len(comparisons)
    for place, i in enumerate(asked):
        found[i] = Verdict(said[place], said[len(asked) + place])
    return found


def rows_of(found: Sequence[Verdict], counts: Callable[[str], tuple[float, float]]) -> list[tuple[float, float]]:
    """(part, whole) of each comparison's two votes together."""
    both = [[counts(vote) for vote in verdict.votes] for verdict in found]
    return [(one[0] + other[0], one[1] + other[1]) for one, other in both]


def first_shown(vote: str) -> tuple[float, float]:
    """Whether a vote names the answer shown first, of the votes that name one."""
    return float(vote == A), float(vote in TURNED)


def unreadable(vote: str) -> tuple[float, float]:
    """Whether a vote could not be read, of the votes that were asked for."""
    return float(vote == ""), float(vote != ABSENT)


def flipped(found: Sequence[Verdict]) -> list[tuple[float, float]]:
    """Whether the winner changes with the order, of the comparisons in which both orders have one."""
    return [(float(v.flips), float(all(vote in TURNED for vote in v.votes))) for v in found]
