"""Archives and packages made up for the tests: zip, tar, wheels and sdists of a few bytes."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def zipped(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def wheel(folder: Path, name: str, version: str, members: Mapping[str, bytes]) -> Path:
    """A wheel that pip takes."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": b"",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    path.write_bytes(zipped({**members, **about}))
    return path


def sdist(folder: Path, name: str, version: str, members: Mapping[str, bytes], canary: Path) -> Path:
    """An sdist that pip takes, whose set-up code writes `canary` when it runs."""
    stem = f"{name}-{version}"
    setup = (
        f"open({str(canary)!r}, 'w').close()\nimport setuptools\nsetuptools.setup(name={name!r}, version={version!r})\n"
    )
    about = {
        f"{stem}/setup.py": setup.encode(),
        f"{stem}/PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
    }
    path = folder / f"{stem}.tar.gz"
    path.write_bytes(tarred({**{f"{stem}/{inner}": data for inner, data in members.items()}, **about}))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
