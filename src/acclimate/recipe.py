"""A YAML file becomes frozen dataclasses, strictly: every key must exist and every value must fit, or the line is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from acclimate.data.yaml_tables import build, compose, laid_over, overlay, plain
from acclimate.errors import RecipeError, unknown
from acclimate.generation.samplers import Beam, Greedy, Sample
from acclimate.methods import METHODS, LoRA
from acclimate.models.precision import Precision
from acclimate.objectives import LM, OBJECTIVES
from acclimate.report.trackers import TRACKERS
from acclimate.rewards import REWARDS
from acclimate.rewards.rollout import Rollouts
from acclimate.tokens.truncate import Policy
from acclimate.training.rates import SCHEDULES, Cosine

SAMPLERS = {"greedy": Greedy, "sample": Sample, "beam": Beam}


@dataclass(frozen=True)
class Limit:
    """The most rows of each part that are used, chosen by hash of the prompt; 0 is all of them."""

    train: int = 0
    dev: int = 200
    test: int = 500


@dataclass(frozen=True)
class Source:
    """One source of a mixture: rows under a set of templates (without one, as they are), or a folder of many tasks."""

    rows: str = ""  # a built-in name or a file
    templates: str = ""  # a built-in set, or a file of templates (promptsource's too)
    natural_instructions: str = ""  # a folder or file of tasks, each a source with its category as cluster
    parts: tuple[str, ...] = ()  # of an instruction that are shown; by default definition, emphasis, positive examples
    name: str = ""
    cluster: str = ""  # tasks that are alike
    columns: Mapping[str, str] = field(default_factory=dict)  # the template's name: the file's
    labels: tuple[str, ...] = ()  # what numbers in the column label mean
    weight: float = 1.0
    cap: int = 0  # it counts as having at most so many rows; 0: all it has


@dataclass(frozen=True)
class Mixture:
    """Many tasks learned at once. Wei et al. 2022, arXiv:2109.01652; Wang et al. 2023, arXiv:2306.04751."""

    sources: tuple[Source, ...]
    hold_out: tuple[str, ...] = ()  # clusters that are never learned, they are the test; each: one at a time, by `run`
    tasks: int = 0  # how many of the others are learned, by hash of their names; 0: all
    templates: int = 0  # how many wordings of a task are learned, by hash of their names; 0: all
    temperature: float = 1.0  # above 1 the sources come nearer to equal shares

    def __post_init__(self) -> None:
        if self.tasks < 0 or self.templates < 0 or not 0 < self.temperature < float("inf"):
            raise RecipeError("mixture needs tasks and templates from 0 on and a temperature above 0.")


@dataclass(frozen=True)
class Sampled:
    """Comparisons of the base model's own completions of the prompts, put in order by `rewards`; equal ones are ties.

    What preference objectives and reward models learn from then. Rafailov et al. 2023, arXiv:2305.18290, section 6.1. They
    are written as `rollouts` has it.
    """

    prompts: int = 256  # of each part, at most
    each: int = 2  # completions of a prompt

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.each < 2:
            raise RecipeError("sampled needs prompts from 1 on, and each from 2 on: what is compared are completions.")


@dataclass(frozen=True)
class Data:
    """What is learned from and what is asked about. One source alone is split by hash of the prompt, 75 : 10 : 15."""

    train: str = ""
    mixture: Mixture | None = None  # in the place of train
    test: str = ""
    dev: str = ""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # ours: theirs, the first that a row has
    target: str = ""  # the column that is the answer, where the rows have no format of their own
    sampled: Sampled | None = None  # the rows are prompts, and what is compared is written by the model itself
    pretrain: str = ""  # ordinary text beside rollouts, where rollouts.ptx gives it a weight
    truncation: Policy = "error"  # of rows longer than max_tokens
    max_tokens: int = 0  # 0 is the model's context
    limit: Limit = Limit()

    def __post_init__(self) -> None:
        if bool(self.train) == bool(self.mixture):
            raise RecipeError("needs train, a built-in name or a file, or else a mixture of several.")
        if self.mixture and self.mixture.hold_out and self.test:
            raise RecipeError("data.test and data.mixture.hold_out both say what is asked about; keep one.")


@dataclass(frozen=True)
class Task:
    """How a row is asked and how the answer is judged. Without labels the model writes its answer.

    With a head it does not write: a linear layer on its hidden states answers, with a label, a number, one of a row's
    choices, a tag for each word, or a span of the context, as the rows ask for.
    """

    template: str = "{{ prompt }}"
    system: str = ""
    chat: bool | None = None  # the tokenizer's chat format; by default where it has one
    labels: tuple[str, ...] = ()
    verbalizer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # label: the words said for it
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 64
    stops: tuple[str, ...] = ()
    sampler: Any = field(default=Greedy(), metadata={"choices": SAMPLERS})
    numbers: bool = False  # the answers are numbers: regression
    head: bool | None = None  # by default where the model cannot write
    pool: Literal["auto", "first", "mean", "last"] = "auto"  # how a text becomes the one vector that a head looks at
    pair: tuple[str, ...] = ()  # two columns that an encoder reads as two texts; by default the usual ones
    class_weights: Literal["none", "balanced"] = "none"  # balanced: every label weighs the same in the loss
    threshold: str = "0.5"  # probability of the last of two labels from which it is chosen; dev: the best one on dev

    def __post_init__(self) -> None:
        if len(self.pair) not in (0, 2):
            raise RecipeError(f"pair must name two columns, not {list(self.pair)}.")
        if self.threshold != "dev" and not 0 < _number(self.threshold) < 1:
            raise RecipeError(f"threshold must be dev or a number between 0 and 1, not {self.threshold!r}.")
        if self.threshold != "0.5" and len(self.labels) != 2:
            raise RecipeError(f"threshold parts two labels; this task has {len(self.labels)}.")
        odd = [label for label in self.verbalizer if label not in self.labels]
        if odd:
            raise RecipeError("verbalizer: " + unknown("label", odd[0], self.labels))
        words = [word.lower() for label in self.labels for word in self.verbalizer.get(label, (label,))]
        if self.verbalizer and (len(set(words)) < len(words) or not all(self.verbalizer.values())):
            raise RecipeError("verbalizer gives every label at least one word, and no two labels the same one.")
        if self.numbers and self.labels:
            raise RecipeError("numbers is true, so the answers are no labels; leave labels out.")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class Training:
    """How long and how fast. A step is one update; its tokens are whole rows, packed up to tokens_per_step."""

    steps: int = 100
    tokens_per_step: int = 2048
    tokens_per_pass: int = 4096  # a step with more is cut; the result is the same, the memory smaller
    rate: float = 5e-4
    schedule: Any = field(default=Cosine(), metadata={"choices": SCHEDULES})
    decay: float = 0.0
    max_norm: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time
    paged: bool = False  # the optimizer's states lie in a file: 8 bytes less a parameter in memory, a slower step
    checkpoint_every: int = 50
    dev_every: int = 0  # steps between losses on the dev part; 0 is four times a run


@dataclass(frozen=True)
class Evaluation:
    """What is measured besides the task's metrics, and how sure the intervals are."""

    seed: int = 0
    draws: int = 2000
    forgetting: bool = True


@dataclass(frozen=True)
class Recipe:
    """One model adapted one way."""

    model: str
    data: Data
    task: Task = Task()
    method: Any = field(default=LoRA(), metadata={"choices": METHODS})
    objective: Any = field(default=LM(), metadata={"choices": OBJECTIVES})
    rollouts: Rollouts = field(default=Rollouts())
    rewards: tuple[tuple[float, Any], ...] = field(default=(), metadata={"weighted": REWARDS})
    judge: tuple[tuple[float, Any], ...] = field(default=(), metadata={"weighted": REWARDS})  # only watched
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    trackers: tuple[str, ...] = ()


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path`, with `key=value` overrides such as `method.rank=16`."""
    return parse(text_of(path), str(path), overrides)


def text_of(path: Path) -> str:
    """What stands in the file. Raises RecipeError, naming its neighbours, where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise RecipeError(unknown("recipe", str(path), near) if near else f"There is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {error}.") from None


def parse(text: str, where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `text`."""
    recipe = build(Recipe, laid_over(compose(text, where), overlay(overrides)), "", where)
    assert isinstance(recipe, Recipe)
    check(recipe, where)
    return recipe


def check(recipe: Recipe, where: str) -> None:
    """Raise RecipeError for a number that no run can have."""
    positive = {
        "training.steps": recipe.training.steps,
        "training.tokens_per_step": recipe.training.tokens_per_step,
        "training.tokens_per_pass": recipe.training.tokens_per_pass,
        "training.checkpoint_every": recipe.training.checkpoint_every,
        "training.max_norm": recipe.training.max_norm,
        "task.max_new_tokens": recipe.task.max_new_tokens,
        "evaluation.draws": recipe.evaluation.draws,
    }
    for name, value in positive.items():
        if not value > 0:
            raise RecipeError(f"{where}: {name} must be above 0, not {value}.")
    if odd := [name for name in recipe.trackers if name not in TRACKERS]:
        raise RecipeError(f"{where}: " + unknown("tracker", odd[0], TRACKERS))
    if not 0 <= recipe.training.rate < float("inf"):
        raise RecipeError(f"{where}: training.rate must be 0 or more and finite, not {recipe.training.rate}.")
    if len(set(recipe.task.labels)) != len(recipe.task.labels) or len(recipe.task.labels) == 1:
        raise RecipeError(f"{where}: task.labels must be at least two different names, not {list(recipe.task.labels)}.")


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that `parse` reads back to an equal recipe."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=120)
