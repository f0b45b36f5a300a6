"""One named member out of an archive, and files that are whole or absent. No other member is ever written."""

import errno
import gzip
import io
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from acclimate.errors import SourceError

_CHUNK = 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, ValueError, OSError)
_NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def member(archive: Path | bytes, name: str, limit: int) -> bytes:
    """The contents of one regular file of a .zip, .whl, .tar or .tar.gz, given as a path or as its bytes.

    name: its path inside the archive. limit: the most bytes that may be unpacked, in a tar with what lies before it.
    Raises SourceError if the member is absent, a link or a device, leads outside the archive, or is over the limit.
    """
    return b"".join(_stream(archive, name, limit))


def extract(archive: Path | bytes, name: str, to: Path, limit: int) -> None:
    """Write that member to exactly `to`, whole or not at all; its own name decides nothing. Errors as for `member`."""
    with atomically(to) as partial, partial.open("wb") as out:
        for chunk in _stream(archive, name, limit):
            out.write(chunk)


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder at; it becomes `path` once all of it is on the disk.

    If somebody else finished the same folder meanwhile, theirs stays. Raises SourceError if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as scratch:
            partial = Path(scratch) / path.name
            yield partial
            _sync(partial)
            _rename(partial, path)
        _flush(path.parent)
    except OSError as problem:
        if problem.errno in _NOT_OURS:
            raise SourceError(f"{path} cannot be written: {problem.strerror}.") from problem
        raise


def _rename(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sync(path: Path) -> None:
    for inner in sorted(path.iterdir()) if path.is_dir() else ():
        _sync(inner)
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stream(archive: Path | bytes, name: str, limit: int) -> Iterator[bytes]:
    label = archive.name if isinstance(archive, Path) else "the inner archive"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise SourceError(f"{label}: the member {name!r} leads outside the archive.")
    try:
        with archive.open("rb") if isinstance(archive, Path) else io.BytesIO(archive) as file:
            magic = file.read(2)
            file.seek(0)
            read = _from_zip if magic == b"PK" else _from_tar
            for chunk in read(file, name, limit):
                limit -= len(chunk)
                if limit < 0:
                    raise _Over
                yield chunk
    except _Over:
        raise SourceError(f"{label}: reading {name!r} unpacks more than it may; nothing was kept.") from None
    except KeyError:
        raise SourceError(f"{label} has no member {name!r}.") from None
    except _DAMAGED as problem:
        raise SourceError(f"{label} cannot be read as a .zip, .whl, .tar or .tar.gz file: {problem}.") from problem


class _Over(Exception):
    """More bytes than the limit."""


def _from_zip(file: IO[bytes], name: str, limit: int) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(name)
        if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise SourceError(f"{name!r} is not a regular file in its archive; links and devices are refused.")
        with archive.open(info) as source:
            yield from _chunks(source)


def _from_tar(file: IO[bytes], name: str, limit: int) -> Iterator[bytes]:
    plain = gzip.GzipFile(fileobj=file) if file.read(2) == b"\x1f\x8b" else file
    file.seek(0)
    # Stream mode: members are met in order and nothing seeks past the counter.
    with tarfile.open(fileobj=cast(IO[bytes], _Counted(plain, limit)), mode="r|") as archive:
        for info in archive:
            if info.name == name:
                if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
                    raise SourceError(f"{name!r} is not a regular file in its archive; links and devices are refused.")
                yield from _chunks(cast(IO[bytes], archive.extractfile(info)))
                return
    raise KeyError(name)


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


class _Counted:
    """A readable file that gives `left` bytes and the two records a tar may read ahead, and no more."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, left: int) -> None:
        self.file = file
        self.left = left + 2 * tarfile.RECORDSIZE

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _Over
        return data
