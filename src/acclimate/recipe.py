"""A YAML file becomes frozen dataclasses, strictly: every key must exist and every value must fit, or the line is named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from acclimate.errors import InputError, RecipeError, unknown
from acclimate.generation.samplers import Beam, Greedy, Sample
from acclimate.methods import METHODS, LoRA
from acclimate.models.precision import Precision
from acclimate.objectives import LM, OBJECTIVES
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
class Data:
    """What is learned from and what is asked about. One source alone is split by hash of the prompt, 75 : 10 : 15."""

    train: str
    test: str = ""
    dev: str = ""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # ours: theirs, the first that a row has
    target: str = ""  # the column that is the answer, where the rows have no format of their own
    truncation: Policy = "error"  # of rows longer than max_tokens
    max_tokens: int = 0  # 0 is the model's context
    limit: Limit = Limit()


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


def overlay(overrides: Sequence[str]) -> yaml.Node:
    """`key=value` overrides as one table, to be laid over a recipe."""
    over: yaml.Node = yaml.MappingNode("tag:yaml.org,2002:map", [])
    for override in overrides:
        over = laid_over(over, _override(override))
    return over


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
    if not 0 <= recipe.training.rate < float("inf"):
        raise RecipeError(f"{where}: training.rate must be 0 or more and finite, not {recipe.training.rate}.")
    if len(set(recipe.task.labels)) != len(recipe.task.labels) or len(recipe.task.labels) == 1:
        raise RecipeError(f"{where}: task.labels must be at least two different names, not {list(recipe.task.labels)}.")


def compose(text: str, where: str) -> yaml.Node:
    """The table in `text`, its lines known; no aliases, every key once."""
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise RecipeError(
                    f"{where}:{token.start_mark.line + 1} uses a YAML alias (*{token.value}); write it out."
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line} is not YAML: {getattr(error, 'problem', None) or error}.") from None
    except RecursionError:
        raise RecipeError(f"{where} is nested too deeply for a recipe.") from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{where} is not a recipe: it must be a table with model, data, task, method, training.")
    _once(node, "the recipe", where)
    return node


def _once(node: yaml.Node, path: str, where: str) -> None:
    """Every key of every table stands there once."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{_at(key, where)}: a key of {path} must be a word.")
        if key.value in seen:
            raise RecipeError(f"{_at(key, where)}: {key.value} stands twice in {path}.")
        seen.add(key.value)
        _once(value, key.value, where)


def _override(override: str) -> yaml.Node:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"{override!r} is no override; write key=value, such as training.steps=200.")
    node = _override_value(override, value)
    for part in reversed(key.strip().split(".")):
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(yaml.ScalarNode("tag:yaml.org,2002:str", part), node)])
    assert node is not None
    return node


def _override_value(override: str, value: str) -> yaml.Node:
    if not value.strip() or value.lstrip().startswith(("{{", "{%")):  # a template is text, not a table
        return yaml.ScalarNode("tag:yaml.org,2002:str", value)
    try:
        node = yaml.compose(value, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r} is no override: {getattr(error, 'problem', None) or error}.") from None
    assert node is not None
    return node


def laid_over(below: yaml.Node, above: yaml.Node) -> yaml.Node:
    """`below` with every entry of `above` in its place; another choice by name drops the options of the one below."""
    if isinstance(below, yaml.ScalarNode) and isinstance(above, yaml.MappingNode):
        below = _named(below)
    if not (isinstance(below, yaml.MappingNode) and isinstance(above, yaml.MappingNode)):
        return above
    new = {key.value: (key, value) for key, value in below.value}
    other = {key.value: value.value for key, value in above.value}.get("name")
    if other is not None and "name" in new and new["name"][1].value != other:
        new = {}  # another choice: the options of the one below have no meaning for it
    for key, value in above.value:
        kept = new.get(key.value)
        new[key.value] = (kept[0], laid_over(kept[1], value)) if kept else (key, value)
    return yaml.MappingNode(below.tag, list(new.values()), below.start_mark, below.end_mark)


def _at(node: yaml.Node, where: str) -> str:
    return f"{where}:{node.start_mark.line + 1}" if node.start_mark else "command line"


def _pairs(node: yaml.Node, path: str, where: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{_at(node, where)}: {path or 'the recipe'} must be a table of keys and values.")
    for key, value in node.value:
        yield key.value, key, value


def build(cls: type, node: yaml.Node, path: str, where: str) -> Any:
    """The dataclass `cls` from a table, strictly. Raises RecipeError with the line."""
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    given: dict[str, Any] = {}
    for name, key, value in _pairs(node, path, where):
        if name not in known:
            raise RecipeError(f"{_at(key, where)}: " + unknown(f"option of {path or 'a recipe'}", name, known))
        inner = f"{path}.{name}".lstrip(".")
        choices = known[name].metadata.get("choices")
        given[name] = _choice(choices, value, inner, where) if choices else _value(hints[name], value, inner, where)
    for name, entry in known.items():
        if name not in given and entry.default is MISSING and entry.default_factory is MISSING:
            raise RecipeError(f"{_at(node, where)}: {path or 'the recipe'} needs {name}.")
    try:
        return cls(**given)
    except (ValueError, InputError) as error:
        raise RecipeError(f"{_at(node, where)}: {path}: {error}") from None


def _named(node: yaml.ScalarNode) -> yaml.MappingNode:
    """A bare name as the table that holds nothing else."""
    return yaml.MappingNode(node.tag, [(yaml.ScalarNode(node.tag, "name"), node)], node.start_mark, node.end_mark)


def _choice(choices: Mapping[str, type], node: yaml.Node, path: str, where: str) -> Any:
    """A table whose `name` picks the class; a bare name stands for the table with nothing else."""
    if isinstance(node, yaml.ScalarNode):
        node = _named(node)
    name = next((value for key, _, value in _pairs(node, path, where) if key == "name"), None)
    if name is None:
        raise RecipeError(f"{_at(node, where)}: {path} needs a name; there is: {', '.join(sorted(choices))}.")
    if not isinstance(name, yaml.ScalarNode) or name.value not in choices:
        raise RecipeError(f"{_at(name, where)}: " + unknown(path, str(name.value), choices))
    rest = yaml.MappingNode(node.tag, [pair for pair in node.value if pair[0].value != "name"], node.start_mark)
    return build(choices[name.value], rest, path, where)


def _value(wanted: Any, node: yaml.Node, path: str, where: str) -> Any:
    origin, inner = get_origin(wanted), get_args(wanted)
    if is_dataclass(wanted):
        return build(wanted, node, path, where)  # type: ignore[arg-type]
    if origin in (Union, UnionType):
        return None if _is_null(node) else _value(next(t for t in inner if t is not NoneType), node, path, where)
    if origin is tuple:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(_value(inner[0], item, path, where) for item in items)
    if origin is Mapping:
        return {name: _value(inner[1], value, f"{path}.{name}", where) for name, _, value in _pairs(node, path, where)}
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        raise RecipeError(f"{_at(node, where)}: {path} must be {_words(wanted)}, not {_shown(node)}.")
    return _scalar(wanted, node, path, where)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _scalar(wanted: Any, node: yaml.ScalarNode, path: str, where: str) -> Any:
    """Text is taken as it is written, so that `no` may be a label; numbers and truths only where they are wanted."""
    if get_origin(wanted) is Literal:
        if node.value not in get_args(wanted):
            raise RecipeError(f"{_at(node, where)}: {path}: " + unknown("choice", node.value, get_args(wanted)))
        return node.value
    if wanted is str:
        return node.value
    if wanted is bool and node.value in ("true", "false", "True", "False"):
        return node.value in ("true", "True")
    try:
        if wanted is int and node.style is None:
            return int(node.value)
        if wanted is float and node.style is None:
            return float(node.value)
    except ValueError:
        pass
    raise RecipeError(f"{_at(node, where)}: {path} must be {_words(wanted)}, not {_shown(node)}.")


def _words(wanted: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return f"one of {', '.join(get_args(wanted))}" if get_origin(wanted) is Literal else words.get(wanted, str(wanted))


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or table"


def plain(value: Any, choices: Mapping[str, type] | None = None) -> Any:
    """A recipe (or a part of it) as plain tables, lists and values; every default is written out."""
    if is_dataclass(value) and not isinstance(value, type):
        table = {f.name: plain(getattr(value, f.name), f.metadata.get("choices")) for f in fields(value)}
        named = next((name for name, cls in (choices or {}).items() if cls is type(value)), None)
        return {"name": named, **table} if named else table
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that `parse` reads back to an equal recipe."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=120)
