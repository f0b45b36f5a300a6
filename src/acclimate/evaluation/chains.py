"""Chains of thought: the model writes its reasoning, and the answer is read off it; several chains may vote."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from acclimate.data.examples import Example, Output
from acclimate.data.template import Segment, Template, joined, spaced
from acclimate.evaluation.predictor import GREEDY, Shots, Tick, bare, by_label, fitting, no_shots, within
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Sampler
from acclimate.generation.score import score
from acclimate.tokens.codec import Codec, Encoded

STEPS = "Let's think step by step."  # Kojima et al. 2022, arXiv:2205.11916, section 3: the first prompt
THEREFORE = "Therefore, the answer is"  # and the second one
MARK = re.compile(r"\banswer is:?\s*(.+?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)  # how Wei's chains end
END = re.compile(r"\n|\.(?:\s|$)")  # of an answer
TAIL = 32  # tokens that an answer may take after its reasoning
FOUND, MENTIONED, SCORED, MISSING = (
    "stated",
    "mentioned",
    "scored",
    "no answer",
)  # Output.finish: where the answer is from


@dataclass(frozen=True)
class Chain:
    """Reason first, then answer.

    Without shots: Kojima et al. 2022, two prompts: the reasoning after `STEPS`, and then the label that scores best (or,
    without labels, the text that is written) after `THEREFORE`. With shots, whose answers hold their reasoning: Wei et
    al. 2022, arXiv:2201.11903, the answer is what stands after "the answer is".
    chains above 1: self-consistency, Wang et al. 2023, arXiv:2203.11171: the answer that most sampled chains give, of
    equal ones the one that came first. Output.rationale is the first chain that gave it.
    """

    model: nn.Module
    codec: Codec
    template: Template
    labels: tuple[str, ...]
    context: int
    max_new: int = 96
    shots: Shots = no_shots
    chains: int = 1
    sampler: Sampler = GREEDY
    seed: int = 0
    budget: int = 8192

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        given = [example for example in examples for _ in range(self.chains)]
        if any(self.shots(example) for example in examples):
            names = {**{label: label for label in self.labels}, **self._names()}
            outputs = [stated(output, names) for output in self._reasoned(given, "", tick)]
        else:
            outputs = (self._scored if self.labels else self._finished)(given, self._reasoned(given, STEPS, tick))
        if tick is not None:
            tick(len(examples))
        return [vote(outputs[i : i + self.chains]) for i in range(0, len(outputs), self.chains)]

    def _reasoned(self, examples: Sequence[Example], lead: str, tick: Tick | None) -> list[Output]:
        """What is written after each question, which `lead` begins."""
        room = self.context if self.codec.reads else self.context - self.max_new - TAIL
        asked = [fitting(self.codec, self.template, e, self.shots(e), room, self._lead(e, lead)) for e in examples]
        texts = self._write([row for _, row in asked], self.max_new, self.sampler, tick)
        return [
            Output(
                prompt_ids=row.source or row.ids,
                truncated=row.truncated,
                shots=count,
                rationale=joined(lead, text),
            )
            for text, (count, row) in zip(texts, asked, strict=True)
        ]

    def _write(self, rows: Sequence[Encoded], most: int, sampler: Sampler, tick: Tick | None = None) -> list[str]:
        written = generate(
            self.model,
            [row.source or row.ids for row in rows],
            sampler,
            terminators=self.codec.terminators,
            max_new=most,
            pad=self.codec.pad,
            seed=self.seed,
            batch_tokens=self.budget,
            stop_check=None if tick is None else lambda: tick(0),
        )
        return [self.codec.decode(g.ids).strip() for g in written]

    def _lead(self, example: Example, text: str) -> str:
        """`text` as it continues the question; in a chat the answer begins with it."""
        return text if self.template.chat is not None else spaced(self.template.question(example), text)

    def _scored(self, examples: Sequence[Example], reasoned: Sequence[Output]) -> list[Output]:
        """Kojima's second prompt, with the labels in the place of what a parser would have to find."""
        rows = [
            within(
                self.codec.encode((*self._concluding(e, o), Segment(f" {word}", True)), e.where),
                self.context,
                self.codec,
            )
            for e, o in zip(examples, reasoned, strict=True)
            for word in self._names()
        ]
        values = iter(score(self.model, rows, self.codec.pad, budget=self.budget))
        answered, named = [], list(self._names().values())
        for output in reasoned:
            scores = by_label(named, [next(values) for _ in named])
            answered.append(replace(output, text=max(scores, key=scores.__getitem__), scores=scores, finish=SCORED))
        return answered

    def _names(self) -> dict[str, str]:
        """Every word that stands for a label, and the label."""
        return {word: label for label in self.labels for word in self.template.spoken(label)}

    def _finished(self, examples: Sequence[Example], reasoned: Sequence[Output]) -> list[Output]:
        """Kojima's second prompt, and what is written after it up to the end of a line or sentence."""
        room = self.context if self.codec.reads else self.context - TAIL
        rows = [
            within(bare(self.codec, self._concluding(e, o), e.where), room, self.codec)
            for e, o in zip(examples, reasoned, strict=True)
        ]
        texts = [END.split(text, maxsplit=1)[0].strip() for text in self._write(rows, TAIL, GREEDY)]
        return [
            replace(output, text=text, finish=FOUND if text else MISSING)
            for output, text in zip(reasoned, texts, strict=True)
        ]

    def _concluding(self, example: Example, reasoned: Output) -> tuple[Segment, ...]:
        lead = self._lead(example, f"{reasoned.rationale}\n{THEREFORE}")
        return (*self.template(example), Segment(lead, False))


def stated(reasoned: Output, names: Mapping[str, str]) -> Output:
    """The answer that the reasoning states; of labels, else the last one that it mentions; none is an empty text.

    names: every word that stands for a label, and the label; empty where any text may be the answer.

    >>> stated(Output(rationale="2 and 3 make 5. The answer is 5."), {}).text
    '5'
    >>> stated(Output(rationale="It broke, so it is bad."), {"bad": "negative", "good": "positive"}).text
    'negative'
    """
    marks = MARK.findall(reasoned.rationale)
    last = marks[-1].strip() if marks else ""
    if not names:
        return replace(reasoned, text=last, finish=FOUND if last else MISSING)
    for text, finish in ((last, FOUND), (reasoned.rationale, MENTIONED)):
        if word := _mentioned(text, tuple(names)):
            return replace(reasoned, text=names[word], finish=finish)
    return replace(reasoned, text="", finish=MISSING)


def _mentioned(text: str, words: Sequence[str]) -> str:
    """The word that stands last in the text, alone; of words that contain each other the longer."""
    ordered = sorted(words, key=len, reverse=True)
    found = re.findall("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in ordered), text, re.IGNORECASE)
    known = {word.lower(): word for word in words}
    return known[found[-1].lower()] if found else ""


def vote(outputs: Sequence[Output]) -> Output:
    """The answer that most outputs give; scores are then the logs of the shares of the votes.

    Those without an answer do not vote.
    """
    if len(outputs) == 1:
        return outputs[0]
    counts = Counter(output.text for output in outputs if output.finish != MISSING)
    if not counts:
        return outputs[0]
    winner = max(counts, key=lambda text: counts[text])  # of equal ones the first met
    whole = sum(counts.values())
    first = next(output for output in outputs if output.text == winner)
    return replace(first, scores={text: math.log(count / whole) for text, count in counts.items()})


def told(outputs: Sequence[Output]) -> dict[str, dict[str, dict[str, float]]]:
    """Where the answers were found."""
    counts = Counter(output.finish for output in outputs)
    return {"Where the answers stood": {"answers": {name: float(count) for name, count in sorted(counts.items())}}}
