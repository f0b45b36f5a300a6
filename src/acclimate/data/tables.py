"""Rows of files that are tables: .csv and .tsv with a header, .parquet."""

import csv
import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from acclimate.data.lines import lines
from acclimate.data.problem import Record, Refused
from acclimate.data.values import listed
from acclimate.errors import SourceError


class _Source:
    """Lines for csv.reader, which outlives a line that cannot be had; `number` is the line it is at."""

    def __init__(self, numbered: Iterator[tuple[int, str | Refused]]) -> None:
        self.lines, self.number = numbered, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self.lines)
        if isinstance(line, Refused):
            raise line
        return line


def _cells(stream: BufferedIOBase, delimiter: str) -> Iterator[tuple[int, list[str] | Refused]]:
    """Each row's first line and its cells; a row may span lines inside quotes."""
    source = _Source(lines(stream))
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        start = source.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield start, Refused("csv", f"is not CSV, read on to line {source.number}: {_plain(error)}.")
        except Refused as refusal:
            yield source.number, refusal
        else:
            if cells is None:
                return
            if cells:
                yield start, cells


def _plain(error: csv.Error) -> str:
    """The csv module's messages as sentences for people."""
    said = str(error)
    if "field limit" in said:
        return f"a field is longer than {csv.field_size_limit():,} characters, or a quote is never closed"
    if "unexpected end" in said:
        return "a quote that opens is never closed"
    if "expected after" in said:
        return "words follow a closing quote; inside quotes, a quote is written twice"
    return "it has a line break outside quotes" if "new-line" in said else said


def commas(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    """Rows of a .csv file: a header, then as many cells in each row."""
    return _csv(stream, name, ",")


def tabs(stream: BufferedIOBase, name: str) -> Iterator[Record]:
    """Rows of a .tsv file."""
    return _csv(stream, name, "\t")


def _csv(stream: BufferedIOBase, name: str, delimiter: str) -> Iterator[Record]:
    rows = _cells(stream, delimiter)
    _, header = next(rows, (0, []))
    if isinstance(header, Refused):
        raise header
    if len(set(header)) < len(header) or not all(column.strip() for column in header):
        raise Refused("csv", f"has columns without a name or two of one name in its header: {listed(header)}.")
    if len(header) == 1 and (other := re.search(r"[;\t|,]", header[0])):
        raise Refused("csv", f"has {other[0]!r} between its columns; .csv has commas, .tsv has tabs.")
    for line, cells in rows:
        if isinstance(cells, list) and len(cells) != len(header):
            cells = Refused("csv", f"has {len(cells)} fields; the header has {len(header)}. Is a quote missing?")
        yield f"{name}:{line}", cells if isinstance(cells, Refused) else dict(zip(header, cells))


def parquet(path: Path) -> Iterator[Record]:
    """Rows of a .parquet file. Raises SourceError without pyarrow."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SourceError(f"{path.name} needs pyarrow to be read: pip install 'acclimate[parquet]'") from None
    try:
        with ParquetFile(path) as file:
            if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
                raise Refused("parquet", f"has two columns of one name: {listed(file.schema_arrow.names)}.")
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            yield from ((f"{path.name}[{index}]", row) for index, row in enumerate(rows))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        said = "".join(letter if letter.isprintable() else " " for letter in str(error)[:200])
        raise Refused("parquet", f"is not parquet that can be read: {said}") from None
