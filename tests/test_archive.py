import errno
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.data.archive import atomically, extract, member
from acclimate.errors import SourceError
from tests.packages import tarred, zipped

MEGA = 1 << 20
KINDS = {
    "zip": zipped,
    "tar": lambda members: tarred(members, "w"),
    "tar.gz": tarred,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_member_and_no_other(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]({"a/one.txt": b"first", "a/two.bin": bytes(range(256)) * 9000, "a/three": b""})
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    for archive in (path, data):
        assert member(archive, "a/two.bin", 4 * MEGA) == bytes(range(256)) * 9000
        assert member(archive, "a/one.txt", 4 * MEGA) == b"first"
        assert member(archive, "a/three", 4 * MEGA) == b""
    extract(path, "a/one.txt", tmp_path / "deep" / "here.txt", 4 * MEGA)
    assert (tmp_path / "deep" / "here.txt").read_bytes() == b"first"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["deep", "here.txt", "x.bin"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_in_an_archive(kind: str) -> None:
    inner = tarred({"ratings.txt": b"1\t2"})
    assert member(member(KINDS[kind]({"in.tar.gz": inner}), "in.tar.gz", MEGA), "ratings.txt", MEGA) == b"1\t2"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil", "a\\..\\evil"])
def test_names_that_lead_outside(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="leads outside"):
        extract(KINDS[kind]({name: b"x"}), name, tmp_path / "to", MEGA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_neighbours_are_never_written(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    members = {"../evil": b"x", str(tmp_path / "evil"): b"x", "good": b"y"}
    extract(KINDS[kind](members), "good", home / "good", MEGA)
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == ["home", "home/good"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_member(kind: str) -> None:
    with pytest.raises(SourceError, match="no member 'b'"):
        member(KINDS[kind]({"a": b"x"}), "b", MEGA)


SPECIAL = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_in_a_tar(kind: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        real = tarfile.TarInfo("real")
        real.size = 4
        archive.addfile(real, io.BytesIO(b"real"))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "real" if kind == tarfile.LNKTYPE else str(secret)
        archive.addfile(info)
    with pytest.raises(SourceError, match="not a regular file"):
        extract(out.getvalue(), "link", tmp_path / "to", MEGA)
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(kind: int) -> None:
    out = io.BytesIO()
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(SourceError, match="not a regular file"):
        member(out.getvalue(), "link", MEGA)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_stopped_while_it_unpacks(kind: str, tmp_path: Path) -> None:
    bomb = KINDS[kind]({"bomb": bytes(64 * MEGA), "after": b"x"})
    assert len(bomb) < MEGA
    tracemalloc.start()
    with pytest.raises(SourceError, match="more than it may"):
        extract(bomb, "bomb", tmp_path / "to", MEGA)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MEGA
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_that_lies_before_the_member_in_a_tar() -> None:
    with pytest.raises(SourceError, match="more than it may"):
        member(tarred({"bomb": bytes(16 * MEGA), "after": b"x"}), "after", MEGA)


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_the_last_size_allowed(kind: str) -> None:
    data = KINDS[kind]({"a": bytes(1000)})
    assert len(member(data, "a", 1000)) == 1000
    with pytest.raises(SourceError, match="more than it may"):
        member(data, "a", 999)


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    """A sparse file of 2 bytes may say that it is a terabyte of zeros."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.size = 2
        info.pax_headers = {"GNU.sparse.map": "0,2", "GNU.sparse.size": str(1 << 40), "GNU.sparse.name": "hole"}
        archive.addfile(info, io.BytesIO(b"ab"))
    with pytest.raises(SourceError, match="not a regular file"):
        member(out.getvalue(), "hole", MEGA)


@given(st.dictionaries(st.text("abc/.", min_size=1, max_size=6), st.binary(max_size=600), max_size=5), st.data())
@settings(deadline=None, max_examples=60)
def test_any_members(members: dict[str, bytes], data: st.DataObject) -> None:
    plain = {f"m/{index}": body for index, body in enumerate(members.values())}
    name = data.draw(st.sampled_from(sorted(plain) or ["none"]))
    for pack in KINDS.values():
        archive = pack({**members, **plain})
        if plain:
            assert member(archive, name, MEGA) == plain[name]


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(deadline=None, max_examples=300)
def test_damage_gives_a_sentence(kind: str, data: st.DataObject) -> None:
    good = bytearray(KINDS[kind]({"a": b"some text, " * 30, "b": bytes(range(200))}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(good[: data.draw(st.integers(0, len(good)))])
    with suppress(SourceError):  # and nothing else may come out
        assert len(member(bad, "b", MEGA)) <= MEGA


def test_what_is_no_archive(tmp_path: Path) -> None:
    shifted = zipped({"a": b"x"})[:-6] + b"\xff\xff\0\0\0\0"  # its directory is said to start past its end
    for bad in (b"", b"P", b"plain text", b"PK\x03\x04", b"\x1f\x8b\x08", shifted):
        with pytest.raises(SourceError, match="cannot be read"):
            member(bad, "a", MEGA)
    with pytest.raises(SourceError, match="cannot be read"):
        member(tmp_path / "absent.whl", "a", MEGA)


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    to = tmp_path / "to"
    to.write_text("old")
    with pytest.raises(SourceError):
        extract(zipped({"a": bytes(10)}), "a", to, 9)
    assert [file.name for file in tmp_path.iterdir()] == ["to"]
    assert to.read_text() == "old"


def test_a_folder_appears_at_once(tmp_path: Path) -> None:
    with atomically(tmp_path / "new") as partial:
        (partial / "in").mkdir(parents=True)
        (partial / "in" / "file").write_text("x")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "in" / "file").read_text() == "x"
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_whoever_finishes_a_folder_first_stays(tmp_path: Path) -> None:
    with atomically(tmp_path / "new") as partial:
        partial.mkdir()
        (partial / "file").write_text("second")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text("first")
    assert (tmp_path / "new" / "file").read_text() == "first"


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(SourceError, match="new cannot be written: No space left"),
        atomically(tmp_path / "new") as partial,
    ):
        partial.write_text("x")
    assert list(tmp_path.iterdir()) == []
