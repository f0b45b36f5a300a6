"""JSON as its standard has it: no key twice, no NaN, no endless nesting or numbers."""

import json
from typing import Any

from acclimate.data.problem import Refused
from acclimate.data.values import found


def decode(text: str) -> Any:
    """The value that `text` spells.

    A key given twice or a NaN does not raise: its `Refused` stands in the value's place, so that the row that holds
    it can still be told (`values.sound` finds it). Raises json.JSONDecodeError, or Refused for what has no place.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise Refused("nesting", "nests lists or objects without end; a row is flat or nearly so.") from None
    except ValueError:  # int() of thousands of digits
        raise Refused("number", "has a whole number of thousands of digits; write it as text.") from None


def broken(error: json.JSONDecodeError) -> str:
    """What is wrong with the spelling: "is not JSON: …, at column 7"."""
    what = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
    cut = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string")
    hint = "; was the file cut off?" if cut else "."
    return f"is not JSON: {what}, at column {error.colno}{hint}"


def _object(pairs: list[tuple[str, Any]]) -> Any:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    return Refused("duplicate", f"has {found(twice)} twice in one object; keep the one that is meant.")


def _constant(name: str) -> Refused:
    return Refused("number", f"has {name}, which is no JSON number; write null, or leave the row out.")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
