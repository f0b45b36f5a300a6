"""C++ beside this file becomes a library for the machine that runs it: built once, in seconds, and kept."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from acclimate.data import sources

COMPILER = "g++"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


def named(*names: str) -> tuple[Path, ...]:
    """Files of this folder."""
    return tuple(Path(__file__).with_name(name) for name in names)


def build(files: Sequence[Path], headers: Sequence[Path] = (), options: Sequence[str] = ()) -> ctypes.CDLL | str:
    """The library of these sources, from the cache or built now; or why there is none, in a few words."""
    compiler = shutil.which(COMPILER)
    if compiler is None:
        return f"{COMPILER} is not installed"
    try:
        return ctypes.CDLL(str(_built(compiler, files, headers, options)))
    except (OSError, subprocess.SubprocessError) as problem:
        return f"{COMPILER} does not build them: {' '.join(str(problem).split())[:200]}"


def _built(compiler: str, files: Sequence[Path], headers: Sequence[Path], options: Sequence[str]) -> Path:
    """The library's file. The key holds the source and what the compiler says of its version and of this processor."""
    told = _run(compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    written = b"".join(file.read_bytes() for file in (*files, *headers))
    key = sha256(written + " ".join((*FLAGS, *options)).encode() + told).hexdigest()[:16]
    path = sources.cache() / "kernels" / f"{key}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            _run(compiler, *FLAGS, *map(str, files), *options, "-o", str(made))
            made.replace(path)
    return path


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
