"""What task heads answer: labels, numbers, choices, tags, spans of a text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acclimate.data.examples import Example, Output, Tagged
from acclimate.evaluation.predictor import Tick
from acclimate.metrics.metric import Metric
from acclimate.metrics.spans import entities
from acclimate.models.collate import collate_readings
from acclimate.models.heads import TaskModel
from acclimate.models.modes import evaluating
from acclimate.tokens.reading import Reader, Reading, choices

OUTSIDE = "O"  # the tag of a word that the model never saw


@dataclass(frozen=True)
class AskHead:
    """The answers of one head.

    threshold: of two labels the last is chosen where its probability is at least this. longest: tokens of an extracted
    answer. budget: padded tokens that go through the model at once.
    """

    model: TaskModel
    reader: Reader
    task: str = "default"
    threshold: float = 0.5
    longest: int = 64
    budget: int = 8192

    def __call__(self, examples: Sequence[Example | Tagged], tick: Tick | None = None) -> list[Output]:
        readings = [self.reader(example, answered=False) for example in examples]
        last = {end - 1 for end in accumulate(map(len, readings))}
        heard = (lambda part: tick(len(last & {*part}))) if tick else None
        answers = iter(self._asked([reading for windows in readings for reading in windows], heard))
        return [
            self._output(example, windows, list(islice(answers, len(windows))))
            for example, windows in zip(examples, readings, strict=True)
        ]

    @torch.no_grad()
    def _asked(self, readings: Sequence[Reading], heard: Callable[[Sequence[int]], None] | None) -> list[Tensor]:
        """(n, k) for each reading, in their order; each is what it would be alone. heard: which are done."""
        found: dict[int, Tensor] = {}
        with evaluating(self.model):
            for part in _batches(readings, self.budget):
                rows = [readings[i] for i in part]
                batch = collate_readings(self.model, rows, self.reader.codec.pad, task=self.task)
                answers = self.model(batch).cpu().double()
                found |= zip(part, answers.split([sum(map(len, row.places)) for row in rows]), strict=True)
                if heard is not None:
                    heard(part)
        return [found[i] for i in range(len(readings))]

    def _output(self, example: Example | Tagged, windows: Sequence[Reading], answers: Sequence[Tensor]) -> Output:
        answer = self._answer(example, windows, answers)
        return replace(answer, prompt_ids=windows[0].ids, truncated=windows[0].truncated)

    def _answer(self, example: Example | Tagged, windows: Sequence[Reading], answers: Sequence[Tensor]) -> Output:
        shape, answer = self.reader.shape, answers[0]
        if shape.kind == "regress":
            value = shape.center + shape.scale * float(answer)
            return Output(f"{value:.4g}", value=value)
        if isinstance(example, Tagged):
            tags = tagged(len(example.tokens), windows[0], answer.argmax(-1).tolist(), shape.labels)
            return Output(named(example.tokens, tags), tags=tags)
        if shape.kind == "extract":
            logprob, text = best_answer(example, windows, answers, self.longest, shape.empty)
            return Output(text, logprob=logprob)
        offered = shape.labels or choices(example)
        scores = dict(zip(offered, answer.flatten().log_softmax(0).tolist(), strict=True))
        return Output(chosen(scores, self.threshold if shape.labels else 0.5), scores)


def _batches(readings: Sequence[Reading], budget: int) -> Iterator[list[int]]:
    """The numbers of readings of falling length, in batches whose padded size stays within the budget."""
    part: list[int] = []
    widest = pieces = 0
    for i in sorted(range(len(readings)), key=lambda i: -max(map(len, readings[i].pieces))):
        widest = widest or max(map(len, readings[i].pieces))
        if part and widest * (pieces + len(readings[i].pieces)) > budget:
            yield part
            part, pieces, widest = [], 0, max(map(len, readings[i].pieces))
        part.append(i)
        pieces += len(readings[i].pieces)
    if part:
        yield part


def chosen(scores: dict[str, float], threshold: float) -> str:
    """The likeliest label; of two, the last where its probability is at least `threshold`.

    >>> chosen({"no": -0.5, "yes": -0.9}, 0.5), chosen({"no": -0.5, "yes": -0.9}, 0.4)
    ('no', 'yes')
    """
    if len(scores) == 2 and threshold != 0.5:
        first, last = scores
        return last if np.exp(scores[last]) >= threshold else first
    return max(scores, key=scores.__getitem__)


def best_threshold(outputs: Sequence[Output], examples: Sequence[Example], metric: Metric) -> float:
    """Where two labels part so that `metric` is best on these examples: half way between two probabilities, or 0.5.

    Of several that are as good the one nearest to 0.5. Lipton et al. 2014, arXiv:1402.1892, for F1.
    """
    chances = [float(np.exp(list(output.scores.values())[1])) for output in outputs]
    ordered = np.unique(chances)
    candidates = [0.5, *((ordered[1:] + ordered[:-1]) / 2).tolist()]

    def worth(threshold: float) -> tuple[float, float]:
        cut = (Output(chosen(dict(output.scores), threshold)) for output in outputs)
        rows = np.array([metric.row(output, example) for output, example in zip(cut, examples, strict=True)])
        value = float(metric.combine(rows))
        return (value if metric.higher_is_better else -value, -abs(threshold - 0.5))

    return float(max(candidates, key=worth))


def tagged(count: int, reading: Reading, answers: Sequence[int], labels: Sequence[str]) -> tuple[str, ...]:
    """A tag for each of `count` words; one that left no token, or was cut off, is outside."""
    said = {word: labels[answer] for (word, _), answer in zip(reading.spans, answers, strict=True)}
    return tuple(said.get(word, OUTSIDE) for word in range(count))


def named(words: Sequence[str], tags: Sequence[str]) -> str:
    """The entities as a person reads them.

    >>> named(("Ada", "in", "New", "York"), ("B-person", "O", "B-place", "I-place"))
    'Ada (person), New York (place)'
    """
    return ", ".join(f"{' '.join(words[e.start : e.end])} ({e.type})" for e in entities(tags))


def best_answer(
    example: Example, windows: Sequence[Reading], answers: Sequence[Tensor], longest: int, empty: bool
) -> tuple[float, str]:
    """(log-probability, text) of the likeliest span of any window; "" where that is an answer and likelier.

    Each window is normalised with "not here" among its places, so that windows compare (Clark & Gardner 2018, 4.3).
    """
    best, nowhere = (-float("inf"), 0, (0, 0)), float("inf")
    for number, logits in enumerate(answers):
        start, end = logits.log_softmax(0).unbind(1)
        nowhere = min(nowhere, float(start[0] + end[0]))
        value, span = best_span(start[1:], end[1:], longest)
        best = max(best, (value, -number, span))
    if empty and nowhere > best[0]:
        return nowhere, ""
    value, number, (i, j) = best
    spans = windows[-number].spans
    return value, str(example.fields["context"])[spans[i + 1][0] : spans[j + 1][1]].strip()


def best_span(start: Float[Tensor, " n"], end: Float[Tensor, " n"], longest: int) -> tuple[float, tuple[int, int]]:
    """The best start[i] + end[j] with i ≤ j < i + longest, and (i, j)."""
    best = (-float("inf"), (0, 0))
    for length in range(min(longest, len(start))):
        sums = start[: len(start) - length] + end[length:]
        i = int(sums.argmax())
        best = max(best, (float(sums[i]), (i, i + length)), key=lambda found: found[0])
    return best
