"""Some hundreds of files that are wrong, each in its own way, and what must be said about each."""

import gzip
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow
from pyarrow import parquet

from tests import malformed_rows as wrong
from tests.malformed_rows import Draft, jsonl, span


@dataclass(frozen=True)
class Case:
    """A wrong file, how it is to be read, and a piece of the sentence that names what is wrong and where."""

    name: str
    path: Path
    kind: Literal["data", "recipe"]
    must_say: str
    labels: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


LINES = [  # the third of a file, each not JSON or not the JSON of a row
    (b'{"text": "cut', "is not JSON: unterminated string starting, at column 10; was the file cut off?"),
    (b'{"text": "cut"', "is not JSON: expecting ',' delimiter, at column 15; was the file cut off?"),
    (b'{"text":', "is not JSON: expecting value, at column 9; was the file cut off?"),
    (b"{'text': 'single'}", "is not JSON: expecting property name"),
    (b'{"text": "a",}', "is not JSON: "),
    (b'{"text": "a"} {"text": "b"}', "is not JSON: extra data, at column 15"),
    (b'{"text": "a"} // said twice', "is not JSON: extra data"),
    (b'{text: "a"}', "is not JSON: expecting property name"),
    (b'{"text": "a\\x"}', "is not JSON: invalid \\escape"),
    (b'{"text": "tab\there"}', "is not JSON: invalid control character"),
    (b'{"text": "nul\0here"}', "is not JSON: invalid control character"),
    (b"\0" * 20, "is not JSON: expecting value"),
    (b"just words", "is not JSON: expecting value"),
    (b"text,label", "is not JSON: expecting value"),
    (b'{"text": "a", "n": NaN}', "has NaN, which is no JSON number"),
    (b'{"text": "a", "n": [{"m": -Infinity}]}', "has -Infinity, which is no JSON number"),
    (b'{"text": "a", "text": "b"}', "has 'text' twice in one object"),
    (b'{"text": "a", "note": {"k": 1, "k": 2}}', "has 'k' twice in one object"),
    (b'{"text": "a", "n": ' + b"7" * 5000 + b"}", "has a whole number of thousands of digits"),
    (b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests lists or objects without end"),
    (b'{"text": "a", "n": ' + b'{"n": ' * 100_000, "nests lists or objects without end"),
    (b'["text", "a"]', "is a list; each row is an object"),
    (b'"text"', "is 'text'; each row is an object"),
    (b"3", "is the number 3; each row is an object"),
    (b"null", "is null; each row is an object"),
    (b"{}", "has no text; each Document (text) needs one. It has: nothing"),
    (b'{"text": "caf\xe9"}', "is not UTF-8: 0xe9 at byte 59 of the file"),
    (b'{"text": "\xc3"}', "is not UTF-8: 0xc3 at byte 56 of the file"),
    (b'{"text": "\xed\xa0\x80"}', "is not UTF-8: 0xed at byte 56"),
    (b'\xef\xbb\xbf{"text": "a late mark"}', "is not JSON: expecting value"),
]


def spelled() -> Iterator[Draft]:
    """LINES as they are, some also as an element of a list and in a packed file."""
    good = b'{"text": "a good row"}'
    for index, (line, says) in enumerate(LINES):
        yield Draft(f"spelled {index}", ".jsonl", b"\n".join([good, good, line, good]), says, ":3")
    for index, (line, says) in enumerate(LINES[14:18]):
        says = says.partition(" at byte")[0]
        yield Draft(f"element {index}", ".json", b"[" + b",\n".join([good, good, line]) + b"]", says, "[2]")
        yield Draft(f"packed {index}", ".jsonl.gz", gzip.compress(b"\n".join([good, good, line])), says, ":3")


def documents() -> Iterator[Draft]:
    """.json files that are wrong as a whole."""
    good = b'[\n{"text": "a"},\n{"text": "b"}\n]'
    whole = [
        (good[:-1], "is not JSON: expecting ',' delimiter, at column 14; was the file cut off?", ":3"),
        (good[:-5], "is not JSON: unterminated string", ":3"),
        (good.replace(b"},", b"}"), "is not JSON: expecting ',' delimiter", ":3"),
        (good + b"]", "is not JSON: extra data", ":4"),
        (b'{"text": "a"}', "is an object; a .json file is a list of objects", ""),
        (b'{"rows": [{"text": "a"}]}', "is an object; a .json file is a list", ""),
        (b'{"data": {"text": "a"}}', "is an object; a .json file is a list", ""),
        (b'{"data": [], "data": []}', "has 'data' twice", ""),
        (b'"text"', "is 'text'; a .json file is a list", ""),
        (b"[]", "holds no rows", ""),
        (b'[{"text": "a"}, 3]', "is the number 3; each row is an object", "[1]"),
        (b'[{"text": "a"}, {"txt": "b"}]', "has no text; each Document (text) needs one. Did you mean", "[1]"),
        (b'{"text": "a"}\n{"text": 3}\n', "has the number 3 as text", ":2"),
        (good.replace(b"b", b"\xff"), "is not UTF-8: 0xff at byte 27 of the file", ":3"),
        (b'\0\n\0["text"]', "is UTF-16, not UTF-8", ":1"),
        (b"[" * 100_000, "nests lists or objects without end", ""),
        (b"[" + b"9" * 5000 + b"]", "has a whole number of thousands of digits", ""),
    ]
    for index, (content, says, at) in enumerate(whole):
        yield Draft(f"document {index}", ".json", content, says, at)


def encodings() -> Iterator[Draft]:
    """Every kind of file: empty, blank, in UTF-16 with and without its mark, not what its name says."""
    rows = {
        ".jsonl": '{"text": "a"}\n',
        ".json": '[{"text": "a"}]',
        ".csv": "text,id\na,1\n",
        ".tsv": "text\tid\na\t1\n",
    }
    for suffix, text in rows.items():
        yield Draft(f"empty {suffix}", suffix, b"", "holds no rows")
        yield Draft(f"blank {suffix}", suffix, b"\n\r\n\n", "holds no rows")
        for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
            at = "" if suffix in (".csv", ".tsv") else ":1"
            yield Draft(f"{code} {suffix}", suffix, text.encode(code), f"is {code[:6].upper()}, not UTF-8", at)
        packed = gzip.compress(text.encode() * 500)
        yield Draft(f"cut {suffix}.gz", suffix + ".gz", packed[:-9], "cannot be read to its end")
        yield Draft(
            f"plain {suffix}.gz", suffix + ".gz", text.encode(), "cannot be read to its end: Not a gzipped file"
        )
        flipped = packed[:-6] + bytes([packed[-6] ^ 255]) + packed[-5:]
        yield Draft(f"flipped {suffix}.gz", suffix + ".gz", flipped, "cannot be read to its end: CRC check failed")
    for suffix in (".txt", ".xlsx", ".pkl", ".parquet.gz", ""):
        yield Draft(
            f"kind {suffix or 'none'}", suffix, b"anything", "is not a kind of file that is read; there is: .csv"
        )


def tables() -> Iterator[Draft]:
    """.csv and .tsv files: ragged rows, quotes, headers."""
    head = "text,label\n"
    files = [
        (head + "a,b\nc\n", "has 1 fields; the header has 2.", ":3"),
        (head + "a,b\nc,d,e\n", "has 3 fields; the header has 2.", ":3"),
        (head + '"a\nb",c\nd,e\nf\n', "has 1 fields; the header has 2.", ":5"),
        (head + 'a,b\n"c,d\n', "is not CSV, read on to line 3: a quote that opens is never closed", ":3"),
        (head + 'a,b\n"c"d,e\n', "is not CSV, read on to line 3: words follow a closing quote", ":3"),
        (head + "a,b\nc\rd,e\n", "is not CSV, read on to line 3: it has a line break outside quotes", ":3"),
        (
            head + "a,b\n" + "c" * 200_000 + ",d\n",
            "is not CSV, read on to line 3: a field is longer than 131,072",
            ":3",
        ),
        (head + "a,b\n,c\n", "has an empty text", ":3"),
        (head + "a,b\nc,\n", "has an empty label", ":3"),
        (head + "a,b\nc\0,d\n", "has a NUL character in text", ":3"),
        (head, "holds no rows", ""),
        ("text,text\na,b\n", "has columns without a name or two of one name in its header: text, text", ""),
        ("text,\na,b\n", "has columns without a name or two of one name", ""),
        ("text;label\na;b\n", "has ';' between its columns; .csv has commas", ""),
        ("text\tlabel\na\tb\n", "has '\\t' between its columns; .csv has commas", ""),
        ("txt,label\na,b\n", "has no text; each Example (text + label) needs one. Did you mean", ":2"),
        ("colour,shape\na,b\n", "has colour, shape; rows are known by text;", ":2"),
        ("a,b\nc,d\n", "has a, b; rows are known by text;", ":2"),
        ('tokens,tags\n"[""a""]","[""O"""\n', "has a list in a cell that is not JSON", ":2"),
        ('tokens,tags\n"[""a""]","[""O"",""O""]"\n', "has 1 tokens and 2 tags", ":2"),
        ("tokens,tags\na b,O O\n", "has 'a b' as tokens; tokens must be a list", ":2"),
    ]
    for index, (text, says, at) in enumerate(files):
        yield Draft(f"csv {index}", ".csv", text.encode(), says, at)
        if index < 5:
            tabs = text.replace(",", "\t").encode()
            yield Draft(f"tsv {index}", ".tsv", tabs, says, at)
    yield Draft("tsv commas", ".tsv", b"text,label\na,b\n", "has ',' between its columns; .csv has commas, .tsv has")
    yield Draft("csv latin", ".csv", b"text,label\na,b\ncaf\xe9,d\n", "is not UTF-8: 0xe9 at byte 18 of the file", ":3")
    yield Draft("csv header", ".csv", b"t\xe9xt,label\na,b\n", "is not UTF-8: 0xe9 at byte 1 of the file")


def columnar() -> Iterator[Draft]:
    """.parquet files: not parquet, cut, without rows, with values of other types."""
    good = parquet_of({"text": ["a", "b", "c"]})
    yield Draft("parquet words", ".parquet", b"PAR1 it says", "is not parquet that can be read")
    yield Draft("parquet empty", ".parquet", b"", "is not parquet that can be read")
    yield Draft("parquet cut", ".parquet", good[:-20], "is not parquet that can be read")
    yield Draft("parquet json", ".parquet", jsonl({"text": "a"}), "is not parquet that can be read")
    yield Draft("parquet none", ".parquet", parquet_of({"text": pyarrow.array([], "string")}), "holds no rows")
    yield Draft("parquet null", ".parquet", parquet_of({"text": ["a", None]}), "has null as text", "[1]")
    yield Draft("parquet number", ".parquet", parquet_of({"text": [1, 2]}), "has the number 1 as text", "[0]")
    yield Draft("parquet bytes", ".parquet", parquet_of({"text": [b"a"]}), "has a value of type bytes as text", "[0]")
    nan = {"prompt": ["a"], "completion": ["Some words"], "spans": [[span() | {"score": float("nan")}]]}
    yield Draft("parquet nan", ".parquet", parquet_of(nan), "has the number nan as spans[0].score", "[0]")
    yield Draft(
        "parquet typo", ".parquet", parquet_of({"txet": ["a"]}), "has no text; each Document (text) needs", "[0]"
    )


def parquet_of(columns: Mapping[str, Any]) -> bytes:
    """A table's bytes."""
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(columns)), sink)
    return sink.getvalue()


def renamed() -> Iterator[Draft]:
    """Columns and targets that no row has."""
    rows = jsonl({"review": "Lovely.", "stars": "good"}, {"review": "Awful.", "stars": "bad"})
    for columns, target, says, at in [
        ({"text": "reviews", "label": "stars"}, "", "has no column for 'text', as data.columns has it. "
         "No column is called 'reviews'. Did you mean 'review'? There is: review, stars.", ""),
        ({"text": "review", "label": "mark"}, "", "has no column for 'label', as data.columns has it.", ""),
        ({}, "star", "has no star; each Example (star) needs one. Did you mean 'star' where it says 'stars'?", ":1"),
        ({}, "summary", "has no summary; each Example (summary) needs one. It has: review, stars", ":1"),
    ]:  # fmt: skip
        yield Draft(f"renamed {says}", ".jsonl", rows, says, at, columns=columns, target=target)
    near = jsonl({"review": "Lovely.", "lable": "good"})
    says = "has no label. Did you mean 'label' where it says 'lable'?"
    yield Draft("renamed near", ".jsonl", near, says, ":1", columns={"text": "review"})


def drafts() -> Iterator[Draft]:
    """Every case that is a small file."""
    rows = (wrong.lacking, wrong.optional, wrong.mistyped, wrong.blank, wrong.characters, wrong.enormous)
    for kind in (*rows, wrong.mixed, wrong.roles, wrong.turn, wrong.labels, wrong.judged):
        yield from kind()
    for kind in (spelled, documents, encodings, tables, columnar, renamed):
        yield from kind()


def elsewhere(folder: Path) -> Iterator[Case]:
    """What is no file, or no small one."""
    (folder / "train.jsonl").write_bytes(VALID_FILE)
    (folder / "folder.jsonl").mkdir()
    (folder / "dangling.jsonl").symlink_to(folder / "gone.jsonl")
    yield Case("folder", folder / "folder.jsonl", "data", "folder.jsonl is a folder; name one file in it")
    yield Case("absent", folder / "trian.jsonl", "data", "trian.jsonl does not exist in ")
    yield Case("near", folder / "train.json", "data", "Did you mean 'train.jsonl'?")
    yield Case("nowhere", folder / "no" / "train.jsonl", "data", "train.jsonl does not exist, nor does its folder")
    yield Case("dangling", folder / "dangling.jsonl", "data", "dangling.jsonl is not a regular file")
    for suffix in (".jsonl", ".csv", ".tsv"):
        path = folder / f"sparse{suffix}"
        with path.open("wb") as stream:
            stream.write(VALID_FILE)
            stream.truncate(50_000_000)
        yield Case(f"sparse {suffix}", path, "data", f"sparse{suffix}:2 is 49,999,974 bytes long; a line may have")
    words = folder / "words.jsonl.gz"
    with gzip.open(words, "wb", compresslevel=1) as packed:
        packed.write(VALID_FILE + b'{"text": "' + b"word " * 10_000_000 + b'"}\n')
    yield Case("words", words, "data", "words.jsonl.gz:2 is 50,000,013 bytes long; a line may have 16,777,216")


VALID_FILE = b'{"text": "one good row."}\n'


def cases(folder: Path) -> list[Case]:
    """All of them, written into an empty folder."""
    found = list(elsewhere(folder))
    for number, draft in enumerate(drafts()):
        path = folder / f"case{number}{draft.suffix}"
        path.write_bytes(draft.content)
        says = f"{path.name}{draft.at} {draft.says}"
        found.append(Case(draft.name, path, "data", says, draft.labels, draft.columns, draft.target))
    return found
