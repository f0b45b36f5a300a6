"""Which worked examples stand before a question, and what the labels score before no question at all."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from jaxtyping import Float

from acclimate.data.examples import Example, Output
from acclimate.evaluation.predictor import Tick, log_shares

Ask = Callable[[Example], str]  # the text of a question

LEAST = 1e-12  # share of a label; below it a prompt alone says nothing that a division should blow up
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al. 2021, section 5


def drawn(rows: Sequence[Example], count: int, seed: int, balanced: bool = True) -> tuple[Example, ...]:
    """`count` rows of a seeded order; balanced: as many of each answer as can be, so that none is suggested by its number.

    Another `count` of the same seed only adds to these or takes from them. Fewer, where there are fewer rows.
    """
    mixed = Random(seed).sample(list(rows), len(rows))
    if not balanced:
        return tuple(mixed[:count])
    queues: dict[str, list[Example]] = defaultdict(list)
    for row in mixed:
        queues[row.target].append(row)
    turns = [row for places in _columns(list(queues.values())) for row in places]
    return tuple(turns[:count])


def _columns(queues: Sequence[Sequence[Example]]) -> list[list[Example]]:
    longest = max(map(len, queues), default=0)
    return [[queue[i] for queue in queues if i < len(queue)] for i in range(longest)]


@dataclass(frozen=True)
class Fixed:
    """The same shots before every question, but never the question itself."""

    rows: tuple[Example, ...]
    ask: Ask

    def __call__(self, example: Example) -> tuple[Example, ...]:
        asked = self.ask(example)
        return tuple(row for row in self.rows if self.ask(row) != asked)


@dataclass(frozen=True)
class Nearest:
    """The `count` rows whose questions are most alike by cosine, the nearest last. Liu et al. 2022, arXiv:2101.06804."""

    rows: Sequence[Example]
    vectors: Float[np.ndarray, "n d"]  # of their questions
    asked: Mapping[str, Float[np.ndarray, " d"]]  # of every question that may come
    ask: Ask
    count: int

    def __call__(self, example: Example) -> tuple[Example, ...]:
        asked = self.ask(example)
        alike = _unit(self.vectors) @ _unit(self.asked[asked])
        order = np.argsort(-alike, kind="stable")
        near = [self.rows[i] for i in order[: self.count + 1] if self.ask(self.rows[i]) != asked][: self.count]
        return tuple(reversed(near))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


@dataclass(frozen=True)
class Calibrated:
    """Label scores with what the prompt alone makes of them taken off. Zhao et al. 2021, arXiv:2102.09690, section 5.

    p̂ = softmax(diag(p_cf)⁻¹ p), where p_cf is the mean of the labels' shares before content-free inputs.
    """

    choose: Callable[[Sequence[Example], Tick | None], list[Output]]

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        empty = [without_content(examples[0], text) for text in CONTENT_FREE] if examples else []
        bias = mean_shares(self.choose(empty, None))
        return [calibrated(output, bias) for output in self.choose(examples, tick)]


def without_content(example: Example, text: str) -> Example:
    """The example with `text` in the place of everything that it says."""
    fields = {name: text if isinstance(value, str) else value for name, value in example.fields.items()}
    return replace(example, prompt=text if example.prompt else "", fields=fields)


def mean_shares(outputs: Sequence[Output]) -> dict[str, float]:
    """The mean over outputs of each label's share of the labels' probability."""
    shares = [log_shares(output.scores) for output in outputs]
    return {label: float(np.mean([np.exp(share[label]) for share in shares])) for label in shares[0]} if shares else {}


def calibrated(output: Output, bias: Mapping[str, float]) -> Output:
    """The output with each label's share divided by its `bias`; scores are natural logs of shares again."""
    scores = log_shares(
        {label: log - np.log(max(bias[label], LEAST)) for label, log in log_shares(output.scores).items()}
    )
    return replace(output, text=max(scores, key=scores.__getitem__), scores=scores)


def told(outputs: Sequence[Output], asked: int) -> dict[str, dict[str, dict[str, float]]]:
    """How many worked examples fitted before the questions, of how many asked for."""
    if not (asked and outputs):
        return {}
    counts = [output.shots for output in outputs]
    row = {
        "asked": float(asked),
        "fewest": float(min(counts)),
        "mean": float(np.mean(counts)),
        "most": float(max(counts)),
    }
    return {"Worked examples before a question": {"examples": row}}
