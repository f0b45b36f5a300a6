"""Templates that turn a raw row into an Example: input, target and choices in Jinja, filled in the sandbox.

Templates with some turned around: FLAN, Wei et al. 2022, arXiv:2109.01652, section 2.1. `input ||| target` and answer
choices: promptsource, Bach et al. 2022, arXiv:2202.01279, section 3.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from itertools import islice
from typing import Any

from jinja2 import pass_context

from acclimate.data.examples import Example
from acclimate.data.problem import Refused
from acclimate.data.sandbox import Rendered
from acclimate.data.tasks import chosen
from acclimate.data.values import Raw, found
from acclimate.errors import DataError, unknown

SEPARATOR = "|||"
GIVEN = ("answer_choices", "answer")  # names that a template has beside the row's columns
_CUT = "\0"  # stands for the separator while a row is filled in; no row holds one, though it may hold |||


@dataclass(frozen=True)
class Prompt:
    """One way to put a task into words.

    input, target: Jinja over the row's columns and `answer_choices`; target may hold several answers between |||.
    choices: Jinja, the possible answers between |||; "" if the answer is free. turned: it asks for something other than
    the task's answer, such as a text for a given label; training has it, evaluation does not.
    """

    name: str
    input: str
    target: str
    choices: str = ""
    turned: bool = False


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a task.

    columns: our name → the names that data sets have for it, of which the first that a row has is taken.
    answer: our column that holds the right answer, "" if templates find it themselves; they then have it as `answer`.
    labels: how data sets spell each answer, in the order of the choices; without any it is named by place, letter or text.
    """

    task: str
    cluster: str
    prompts: tuple[Prompt, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answer: str = ""
    labels: tuple[tuple[str, ...], ...] = ()

    def render(self, prompt: Prompt, row: Raw, where: str = "") -> Example | None:
        """The row in the words of `prompt`; None where its input or target comes out empty.

        `fields` are the row's, and task, template, cluster, and `choices` where the target is one of several.
        Raises DataError, with the place and the prompt, for a row that lacks a column or an answer.
        """
        try:
            return self._rendered(prompt, row, where)
        except DataError as error:
            said = f"this row {error}" if isinstance(error, Refused) else str(error)
            raise DataError(f"{where or 'a row'}: prompt {prompt.name!r} of {self.task}: {said}") from None

    def draw(self, row: Raw, where: str = "", seed: int = 0) -> tuple[Example, ...]:
        """The row in one prompt, drawn by its hash and the seed; the next one where that has nothing to say; none at all."""
        first = drawn(f"{seed}|{self.task}|{_written(row)}", len(self.prompts))
        turns = (self.render(prompt, row, where) for prompt in self.prompts[first:] + self.prompts[:first])
        return tuple(islice((example for example in turns if example is not None), 1))

    def every(self, row: Raw, where: str = "") -> tuple[Example, ...]:
        """The row in every prompt that is not turned around and has something to say."""
        turns = (self.render(prompt, row, where) for prompt in self.prompts if not prompt.turned)
        return tuple(example for example in turns if example is not None)

    def _rendered(self, prompt: Prompt, row: Raw, where: str) -> Example | None:
        values = self._named(row)
        offered = _parts(prompt.choices, values) if prompt.choices else ()
        values["answer_choices"] = list(offered)
        if self.answer and offered:
            values["answer"] = self._right(values, offered)
        asked, *answers = _parts(prompt.input + SEPARATOR + prompt.target, values)
        answers = [answer for answer in answers if answer]
        if not asked or not answers:
            return None
        kept = {name: value for name, value in row.items() if name != "choices"}
        told = {"task": self.task, "template": prompt.name, "cluster": self.cluster}
        several = {"choices": offered} if len(offered) > 1 and answers[0] in offered else {}
        return Example(
            asked, answers[0], tuple(answers) if len(answers) > 1 else (), {**kept, **told, **several}, where
        )

    def _named(self, row: Raw) -> dict[str, Any]:
        values = deepcopy(dict(row))  # a template may write into a table
        for ours, theirs in self.columns.items():
            name = next((name for name in (ours, *theirs) if name in row), None)
            if name is None:
                raise DataError(unknown("column of the data", ours, row))
            values[ours] = values[name]
        return values

    def _right(self, values: Raw, offered: Sequence[str]) -> str:
        given, listed = values[self.answer], values.get("choices")
        keys = list(listed.get("label", ())) if isinstance(listed, Mapping) else []
        if self.labels:
            spelled = str(given).strip().lower()
            place = next((i for i, names in enumerate(self.labels) if spelled in names), len(offered))
            if place >= len(offered):
                raise DataError(unknown("label", str(given), (names[0] for names in self.labels)))
            return offered[place]
        return offered[keys.index(given)] if given in keys else chosen(given, offered, self.answer)


class _Filled(Rendered):
    """The sandbox as promptsource's templates expect it: white space as written, and filters of their own."""

    def __init__(self, source: str) -> None:
        super().__init__(source.replace(SEPARATOR, _CUT))

    @property
    def environment(self) -> Any:
        """A sandbox. Set once, by the sandbox, before anything is parsed."""
        return self._environment

    @environment.setter
    def environment(self, given: Any) -> None:
        given.trim_blocks = given.lstrip_blocks = False
        given.filters.update({"choice": _choice, "most_frequent": most_frequent, "options": options, "either": either})
        given.globals["zip"] = zip
        given.is_safe_attribute = partial(_safe, given.is_safe_attribute)
        self._environment = given


def _safe(immutable: Callable[[Any, str, Any], bool], owner: Any, name: str, value: Any) -> bool:
    """What the immutable sandbox allows, and `update` of a table, with which templates keep what a loop has found."""
    return immutable(owner, name, value) or (type(owner) is dict and name == "update")


@lru_cache(maxsize=1024)
def _filled(source: str) -> _Filled:
    return _Filled(source)


def _parts(source: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(part.strip() for part in _filled(source)(values).split(_CUT))


def names(source: str) -> frozenset[str]:
    """The columns and other names that a template asks for. Raises DataError if it is not Jinja."""
    filled = _filled(source)
    return frozenset(name for name in filled.names if name not in filled.environment.globals)


def drawn(text: str, count: int) -> int:
    """A number in [0, count) that depends on nothing but `text`."""
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) % count


def _written(row: Raw) -> str:
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)


@pass_context
def _choice(context: Any, items: Sequence[Any]) -> Any:
    """promptsource's random choice, here always the same for the same row."""
    own = {*context.environment.globals, "_budget"}
    row = {name: value for name, value in context.parent.items() if name not in own}
    return items[drawn(f"{_written(row)}|{items}", len(items))]


def most_frequent(items: Iterable[Any]) -> list[Any]:
    """The items that occur most often, each once, in the order they came.

    >>> most_frequent(["b", "a", "b", "c", "a"])
    ['b', 'a']
    """
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


def options(items: Iterable[str]) -> str:
    """FLAN's list of the answers to choose from.

    >>> print(options(["yes", "no"]))
    OPTIONS:
    - yes
    - no
    """
    return "\n- ".join(["OPTIONS:", *items])


def either(items: Sequence[str]) -> str:
    """The answers to choose from as a phrase.

    >>> either(["yes", "no", "maybe"]), either(["yes"])
    ('yes, no or maybe', 'yes')
    """
    return " or ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def labelled(row: Raw, names: Sequence[str], by_name: bool) -> dict[str, Any]:
    """The row with its `label` as its name among `names`, or as its place among them, however it is written.

    >>> labelled({"label": "no"}, ["yes", "no"], False), labelled({"label": 1}, ["yes", "no"], True)
    ({'label': 1}, {'label': 'no'})
    """
    given = row.get("label")
    written = {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    if str(given) not in written:
        raise Refused("label", f"has {found(given)} as label; the source's labels are: {', '.join(names)}.")
    place = written[str(given)]
    return {**row, "label": names[place] if by_name else place}
