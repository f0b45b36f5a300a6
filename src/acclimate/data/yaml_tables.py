"""YAML tables become frozen dataclasses, strictly: every key must exist and every value must fit, or the line is named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from acclimate.errors import InputError, RecipeError, unknown


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


def overlay(overrides: Sequence[str]) -> yaml.Node:
    """`key=value` overrides as one table, to be laid over a recipe."""
    over: yaml.Node = yaml.MappingNode("tag:yaml.org,2002:map", [])
    for override in overrides:
        over = laid_over(over, _override(override))
    return over


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
    if isinstance(below, yaml.ScalarNode) and isinstance(above, yaml.MappingNode) and not _is_null(below):
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
        choices, weighted = (known[name].metadata.get(kind) for kind in ("choices", "weighted"))
        if weighted:
            given[name] = _weighted(weighted, value, inner, where)
        else:
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


def _weighted(choices: Mapping[str, type], node: yaml.Node, path: str, where: str) -> tuple[tuple[float, Any], ...]:
    """A list of choices, each with a `weight` beside its options (1 without one); one alone needs no list."""
    found = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        table = _named(item) if isinstance(item, yaml.ScalarNode) else item
        given = list(_pairs(table, path, where))
        weight = next(
            (_value(float, value, f"{path}.weight", where) for name, _, value in given if name == "weight"), 1.0
        )
        rest = [(key, value) for name, key, value in given if name != "weight"]
        found.append((weight, _choice(choices, yaml.MappingNode(table.tag, rest, table.start_mark), path, where)))
    return tuple(found)


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
        table = {f.name: _plain(getattr(value, f.name), f.metadata) for f in fields(value)}
        named = next((name for name, cls in (choices or {}).items() if cls is type(value)), None)
        return {"name": named, **table} if named else table
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def _plain(value: Any, metadata: Mapping[str, Any]) -> Any:
    if "weighted" not in metadata:
        return plain(value, metadata.get("choices"))
    return [{**plain(choice, metadata["weighted"]), "weight": weight} for weight, choice in value]
