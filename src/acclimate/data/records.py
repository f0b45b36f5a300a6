"""Files to raw rows, each with its place: .jsonl, .json, .csv, .tsv, the same with .gz, and .parquet."""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

from acclimate.data.lines import decoded, lines
from acclimate.data.problem import Record, Refused
from acclimate.data.strict import broken, decode
from acclimate.data.tables import commas, parquet, tabs
from acclimate.data.tasks import articles
from acclimate.data.values import found, listed

LARGEST = 256 * 2**20  # bytes of a .json file, which has to be read as a whole


def records(path: Path) -> Iterator[Record]:
    """Every raw row of a file with its place, one at a time.

    A row that cannot be had comes as its Refused; a file that cannot be read raises one, whose text goes on after the
    file's name. Raises SourceError for .parquet without pyarrow.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    _there(path)
    if kind not in READERS and (packed or kind != ".parquet"):
        raise Refused("file", f"is not a kind of file that is read; there is: {listed([*READERS, '.parquet'])}.")
    try:
        if kind == ".parquet":
            yield from parquet(path)
            return
        with gzip.open(path) if packed else path.open("rb") as stream:
            yield from READERS[kind](stream, path.name)
    except (EOFError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused("file", f"cannot be read to its end: {reason}.") from None


def _there(path: Path) -> None:
    if os.path.isdir(path):
        raise Refused("file", "is a folder; name one file in it.")
    if os.path.isfile(path):
        return
    if os.path.lexists(path):
        raise Refused("file", "is not a regular file.")
    folder = path.parent
    if not os.path.isdir(folder):
        raise Refused("file", f"does not exist, nor does its folder {str(folder)!r}.")
    names = [name for name in os.listdir(folder) if os.path.isfile(folder / name)]
    close = get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise Refused("file", f"does not exist in {str(folder)!r}.{hint} There is: {listed(names, 10) or 'no file'}.")


def _jsonl(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    for number, line in lines(stream):
        if isinstance(line, Refused):
            yield f"{name}:{number}", line
        elif line.strip():
            yield f"{name}:{number}", _parsed(line.rstrip())


def _parsed(line: str) -> dict[str, Any] | Refused:
    try:
        return _object(decode(line))
    except json.JSONDecodeError as error:
        return Refused("json", broken(error))
    except Refused as refusal:
        return refusal


def _object(value: object) -> dict[str, Any] | Refused:
    if isinstance(value, dict | Refused):
        return value
    return Refused("type", f"is {found(value)}; each row is an object with named columns.")


def _json(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    """A list of objects, {"data": such a list}, SQuAD's articles, or what should have been called .jsonl."""
    raw = stream.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise Refused("too long", f"has over {LARGEST:,} bytes; as .jsonl, one object a line, it can have any length.")
    text = decoded(raw)
    if isinstance(text, Refused):
        bad = ((f"{name}:{number}", line) for number, line in lines(BytesIO(raw)) if isinstance(line, Refused))
        yield next(bad, (f"{name}:1", text))
        return
    try:
        value = decode(text.rstrip()) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _jsonl(BytesIO(raw), name)
        else:
            yield f"{name}:{error.lineno}", Refused("json", broken(error))
        return
    if isinstance(value, dict):
        value = value.get("data", value)
    if isinstance(value, Refused):
        raise value
    if not isinstance(value, list):
        raise Refused("type", f'is {found(value)}; a .json file is a list of objects, or {{"data": such a list}}.')
    placed = (each for index, row in enumerate(value) for each in articles(f"{name}[{index}]", row))
    yield from ((where, _object(row)) for where, row in placed)


READERS: dict[str, Callable[[BufferedIOBase, str], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": commas,
    ".tsv": tabs,
}
