"""Ways in which no weight moves: worked examples, calibrated labels, chains of thought. Each is a rung of a comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from acclimate.data.examples import Example, Output
from acclimate.data.template import joined
from acclimate.errors import RecipeError
from acclimate.evaluation import chains, shots
from acclimate.evaluation.chains import Chain
from acclimate.evaluation.predictor import Choose, Generate, Length, Predictor, Shots, Tick, no_shots
from acclimate.generation.samplers import Greedy, Sample
from acclimate.models.features import cached_features, encoded
from acclimate.run.learned import Learned
from acclimate.run.parts import Part
from acclimate.run.prepare import Prepared

Pick = Literal["balanced", "random", "nearest"]


@dataclass(frozen=True)
class Prompted:
    """The base model under a prompt. pick, count: the worked examples before each question. tell: facts about answers."""

    prepared: Prepared
    make: Callable[[Shots], Predictor]
    pick: Pick
    count: int
    seed: int
    tell: Callable[[Sequence[Output]], Learned]

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        return self.make(picked(self.prepared, examples, self.pick, self.count, self.seed))(examples, tick)

    def learned(self, outputs: Sequence[Output]) -> Learned:
        """Facts about the prompts and the answers."""
        return {**shots.told(outputs, self.count), **self.tell(outputs)}


def picked(prepared: Prepared, examples: Sequence[Example], pick: Pick, count: int, seed: int) -> Shots:
    """What picks worked examples among the training rows for each of `examples`."""
    rows = [row for row in prepared.parts.train.rows if isinstance(row, Example) and row.target]
    if not count:
        return no_shots
    ask = prepared.template.question
    if pick != "nearest":
        return shots.Fixed(shots.drawn(rows, count, seed, balanced=pick == "balanced"), ask)
    asked = [ask(example) for example in examples]
    return shots.Nearest(
        rows, _vectors(prepared, [ask(row) for row in rows]), dict(zip(asked, _vectors(prepared, asked))), ask, count
    )


def _vectors(prepared: Prepared, texts: Sequence[str]) -> np.ndarray:
    """Mean hidden states of the base model: the embedding that is there without another model."""
    return cached_features(prepared.model, encoded(prepared.codec, texts, prepared.context), prepared.codec.pad)


@dataclass(frozen=True)
class FewShot:
    """Worked examples from the training rows before each question. Brown et al. 2020, arXiv:2005.14165.

    Labels are scored, with length normalisation and contextual calibration where asked for; other tasks are written.
    """

    shots: int = 4  # 0: none
    pick: Pick = "balanced"
    per: Length = "sum"  # what a label's log-probability is divided by
    calibrate: bool = False

    def fit_predictor(self, prepared: Prepared, seed: int) -> Prompted:
        """The predictor. Raises RecipeError for what this task does not have."""
        task = prepared.recipe.task
        _check(self.shots, "shots", 0)
        if not task.labels and (self.calibrate or self.per != "sum"):
            raise RecipeError("few_shot: calibrate and per are about labels, and this task has none.")
        if self.calibrate and self.shots and self.pick == "nearest":
            raise RecipeError(
                "few_shot: calibrate takes off what one prompt alone suggests, and with pick nearest every question has "
                "another; pick balanced or random."
            )

        def make(given: Shots) -> Predictor:
            common = (prepared.model, prepared.codec, prepared.template)
            if not task.labels:
                return Generate(
                    *common, prepared.context, task.max_new_tokens, task.sampler, task.stops, given, seed=seed
                )
            choose = Choose(*common, task.labels, prepared.context, given, self.per)
            return shots.Calibrated(choose) if self.calibrate else choose

        return Prompted(prepared, make, self.pick, self.shots, seed, lambda outputs: {})


@dataclass(frozen=True)
class ChainOfThought:
    """Reasoning before the answer: zero-shot (Kojima 2022), with worked chains (Wei 2022), or a vote (Wang 2023).

    shots: training rows whose column `rationale` holds the reasoning; without, the two prompts of Kojima. chains above 1
    are sampled at `temperature`, and the answer is that of most of them.
    """

    shots: int = 0
    pick: Pick = "balanced"
    chains: int = 1
    temperature: float = 0.7
    max_new_tokens: int = 96

    def fit_predictor(self, prepared: Prepared, seed: int) -> Prompted:
        """The predictor. Raises RecipeError where worked chains are asked for and the rows hold none."""
        _check(self.shots, "shots", 0)
        _check(self.chains, "chains", 1)
        _check(self.max_new_tokens, "max_new_tokens", 1)
        reasoned = replace(prepared, parts=replace(prepared.parts, train=_worked(prepared, bool(self.shots))))
        sampler = Greedy() if self.chains == 1 else Sample(temperature=self.temperature)

        def make(given: Shots) -> Predictor:
            return Chain(
                prepared.model,
                prepared.codec,
                prepared.template,
                prepared.recipe.task.labels,
                prepared.context,
                self.max_new_tokens,
                given,
                self.chains,
                sampler,
                seed,
            )

        return Prompted(reasoned, make, self.pick, self.shots, seed, chains.told)


def _check(value: int, name: str, least: int) -> None:
    if value < least:
        raise RecipeError(f"{name} is {value}; it must be {least} or more.")


def _worked(prepared: Prepared, wanted: bool) -> Part:
    """The training rows whose answers hold their reasoning and end as Wei's do."""
    part = prepared.parts.train
    rows = tuple(
        replace(row, target=f"{joined(str(row.fields['rationale']).strip(), 'The answer is')} {row.target}.")
        for row in part.rows
        if isinstance(row, Example) and row.target and str(row.fields.get("rationale") or "").strip()
    )
    if wanted and not rows:
        raise RecipeError(
            "chain_of_thought: worked chains need a column `rationale` in the training rows; give them one, or shots: 0."
        )
    return replace(part, rows=rows)
