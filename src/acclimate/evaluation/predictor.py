"""Whatever answers: a prompted model, a tuned one, a remote one, a person. Evaluation never knows which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

import numpy as np
from torch import nn

from acclimate.data.examples import Conversation, Document, Example, Output
from acclimate.data.template import Segment, Template, segments
from acclimate.errors import DataError
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Beam, Greedy, Sampler
from acclimate.generation.score import score
from acclimate.generation.stops import Stops
from acclimate.tokens.codec import Codec, Encoded
from acclimate.tokens.truncate import cut_prompt

Tick = Callable[[int], None]
Shots = Callable[[Example], tuple[Example, ...]]  # the worked examples that stand before a question
Length = Literal["sum", "tokens", "bytes"]
GREEDY = Greedy()


def no_shots(example: Example) -> tuple[Example, ...]:
    """Zero-shot."""
    return ()


class Predictor(Protocol):
    """Answers examples, in their order. tick(n) hears that n more are done."""

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]: ...


@dataclass(frozen=True)
class Choose:
    """The label that the model finds likeliest after the prompt: argmax Σ log p(label's tokens | prompt).

    Of a label with several words (`Template.words`) the log of their mean probability.

    labels: the same for every example; if empty, an example brings its own in its column `choices`.
    The end of the answer is not counted, so a label is not preferred because the model likes to stop after it.
    shots: of those picked, as many stand before the question as fit, the last ones. per: the sum is divided by the
    label's tokens or UTF-8 bytes, or not at all.
    """

    model: nn.Module
    codec: Codec
    template: Template
    labels: tuple[str, ...]
    context: int  # tokens that fit
    shots: Shots = no_shots
    per: Length = "sum"
    budget: int = 8192

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        offered = [self._words(example) for example in examples]
        asked = [self._rows(example, labels) for example, labels in zip(examples, offered, strict=True)]
        rows = [row for _, listed in asked for row in listed]
        heard = None if tick is None else _every(len(rows) / max(1, len(examples)), tick)
        values = iter(zip(rows, score(self.model, rows, self.codec.pad, budget=self.budget, tick=heard), strict=True))
        return [
            replace(_chosen(words, list(islice(values, len(words))), self.per), shots=shots)
            for words, (shots, _) in zip(offered, asked, strict=True)
        ]

    def _words(self, example: Example) -> list[tuple[str, str]]:
        """(label, word) for every word of every label."""
        labels = self.labels or tuple(example.fields["choices"])
        return [(label, word) for label in labels for word in self.template.spoken(label)]

    def _rows(self, example: Example, words: Sequence[tuple[str, str]]) -> tuple[int, list[Encoded]]:
        """How many shots fit, and a row for each word."""
        shots = self.shots(example)
        while True:
            rows = [self._encoded(example, word, shots) for _, word in words]
            if not shots or all(max(len(row.ids), len(row.source)) <= self.context for row in rows):
                return len(shots), [within(row, self.context, self.codec) for row in rows]
            shots = shots[1:]

    def _encoded(self, example: Example, word: str, shots: Sequence[Example]) -> Encoded:
        pieces = replace(self.template, end="")(example, word, shots)
        return self.codec.encode(_without_end(pieces), example.where)


def _chosen(words: Sequence[tuple[str, str]], scored: Sequence[tuple[Encoded, float]], per: Length) -> Output:
    found = [value / _length(word, row, per) for (_, word), (row, value) in zip(words, scored, strict=True)]
    scores = by_label([label for label, _ in words], found)
    row = scored[0][0]
    prompt = row.source or row.ids[: row.scored.index(True)]
    return Output(max(scores, key=scores.__getitem__), scores, prompt_ids=prompt, truncated=row.truncated)


def by_label(labels: Sequence[str], logs: Sequence[float]) -> dict[str, float]:
    """The log of the mean probability of each label's words, whose logs stand beside the label.

    >>> by_label(["no", "yes", "yes"], [-1.0, -2.0, -2.0])
    {'no': -1.0, 'yes': -2.0}
    """
    found: dict[str, list[float]] = {}
    for label, log in zip(labels, logs, strict=True):
        found.setdefault(label, []).append(log)
    return {
        label: each[0] if len(each) == 1 else float(np.logaddexp.reduce(each) - np.log(len(each)))
        for label, each in found.items()
    }


def log_shares(scores: Mapping[str, float]) -> dict[str, float]:
    """Natural log of each label's share of what all labels have: a log softmax of their scores."""
    whole = np.logaddexp.reduce(list(scores.values()))
    return {label: float(score - whole) for label, score in scores.items()}


def _length(word: str, row: Encoded, per: Length) -> int:
    return {"sum": 1, "tokens": sum(row.scored), "bytes": len(word.encode())}[per]


@dataclass(frozen=True)
class Generate:
    """The text that the model writes after the prompt."""

    model: nn.Module
    codec: Codec
    template: Template
    context: int
    max_new: int
    sampler: Sampler | Beam = GREEDY
    stops: tuple[str, ...] = ()
    shots: Shots = no_shots
    seed: int = 0
    budget: int = 8192

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        room = self.context if self.codec.reads else self.context - self.max_new
        asked = [fitting(self.codec, self.template, example, self.shots(example), room) for example in examples]
        rows = [row for _, row in asked]
        stops = Stops(self.stops, self.codec.decode)
        written = generate(
            self.model,
            [row.source or row.ids for row in rows],
            self.sampler,
            terminators=self.codec.terminators,
            max_new=self.max_new,
            stops=stops,
            pad=self.codec.pad,
            seed=self.seed,
            batch_tokens=self.budget,
            stop_check=None if tick is None else lambda: tick(0),
        )
        if tick is not None:
            tick(len(rows))
        return [
            Output(
                stops.text(g.ids).strip(),
                prompt_ids=row.source or row.ids,
                truncated=row.truncated,
                finish=g.finish,
                shots=shots,
            )
            for g, (shots, row) in zip(written, asked, strict=True)
        ]


def fitting(
    codec: Codec, template: Template, example: Example, shots: Sequence[Example], room: int, lead: str = ""
) -> tuple[int, Encoded]:
    """How many of the last shots fit before the question, and the prompt with them. lead: how the answer begins."""
    while True:
        row = bare(codec, (*template(example, None, shots), Segment(lead, False)), example.where)
        if not shots or max(len(row.ids), len(row.source)) <= room:
            return len(shots), within(row, room, codec)
        shots = shots[1:]


@dataclass(frozen=True)
class Likelihood:
    """Log-probability, tokens and bytes of the answer (of the whole text, for documents), for perplexity."""

    model: nn.Module
    codec: Codec
    template: Template
    context: int
    budget: int = 8192

    def __call__(self, examples: Sequence[Example | Conversation | Document], tick: Tick | None = None) -> list[Output]:
        windows = [(i, row) for i, example in enumerate(examples) for row in self._windows(example)]
        values = score(self.model, [row for _, row in windows], self.codec.pad, budget=self.budget, tick=tick)
        sums, tokens = [0.0] * len(examples), [0] * len(examples)
        for (i, row), value in zip(windows, values, strict=True):
            sums[i] += value
            tokens[i] += sum(row.scored if row.source else row.scored[1:])
        pieces = [segments(e, self.template) for e in examples]
        size = [
            sum(len(text.encode()) for text, scored in parts if scored and text != self.codec.eos_text)
            for parts in pieces
        ]
        return [Output(logprob=s, tokens=t, bytes=b) for s, t, b in zip(sums, tokens, size, strict=True)]

    def _windows(self, example: Example | Conversation | Document) -> list[Encoded]:
        if isinstance(example, Document):
            bare = replace(self.codec, front=(), back=()).encode((Segment(example.text, True),), example.where)
            room = self.context - len(self.codec.front) - len(self.codec.back)
            return [self.codec.dressed(window) for window in windows(bare, room)]
        return [within(self.codec.encode(segments(example, self.template), example.where), self.context, self.codec)]


def windows(row: Encoded, context: int) -> list[Encoded]:
    """A long text in windows that overlap by half: every token is scored once, with at least half a context before it."""
    if len(row.ids) <= context:
        return [row]
    stride = context // 2
    cut = [row._replace(ids=row.ids[:context], scored=row.scored[:context])]
    for end in range(context + stride, len(row.ids) + stride, stride):
        start = min(end, len(row.ids)) - context
        new = min(end, len(row.ids)) - (end - stride)
        flags = (False,) * (context - new) + row.scored[min(end, len(row.ids)) - new : min(end, len(row.ids))]
        cut.append(row._replace(ids=row.ids[start : start + context], scored=flags))
    return cut


def prompt_row(codec: Codec, pieces: Sequence[Segment], room: int, where: str) -> Encoded:
    """The ids that a model is fed to answer: for training, evaluation, chat and serving alike."""
    return within(bare(codec, pieces, where), room, codec)


def bare(codec: Codec, pieces: Sequence[Segment], where: str) -> Encoded:
    """The ids of a prompt, spelled as they are before an answer."""
    row = codec.encode((*pieces, Segment("?", True)), where)
    if row.source:
        return row._replace(ids=(), scored=())
    end = row.scored.index(True)
    return row._replace(ids=row.ids[:end], scored=row.scored[:end])


def _without_end(pieces: Sequence[Segment]) -> list[Segment]:
    """A rendered answer without its end of turn: up to the first scored piece after the prompt."""
    last = max(i for i, piece in enumerate(pieces) if piece.scored)
    first = max(i for i in range(last + 1) if i == 0 or not pieces[i - 1].scored)
    return list(pieces[: first + 1])


def within(row: Encoded, room: int, codec: Codec) -> Encoded:
    """The row itself, or with the oldest part of its prompt left out (counted in `truncated`)."""
    if max(len(row.ids), len(row.source)) <= room:
        return row
    cut = cut_prompt(row, room, codec.kept)
    if cut is None:
        raise DataError(
            f"{row.where or 'a row'} does not fit: {max(0, room):,} tokens are left for it, even without its prompt."
        )
    return cut


def _every(parts: float, tick: Tick) -> Tick:
    heard = [0]

    def hear(n: int) -> None:
        before = int(heard[0] / parts)
        heard[0] += n
        tick(int(heard[0] / parts) - before)

    return hear
