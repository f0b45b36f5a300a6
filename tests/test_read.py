"""Files of every kind to the same rows; wrong files to sentences; any bytes to one of the two."""

import gzip
import hashlib
import json
import os
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acclimate.data import records as reading
from acclimate.data.examples import Conversation, Document, Example, Row, Tagged
from acclimate.data.problem import Problem
from acclimate.data.read import Table, problems, read, validate
from acclimate.errors import DataError, SourceError
from tests.malformed import Case, cases, parquet_of
from tests.malformed_rows import VALID, jsonl

FORMS = sorted(VALID)


def rows_of(form: str, count: int = 5) -> list[dict[str, Any]]:
    return [VALID[form](i) for i in range(count)]


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    """As csv or tsv: every cell quoted, lists as JSON."""
    cells = [list(rows[0]), *([v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows)]
    return "".join(delimiter.join('"' + c.replace('"', '""') + '"' for c in line) + "\r\n" for line in cells).encode()


def content(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """The rows as a file of that kind."""
    if suffix.endswith(".gz"):
        return gzip.compress(content(rows, suffix.removesuffix(".gz")), mtime=0)
    if suffix == ".parquet":
        return parquet_of({key: [row[key] for row in rows] for key in rows[0]})
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    return jsonl(*rows) if suffix == ".jsonl" else table(rows, "," if suffix == ".csv" else "\t")


def without_place(row: Row) -> dict[str, Any]:
    return {key: value for key, value in vars(row).items() if key not in ("where", "fields")}


SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_every_format_in_every_file(form: str, suffix: str, tmp_path: Path) -> None:
    path, plain = tmp_path / f"x{suffix}", tmp_path / "plain.jsonl"
    path.write_bytes(content(rows_of(form), suffix))
    plain.write_bytes(jsonl(*rows_of(form)))
    found, wanted = read(path), read(plain)
    assert [without_place(row) for row in found.rows] == [without_place(row) for row in wanted.rows]
    assert (found.kind, found.name, found.dropped) == (wanted.kind, f"x{suffix}", {})
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    places = {".jsonl": ":4", ".csv": ":5", ".tsv": ":5"}
    assert found.rows[3].where == f"x{suffix}{places.get(suffix.removesuffix('.gz'), '[3]')}"


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_marks_line_ends_and_blank_lines(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b\xe2\x80\xa8c"}'
    assert read(written(tmp_path / "x.jsonl", data)).rows == (
        Document("a", "x.jsonl:1"),
        Document("b\u2028c", "x.jsonl:4"),
    )
    assert read(written(tmp_path / "x.json", b'\xef\xbb\xbf[{"text": "a"}]\n')).rows == (Document("a", "x.json[0]"),)
    data = b'\xef\xbb\xbftext\r\n"a\r\nb"\r\n\r\nc\r\n'
    assert read(written(tmp_path / "x.csv", data)).rows == (
        Document("a\r\nb", "x.csv:2"),
        Document("c", "x.csv:5"),
    )


def test_shapes_of_json(tmp_path: Path) -> None:
    for data, place in [(b'{"data": [{"text": "a"}]}', "[0]"), (b'{"text": "a"}\n{"text": "b"}\n', ":1")]:
        assert read(written(tmp_path / "x.json", data)).rows[0] == Document("a", f"x.json{place}")


def test_a_json_file_too_large_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST", 20)
    path = written(tmp_path / "x.json", b'[{"text": "a"}, {"text": "b"}]')
    with pytest.raises(DataError, match=r"^x\.json has over 20 bytes; as \.jsonl, one object a line,"):
        read(path)


def test_columns_are_renamed_and_kept(tmp_path: Path) -> None:
    rows = [{"id": 1, "dialogue": "A: hi", "summary": "a greeting"}, {"document": "B", "summaries": ["b", "c"]}]
    columns = {"document": ["document", "dialogue"], "summary": ("summary", "summaries")}
    found = read(written(tmp_path / "x.jsonl", jsonl(*rows)), columns=columns, target="summary").rows
    assert found == (
        Example("A: hi", "a greeting", (), {"document": "A: hi", "summary": "a greeting", "id": 1}, "x.jsonl:1"),
        Example("B", "b", ("b", "c"), {"document": "B", "summary": ["b", "c"]}, "x.jsonl:2"),
    )


def test_columns_may_swap_and_replace(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", jsonl({"prompt": "a", "completion": "b"}))
    (row,) = read(path, columns={"prompt": "completion", "completion": "prompt"}).rows
    assert isinstance(row, Example)
    assert (row.prompt, row.target) == ("b", "a")
    path = written(tmp_path / "y.jsonl", jsonl({"title": "a", "text": "long", "topic": "b"}))
    (row,) = read(path, columns={"text": "title", "label": "topic"}).rows
    assert row == Example("a", "b", (), {"text": "a", "label": "b"}, "y.jsonl:1")


def test_lists_in_cells_are_renamed_too(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", table([{"words": ["a", "b"], "ner": ["O", "O"]}], ","))
    assert read(path, columns={"tokens": "words", "tags": "ner"}).rows == (Tagged(("a", "b"), ("O", "O"), "x.csv:2"),)


def test_one_row_in_a_hundred_may_be_dropped(tmp_path: Path) -> None:
    good = [{"text": f"Text {i}."} for i in range(197)]
    bad = [{"txt": "a"}, {"text": 3}]
    path = written(tmp_path / "x.jsonl", jsonl(*good[:5], *bad, *good[5:]))
    with pytest.raises(DataError, match=r"^x\.jsonl: 2 of 199 rows cannot be used; up to 1 % would be left out\."):
        read(path)
    path = written(tmp_path / "x.jsonl", jsonl(*good[:5], *bad, *good[5:], {"text": "one more"}))
    found = read(path)
    assert len(found.rows) == 198
    assert found.dropped == {"missing": ("x.jsonl:6",), "type": ("x.jsonl:7",)}


def test_the_error_shows_five_sentences_and_all_totals(tmp_path: Path) -> None:
    rows: list[object] = [{"text": "good"}, *[{"text": ""}] * 4, *[{"txt": "a"}] * 3, 5]
    with pytest.raises(DataError) as caught:
        read(written(tmp_path / "x.jsonl", jsonl(*rows)))
    empty = "has an empty text; some text is needed there."
    assert str(caught.value).splitlines() == [
        "x.jsonl: 8 of 9 rows cannot be used; up to 1 % would be left out. By rule: empty 4, missing 3, type 1.",
        *(f"x.jsonl:{line} {empty}" for line in (2, 3, 4, 5)),
        "x.jsonl:6 has no text; each Document (text) needs one. Did you mean 'text' where it says 'txt'?",
        "…",
    ]


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", jsonl(*rows_of("text", 3)) + b"{ broken")
    assert [row.where for row in read(path, limit=3).rows] == ["x.jsonl:1", "x.jsonl:2", "x.jsonl:3"]
    assert read(path, limit=3).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=r"x\.jsonl:4 is not JSON"):
        read(path)


def test_problems_and_validation_say_all(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.jsonl", jsonl({"text": "a", "label": "good"}, {"text": "b"}, {"text": "c", "label": 7})
    )
    labels = ["bad", "good"]
    found = list(problems(path, labels=labels))
    assert [(problem.where, problem.rule) for problem in found] == [("x.jsonl:2", "missing"), ("x.jsonl:3", "label")]
    assert found[1].message == "x.jsonl:3 label 7 is not one of the task's labels. There is: bad, good."
    checked = validate(path, labels=labels)
    assert (checked.total, checked.kind, checked.rules) == (3, Example, {"missing": 1, "label": 1})
    assert checked.problems == tuple(found)
    many = validate(written(tmp_path / "y.jsonl", b"{\n" * 250))
    assert (many.total, many.kind, many.rules, len(many.problems)) == (250, None, {"json": 250}, 100)
    none = validate(tmp_path / "z.jsonl")
    assert (none.total, none.kind, none.rules) == (0, None, {"file": 1})
    assert none.problems[0].message.startswith("z.jsonl does not exist in ")


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.parquet", parquet_of({"text": ["a"]}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"x\.parquet needs pyarrow to be read: pip install 'acclimate\[parquet\]'"):
        read(path)


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    both = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(both, path)
    with pytest.raises(DataError, match=r"x\.parquet has two columns of one name: text, text"):
        read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", jsonl({"text": "a"}))
    path.chmod(0)
    with pytest.raises(DataError, match=r"^x\.jsonl cannot be read to its end: Permission denied\.$"):
        read(path)


def test_a_line_without_end_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as stream:
        stream.write(jsonl(*rows_of("text", 200)))
        stream.truncate(300_000_000)
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.dropped == {"too long": ("x.jsonl:201",)}
    assert len(found.rows) == 200
    assert peak < 60_000_000  # two pieces of 16 MiB, not 300 MB


def test_wrong_files_are_refused_by_a_sentence(tmp_path: Path) -> None:
    every = cases(tmp_path)
    assert len(every) > 400
    assert len({case.name for case in every}) == len(every)
    wrong = [said for case in every if (said := complaint(case))]
    assert wrong == []


def complaint(case: Case) -> str:
    """What is wrong with how a case was met; "" if nothing."""
    before = case.path.read_bytes()[:1000] if case.path.is_file() else b""
    stamp = case.path.stat() if case.path.exists() else None
    try:
        found = read(case.path, labels=case.labels, columns=case.columns, target=case.target or None)
    except DataError as error:
        said = str(error)
        if len(said) > 5000 or not said.replace("\n", "").isprintable():
            return f"{case.name}: says {len(said)} characters, some of them not to be printed"
        if case.must_say not in said or case.path.name not in said or "Traceback" in said or "Error" in said:
            return f"{case.name}: wanted {case.must_say!r}, got {said!r}"
    else:
        return f"{case.name}: read {found.rows}"
    after = case.path.stat() if case.path.exists() else None
    if (stamp and (stamp.st_mtime_ns, stamp.st_size)) != (after and (after.st_mtime_ns, after.st_size)):
        return f"{case.name}: touched"
    if before and case.path.read_bytes()[:1000] != before:
        return f"{case.name}: changed"
    listed = list(problems(case.path, labels=case.labels, columns=case.columns, target=case.target or None))
    if not any(case.must_say in problem.message for problem in listed):
        return f"{case.name}: problems() says {listed[:3]}"
    return ""


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "cut", "double"]),
        st.integers(0, 10_000),
        st.binary(min_size=1, max_size=4)
        | st.sampled_from([b'"', b"{", b"[", b",", b"\n", b"\r", b"\0", b"\\u", b"1e999"]),
    ),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for edit, at, new in edits:
        at %= len(data) + 1
        rest = {
            "replace": new + data[at + len(new) :],
            "insert": new + data[at:],
            "delete": data[at + len(new) :],
            "cut": b"",
            "double": data[at // 2 :],
        }[edit]
        data = data[:at] + rest
    return data


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(FORMS), edits=EDITS)
def test_any_bytes_are_rows_or_a_sentence(
    suffix: str, form: str, edits: list[tuple[str, int, bytes]], tmp_path: Path
) -> None:
    data = edited(ORIGINALS[form, suffix], edits)
    path = written(tmp_path / f"x{suffix}", data)
    found = attempt(path)
    if isinstance(found, DataError):
        assert str(found).startswith(f"x{suffix}")
        assert any(isinstance(problem, Problem) for problem in problems(path))
    else:
        assert all(isinstance(row, found.kind) and row.where.startswith(f"x{suffix}") for row in found.rows)
    assert path.read_bytes() == data


def attempt(path: Path) -> Table | DataError:
    try:
        return read(path)
    except DataError as error:
        return error


ORIGINALS: Mapping[tuple[str, str], bytes] = {
    (form, suffix): content(rows_of(form, 3), suffix) for form in FORMS for suffix in SUFFIXES
}


def test_lone_conversation_turns_keep_their_place(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", jsonl(*rows_of("messages", 2)))
    assert [(type(row), row.where) for row in read(path).rows] == [
        (Conversation, "x.jsonl:1"),
        (Conversation, "x.jsonl:2"),
    ]
