"""Fine-grained rewards: what a model of spans says of each part, earned where the part ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from acclimate.data.examples import Feedback
from acclimate.errors import ModelError, RecipeError, unknown
from acclimate.rewards.model import Heard, asked
from acclimate.rewards.reward import Completion, Mark, Marks
from acclimate.tokens.feedback import SegmentReader


@dataclass(frozen=True)
class Segments:
    """The model in an adapter folder, trained with `objective: spans`: for each part and kind of error +w where there is
    none, −w where there is one, at the part's last character. Wu et al. 2023, arXiv:2306.01693, section 4.2.

    kinds: the weight w of each kind; of those not named 0, without any 1 for all.
    """

    adapter: str = ""
    kinds: Mapping[str, float] = field(default_factory=dict)

    def bind(self, heard: Heard) -> "FineScored":
        """The reward that asks it. ModelError for an adapter of another kind, RecipeError for a kind it does not know."""
        level, shape = heard.facts.get("level"), heard.model.shape()
        if level is None:
            raise ModelError(
                f"{heard.where} has a head of kind {shape.kind}, which judges no parts; train one with objective spans."
            )
        for name in self.kinds:
            if name not in shape.labels:
                raise RecipeError(f"{heard.where}: " + unknown("kind of error", name, shape.labels))
        weights = tuple(self.kinds.get(label, 0.0 if self.kinds else 1.0) for label in shape.labels)
        reader = SegmentReader(heard.codec, heard.template, shape, (), heard.room, level)
        return FineScored(heard, reader, weights)


@dataclass(frozen=True)
class FineScored:
    """A mark at the end of every part."""

    heard: Heard
    reader: SegmentReader
    weights: tuple[float, ...]

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        read = [self.reader(Feedback(asked(c), c.text, (), c.where), answered=False) for c in completions]
        answers = iter(self.heard.answers([reading for each in read for reading in each]))
        return [
            tuple(
                Mark(end, self._score(log_odds))
                for reading in each
                for (_, end), log_odds in zip(reading.spans, next(answers).tolist(), strict=True)
            )
            for each in read
        ]

    def _score(self, log_odds: Sequence[float]) -> float:
        return sum(-weight if odds > 0 else weight for weight, odds in zip(self.weights, log_odds, strict=True))
