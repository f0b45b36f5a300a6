"""Who judges: a model that reads a judging prompt, a score for each answer, a person's file. Each is a predictor.

Prompts are in `judging/`, in the project's own words; the six points of helpfulness and fail, pass, excellent are the ideas
of Zhou et al. 2023 (LIMA, arXiv:2305.11206), and both orders that of Zheng et al. 2023 (arXiv:2306.05685).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from acclimate.data.examples import Example, Output
from acclimate.data.template import Template
from acclimate.errors import DataError
from acclimate.evaluation.predictor import Predictor, Tick
from acclimate.evaluation.verdicts import ABSENT, SIDES, TURNED, A, B
from acclimate.metrics.agreement import TIE
from acclimate.tokens.codec import Codec, refuse_control_tokens

Scores = Callable[[Sequence[Example], Tick | None], Sequence[float]]  # of each example's target as answer to its prompt


@dataclass(frozen=True)
class Question:
    """What a judge is asked, and what it may answer; `points` of a scale go from worst to best."""

    name: str  # of the file in judging/
    points: tuple[str, ...]

    def prompt(self, reasons: bool) -> str:
        """Jinja for the prompt; reasons: whether the judge is to write before it says its verdict."""
        source = files(__package__).joinpath("judging", f"{self.name}.j2").read_text(encoding="utf-8")
        return f"{{% set reasons = {str(reasons).lower()} %}}{source.rstrip()}"

    def read(self, text: str) -> str:
        """The verdict in what a judge wrote: the last one announced, or a text that is nothing else; "" without.

        >>> PAIRWISE.read("A is longer. Verdict: **B**"), PAIRWISE.read("Tie."), PAIRWISE.read("A and B are good.")
        ('B', 'tie', '')
        """
        one = "|".join(sorted(map(re.escape, self.points), key=len, reverse=True))
        said = re.findall(rf"\bverdict\W{{0,8}}(?:(?:an?|answer)\s+)?({one})\b", text, re.IGNORECASE)
        alone = re.fullmatch(rf"\W*(?:answer\s+)?({one})\W*", text, re.IGNORECASE)
        word = said[-1] if said else alone[1] if alone else ""
        return next((point for point in self.points if point.lower() == word.lower()), "")


PAIRWISE = Question("pairwise", SIDES)
SCALES: Mapping[str, Question] = {
    "helpfulness": Question("helpfulness", ("1", "2", "3", "4", "5", "6")),
    "acceptance": Question("acceptance", ("fail", "pass", "excellent")),
}


@dataclass(frozen=True)
class Written:
    """A judge that writes: the verdict is read off its text, which is kept as its reasons."""

    writer: Predictor
    question: Question

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        said = self.writer(examples, tick)
        return [replace(output, text=self.question.read(output.text), rationale=output.text) for output in said]


@dataclass(frozen=True)
class Guarded:
    """A local judge that is shown no text which would end or open a turn of its chat format."""

    judge: Predictor
    codec: Codec

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        for example in examples:
            for text in example.fields.values():
                refuse_control_tokens(self.codec, str(text), example.where)
        return self.judge(examples, tick)


def template(question: Question, around: Template, reasons: bool) -> Template:
    """The judging prompt in the format that the judge is asked in."""
    return replace(around, prompt=question.prompt(reasons))


@dataclass(frozen=True)
class Scored:
    """A judge by scores, such as a reward model: the answer with the higher one, a tie within `margin`."""

    scores: Scores
    margin: float = 0.0

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        answers = list(dict.fromkeys((e.prompt, e.fields[side]) for e in examples for side in ("first", "second")))
        asked = [Example(prompt, text, fields={"prompt": prompt}) for prompt, text in answers]
        values = dict(zip(answers, self.scores(asked, None), strict=True))
        if tick is not None:
            tick(len(examples))
        gaps = [values[e.prompt, e.fields["first"]] - values[e.prompt, e.fields["second"]] for e in examples]
        return [Output(TIE if abs(gap) <= self.margin else A if gap > 0 else B, value=gap) for gap in gaps]


def length(examples: Sequence[Example], tick: Tick | None = None) -> list[float]:
    """Characters of each answer: a judge by it is a control, which people should not agree with."""
    return [float(len(example.target)) for example in examples]


@dataclass(frozen=True)
class Likely:
    """Scores by a model's mean log-probability of the answer's tokens after the prompt: a control as well."""

    likelihood: Predictor

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[float]:
        return [output.logprob / max(1, output.tokens) for output in self.likelihood(examples, tick)]


@dataclass(frozen=True)
class Person:
    """What somebody said of the comparisons, by their `id`; absent where nothing was said.

    The person's A is the comparison's first answer, whatever order is asked about: a file has no order of its own.
    """

    said: Mapping[str, str]

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        found = [self.said.get(str(example.fields["id"]), ABSENT) for example in examples]
        if found and all(word == ABSENT for word in found):
            raise DataError(
                f"The person's file says nothing of these comparisons: none of its ids is {examples[0].fields['id']!r} "
                "or another of theirs."
            )
        if tick is not None:
            tick(len(examples))
        return [
            Output(TURNED.get(word, word) if example.fields["turned"] else word)
            for example, word in zip(examples, found, strict=True)
        ]
