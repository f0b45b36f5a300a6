"""Prompt sets by name or file: the built-in ones, files of the same format, and promptsource's.

A file of ours is a table: task, cluster, columns (our name → further names that data sets have), answer (the column that
holds the right one), labels (how it is spelled, a list for each choice), choices (those of every prompt), and prompts, each
a table of name, input, target, choices and turned.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from acclimate.data.prompts import GIVEN, SEPARATOR, Prompt, PromptSet, names
from acclimate.data.promptsource import document, promptsource
from acclimate.errors import DataError, unknown

FOLDER = Path(__file__).parent.parent / "prompts"
SET = ("task", "cluster", "columns", "answer", "labels", "choices", "prompts")
PROMPT = ("name", "input", "target", "choices", "turned")


def builtin() -> dict[str, Path]:
    """The file of every built-in set, by its name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def prompt_set(name: str) -> PromptSet:
    """A built-in set by its name, or the set of a .yaml file, promptsource's or of our own format.

    Raises DataError that names the file and the prompt.
    """
    sets = builtin()
    path = sets.get(name) or Path(name).expanduser()
    if name not in sets and path.suffix not in (".yaml", ".yml"):
        raise DataError(unknown("set of templates", name, sets) + " A .yaml file is as good.")
    table = document(path)
    if isinstance(table, Mapping) and "templates" in table:
        return promptsource(table, path.name)
    return parsed(table, path.name)


def parsed(table: Any, where: str) -> PromptSet:
    """The set that a file of our format spells. where: the file's name. Raises DataError."""
    _keys(table, SET, where, ("task", "cluster", "columns", "prompts"))
    columns = {_text(name, where, "a column"): _texts(also, where, name) for name, also in _table(table, where).items()}
    labels = tuple(tuple(s.lower() for s in _texts(one, where, "labels")) for one in table.get("labels") or [])
    shared, answer = _choices(table, where), table.get("answer", "")
    if answer and answer not in columns:
        raise DataError(f"{where}: answer: " + unknown("column", str(answer), columns))
    if not isinstance(table["prompts"], list) or not table["prompts"]:
        raise DataError(f"{where}: prompts must be a list that holds something.")
    prompts = tuple(_prompt(each, f"{where}: prompt {i + 1}", shared) for i, each in enumerate(table["prompts"]))
    made = PromptSet(
        _text(table["task"], where, "task"), _text(table["cluster"], where, "cluster"), prompts, columns, answer, labels
    )
    _check(made, where)
    return made


def _prompt(table: Any, where: str, shared: str) -> Prompt:
    _keys(table, PROMPT, where, ("name", "input", "target"))
    name = _text(table["name"], where, "name")
    named = f"{where} ({name})"
    turned = table.get("turned", False)
    if not isinstance(turned, bool):
        raise DataError(f"{named}: turned is true or false, not {turned!r}.")
    asked, wanted = (_text(table[part], named, part) for part in ("input", "target"))
    return Prompt(name, asked, wanted, _choices(table, named) if "choices" in table else shared, turned)


def _check(made: PromptSet, where: str) -> None:
    """Names once, columns that exist, as many choices as labels."""
    seen: set[str] = set()
    for prompt in made.prompts:
        at = f"{where}: prompt {prompt.name!r}"
        if prompt.name in seen:
            raise DataError(f"{at} stands there twice.")
        seen.add(prompt.name)
        known = {*made.columns, *(GIVEN if prompt.choices else ())}
        try:
            asked = names(prompt.choices) | names(prompt.input + SEPARATOR + prompt.target)
        except DataError as error:
            raise DataError(f"{at}: {error}") from None
        for name in sorted(asked - known):
            raise DataError(f"{at}: " + unknown("column", name, known))
        offered = prompt.choices.count(SEPARATOR) + 1
        if made.labels and prompt.choices and offered != len(made.labels):
            raise DataError(f"{at} has {offered} choices for {len(made.labels)} labels; one for each.")


def _keys(table: Any, allowed: Iterable[str], where: str, needed: Iterable[str]) -> None:
    if not isinstance(table, Mapping):
        raise DataError(f"{where} is no table; it needs {', '.join(needed)}.")
    for name in table:
        if name not in allowed:
            raise DataError(f"{where}: " + unknown("key", str(name), allowed))
    for name in needed:
        if name not in table:
            raise DataError(f"{where} has no {name}; it needs {', '.join(needed)}.")


def _table(table: Mapping[str, Any], where: str) -> Mapping[Any, Any]:
    if not isinstance(table["columns"], Mapping):
        raise DataError(f"{where}: columns is a table of our names, each with a list of further ones.")
    return table["columns"]


def _choices(table: Mapping[str, Any], where: str) -> str:
    """A list of words, or Jinja that writes them between |||."""
    given = table.get("choices", "")
    return given if isinstance(given, str) else SEPARATOR.join(_texts(given, where, "choices"))


def _texts(value: Any, where: str, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} must be a list of texts, not {value!r}.")
    return tuple(_text(each, where, name) for each in value)


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} must be text, not {value!r}; quote words such as yes, no and numbers.")
    return value
