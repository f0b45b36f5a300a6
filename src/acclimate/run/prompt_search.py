"""Prompt search: the model words its instruction anew, and dev decides which wording is best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

from acclimate.data.examples import Example, Message, Output
from acclimate.data.template import Segment, Template, dialogue
from acclimate.errors import RecipeError
from acclimate.evaluation.predictor import Choose, Generate, Predictor, Tick, prompt_row
from acclimate.generation.decode import generate
from acclimate.generation.samplers import Sample
from acclimate.run.dev import on_dev, rounds
from acclimate.run.learned import Learned
from acclimate.run.measure import headline
from acclimate.run.prepare import Prepared

REQUEST = (
    "Write another version of this instruction that means the same, in one sentence.\nInstruction: {}\nAnother version:"
)
WORDS = 48  # tokens that an instruction may have
TURNS = 4  # drawings for each candidate that is wanted, as many come out alike or empty


@dataclass(frozen=True)
class Wording:
    """An instruction, its score on the dev rows it was last tried on (more is better), and how many these were."""

    text: str
    score: float
    rows: int


@dataclass(frozen=True)
class PromptSearch:
    """The instruction before the template that does best on dev. Zhou et al. 2022 (APE), arXiv:2211.01910, section 3.

    The candidates are `instruction`, paraphrases of it that the model itself writes (the paper's resampling; it proposes
    the first ones from worked examples), and none at all. Successive halving: all are tried on a few dev rows, the
    better half on twice as many, until one is left.
    """

    instruction: str = ""
    candidates: int = 8
    rows: int = 100  # of dev, for the last two
    temperature: float = 0.9
    spread: bool = False  # once the choice is made, ask about test under every wording: what no search would have given

    def fit_predictor(self, prepared: Prepared, seed: int) -> "Worded":
        """The predictor. Raises RecipeError without an instruction, and where none but that can be had."""
        if not self.instruction.strip() or self.candidates < 2 or self.rows < 1:
            raise RecipeError(
                "prompt_search needs an instruction to start from, 2 candidates or more, and rows above 0."
            )
        texts = ("", self.instruction.strip(), *self._paraphrases(prepared, seed))
        tried = tuple(dict.fromkeys(texts))[: self.candidates]
        return replace(searched(on_dev(prepared, self.rows), prepared, tried), spread=self.spread)

    def _paraphrases(self, prepared: Prepared, seed: int) -> list[str]:
        codec, chat = prepared.codec, prepared.template.chat
        request = REQUEST.format(self.instruction.strip())
        pieces = dialogue((Message("user", request),), chat, "", reply=True) if chat else (Segment(request, False),)
        row = prompt_row(codec, pieces, prepared.context - WORDS, "the request for other wordings")
        written = generate(
            prepared.model,
            [row.source or row.ids] * (TURNS * self.candidates),
            Sample(temperature=self.temperature, top_p=0.95),
            terminators=codec.terminators,
            max_new=WORDS,
            pad=codec.pad,
            seed=seed,
        )
        return [text for g in written if g.finish == "stop" and (text := sentence(codec.decode(g.ids)))]


def sentence(written: str) -> str:
    """The first line of what was written, without quotes; empty where it could not stand in a template.

    >>> sentence(' "Say what it is."\\nMore'), sentence("Use {{ text }}")
    ('Say what it is.', '')
    """
    line = next(iter(written.strip().splitlines()), "").strip().strip("\"'“”").strip()
    return "" if "{" in line or "}" in line else line


def instructed(template: Template, instruction: str) -> Template:
    """The template below an instruction."""
    return replace(template, prompt=f"{instruction}\n{template.prompt}") if instruction else template


@dataclass(frozen=True)
class Worded:
    """The base model under the best wording. tried: every wording; asked: questions that the search took."""

    prepared: Prepared
    tried: tuple[Wording, ...]  # best first
    asked: int
    spread: bool = False

    @cached_property
    def predictor(self) -> Predictor:
        """What answers under the best wording."""
        return _predictor(self.prepared, self.tried[0].text)

    def __call__(self, examples: Sequence[Example], tick: Tick | None = None) -> list[Output]:
        return self.predictor(examples, tick)

    def learned(self, outputs: Sequence[Output]) -> Learned:
        """Every wording with its score, their spread in the round that all took part in, and the cost.

        With `spread` each one's score on test as well; `outputs` are what the best said to it.
        """
        first = min(wording.rows for wording in self.tried)
        rows: dict[str, Mapping[str, float]] = {
            wording.text or "(no instruction)": {"dev": wording.score, "rows": float(wording.rows)}
            for wording in self.tried
        }
        told = {
            "spread of those that went first": ends([w.score for w in self.tried if w.rows == first]),
            "cost": {"questions": float(self.asked), "wordings": float(len(self.tried))},
        }
        if self.spread:
            test = [self._on_test(outputs, i) for i in range(len(self.tried))]
            rows = {text: {**row, "test": score} for (text, row), score in zip(rows.items(), test, strict=True)}
            told["spread on test"] = {**ends(test), "chosen": test[0]}
        return {"Instructions tried on dev": rows, "The search": told}

    def _on_test(self, outputs: Sequence[Output], place: int) -> float:
        """The score on test under the wording in `place`, whose answers are at hand if it is the first."""
        rows = self.prepared.parts.test.rows
        said = outputs if place == 0 else _predictor(self.prepared, self.tried[place].text)(rows)
        return headline(self.prepared, said, rows)


def ends(scores: Sequence[float]) -> dict[str, float]:
    """Lowest, median and highest.

    >>> ends([0.5, 0.25, 1.0])
    {'lowest': 0.25, 'median': 0.5, 'highest': 1.0}
    """
    return {"lowest": min(scores), "median": median(scores), "highest": max(scores)}


def searched(dev: Prepared, prepared: Prepared, texts: Sequence[str]) -> Worded:
    """Successive halving of instructions on the rows that `dev` has in the place of test."""
    rows, left, done, asked = dev.parts.test.rows, list(texts), {}, 0
    first = 0.5 ** (math.floor(math.log2(len(texts))) - 1)  # so that the last round has all rows
    for count, some in rounds(len(texts), len(rows), keep=0.5, share=first):
        part = rows[:some]
        for text in left[:count]:
            outputs = _predictor(prepared, text)(part)
            done[text] = Wording(text, headline(prepared, outputs, part), len(part))
        asked += count * len(part)
        left = sorted(left[:count], key=lambda text: -done[text].score)[: max(1, count // 2)]
    tried = sorted(done.values(), key=lambda wording: (-wording.rows, -wording.score))
    return Worded(prepared, tuple(tried), asked)


def _predictor(prepared: Prepared, instruction: str) -> Predictor:
    task, template = prepared.recipe.task, instructed(prepared.template, instruction)
    common = (prepared.model, prepared.codec, template)
    if task.labels:
        return Choose(*common, task.labels, prepared.context)
    return Generate(
        *common, prepared.context, task.max_new_tokens, task.sampler, task.stops, seed=prepared.recipe.training.seed
    )
