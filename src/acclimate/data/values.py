"""What one value of a row must be: text, a list, a whole number, a finite number, one of the task's labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from typing import Any

from acclimate.data.problem import Refused

Raw = Mapping[str, Any]  # one row as its file holds it
SHORT, LONG = 40, 80  # characters of a value and of a name that a sentence shows
DEEPEST = 64  # lists and objects inside one another; data has a handful, and only an attack has thousands


def found(value: object) -> str:
    """How a sentence names a value, short and safe to print.

    >>> found("a" * 50), found(None), found(2.5), found([1])
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'", 'null', 'the number 2.5', 'a list')
    """
    if isinstance(value, str):
        return repr(value if len(value) <= SHORT else value[:SHORT] + "…")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value!r}" if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"a value of type {type(value).__name__}"


def listed(names: Iterable[str], most: int = 30) -> str:
    """Names as a sentence lists them: sorted, printable, and not without end."""
    printable = (name if name.isprintable() else repr(name)[1:-1] for name in names)
    ordered = sorted(name if len(name) <= LONG else name[:LONG] + "…" for name in printable)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def near(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` may be a slip of the fingers for, whatever its case.

    >>> near("prompt", ["Promt", "completion"])
    'Promt'
    """
    return _near(name[:LONG].lower(), tuple(candidate for candidate in candidates if len(candidate) <= LONG))


@lru_cache(maxsize=1024)  # a file that is wrong is wrong in every row
def _near(name: str, candidates: tuple[str, ...]) -> str | None:
    plain = {candidate.strip().lower(): candidate for candidate in candidates}
    match = get_close_matches(name, plain, n=1, cutoff=0.75)
    return plain[match[0]] if match else None


def needed(thing: Raw, key: str, kind: str, place: str = "") -> Any:
    """What `thing` has under `key`, or a refusal that names what it has instead.

    place: where in the row `thing` is; without one it is the row itself, whose names can be changed.
    """
    if key in thing:
        return thing[key]
    close = near(key, thing)
    there = f"It has: {listed(thing) or 'nothing'}{'' if place else '; data.columns renames'}."
    hint = f"Did you mean {key!r} where it says {close!r}?" if close else there
    raise Refused("missing", f"has no {key}{place}; each {kind} needs one. {hint}")


def spelled(thing: Raw, known: Iterable[str], optional: Iterable[str], place: str = "") -> None:
    """Refuses a name that looks like one of the `optional` ones, which would be lost without a word."""
    extra = thing.keys() - {*known, *optional}
    for name in optional if extra else ():
        close = near(name, extra) if name not in thing else None
        if close and abs(len(close) - len(name)) <= 1:  # inputs, but not input_id
            raise Refused("missing", f"has no {name}{place}. Did you mean {name!r} where it says {close!r}?")


def text(value: object, name: str) -> str:
    """`value` if it is text that says something."""
    if not isinstance(value, str):
        raise Refused("type", f"has {found(value)} as {name}; {name} must be text.")
    if not value.strip():
        raise Refused("empty", f"has an empty {name}; some text is needed there.")
    return value


def items(value: object, name: str) -> Sequence[Any]:
    """`value` if it is a list."""
    if not isinstance(value, list):
        raise Refused("type", f"has {found(value)} as {name}; {name} must be a list.")
    return value


def sequence(value: object, name: str) -> Sequence[Any]:
    """`value` if it is a list that holds something."""
    if not items(value, name):
        raise Refused("empty", f"has an empty list as {name}; it must hold something.")
    return items(value, name)


def texts(value: object, name: str) -> tuple[str, ...]:
    """`value` if it is a list of texts."""
    return tuple(text(item, f"{name}[{index}]") for index, item in enumerate(sequence(value, name)))


def whole(value: object, name: str) -> int:
    """`value` if it is a whole number (and not true or false, and not astronomical)."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**53:
        raise Refused("number", f"has {found(value)} as {name}; {name} must be a whole number.")
    return value


def finite(value: object, name: str) -> float:
    """`value` if it is a number that one can count with."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e300 < value < 1e300:
        raise Refused("number", f"has {found(value)} as {name}; {name} must be a finite number.")
    return float(value)


def label(value: object, labels: Sequence[str], name: str) -> str:
    """The label that `value` names, or counts to from 0 where no label is itself a number.

    >>> label("1", ["negative", "positive"], "label"), label(1, ["3", "1"], "label")
    ('positive', '1')
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Refused("label", f"has {found(value)} as {name}; a label is text, or a whole number that counts from 0.")
    if not labels and isinstance(value, str):
        return text(value, name)
    written = value if isinstance(value, str) else str(whole(value, name))
    if not labels:
        raise Refused("label", f"has the number {written} as {name}; list the task's labels, and it counts into them.")
    if written in labels:
        return written
    if _digits(written) and not any(map(_number, labels)) and int(written) < len(labels):
        return labels[int(written)]
    close = near(written, labels)
    hint = f" Did you mean {close!r}?" if close else ""
    shown = found(value).removeprefix("the number ")
    raise Refused("label", f"label {shown} is not one of the task's labels.{hint} There is: {listed(labels)}.")


def _digits(written: str) -> bool:
    return written.isascii() and written.isdecimal() and len(written) < 10


def _number(written: str) -> bool:
    try:
        return math.isfinite(float(written))
    except ValueError:
        return False


def sound(row: Mapping[str, Any]) -> None:
    """Refuses what no tokenizer or template can take, wherever it is in the row: NUL, half characters, deep nesting.

    What the JSON reader could not express (a key given twice, NaN) stands in the row as its `Refused`.
    """
    for name, value in row.items():
        _writable(name, "a column's name")
        column = listed([name])
        layer = [value]
        for _ in range(DEEPEST):
            layer = [inner for outer in layer for inner in _inside(outer, column)]
            if not layer:
                break
        else:
            raise Refused("nesting", f"nests {column} more than {DEEPEST} deep; a row is flat or nearly so.")


def _inside(value: object, name: str) -> Iterable[Any]:
    if isinstance(value, str):
        _writable(value, name)
    elif isinstance(value, Refused):
        raise value
    elif isinstance(value, Mapping):
        return chain(value, value.values())
    elif isinstance(value, list | tuple):
        return value
    return ()


def _writable(written: str, name: str) -> None:
    if "\0" in written:
        raise Refused("character", f"has a NUL character in {name}; remove it, no text holds one.")
    if not written.isascii():
        try:
            written.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(written[error.start]):04x}"
            raise Refused("character", f"has half a character ({half} without its pair) in {name}.") from None
