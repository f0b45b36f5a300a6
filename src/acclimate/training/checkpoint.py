"""What a run leaves on disk is whole or absent, whenever it is killed.

folder/step-00000040/       one checkpoint
    tensors.safetensors         weights, optimizer, random number generators
    state.json                  everything else, plain JSON
    manifest.json               the step, the size and the sha256 of both

Three things carry the guarantee. POSIX rename is atomic: a name shows the old content or the new, never half of it, so
everything is written under a name nobody reads and renamed when complete. A killed process loses nothing that write(2)
accepted; a power cut does, so each file is fsynced before the rename and the directory after it. And bits rot, so the
manifest is checked on reading. safetensors and JSON hold data only: reading a checkpoint runs no code.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from acclimate.errors import TrainingError

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")
_PART, _SAVING, _TRASH = ".part", ".saving-", ".trash-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest was verified. `skipped`: a sentence for each newer one that is broken."""

    path: Path
    step: int
    skipped: tuple[str, ...] = ()


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `folder/step-<step>`, then remove older checkpoints beyond the `keep` newest; return its path.

    When this returns, the checkpoint survives a kill and a power cut; at every moment before, the previous one does.
    The same step saved again replaces the first. Newer steps, left by a run that was resumed from an older one, stay.

    tensors: dense, any shape (none, zero-size, strided), any device; no two may share memory.
    state: plain JSON; what JSON would change on the way (tuples, integer keys, NaN) is refused, floats are exact.
    Raises TrainingError when the disk is full, the folder not writable or the state not JSON; earlier checkpoints stay.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"A checkpoint needs step >= 0 and keep >= 1; got step {step} and keep {keep}.")
    path, saving = folder / f"step-{step:08d}", folder / f"{_SAVING}{step:08d}"
    text = _exact("The state of the run", state)
    needed = sum(tensor.nbytes for tensor in tensors.values()) + len(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fill(saving, step, tensors, text)
        _publish(saving, path)
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, needed, error) from error
    finally:
        shutil.rmtree(saving, ignore_errors=True)  # gone by its rename, unless something failed
    _prune(folder, step, keep)
    return path


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that its manifest proves whole, or None where none was ever saved.

    Unfinished saves are ignored. Raises TrainingError when there are checkpoints and all are broken, since to begin
    anew must be the user's choice.
    """
    skipped: list[str] = []
    for step, path in _found(folder):
        fault = _fault(path, step)
        if not fault:
            return Checkpoint(path, step, tuple(skipped))
        skipped.append(f"Checkpoint {path} is broken: {fault}.")
    if skipped:
        raise TrainingError(f"{' '.join(skipped)} None is left to resume from; begin again in another folder.")
    return None


def load(checkpoint: Checkpoint) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """The step, the tensors (on the CPU) and the state, bit for bit as they were saved.

    Raises TrainingError when a file cannot be read as what it should be, which `newest` rules out but for forgery.
    """
    try:
        tensors: dict[str, Tensor] = load_file(checkpoint.path / TENSORS)
        state: dict[str, Any] = json.loads((checkpoint.path / STATE).read_bytes())
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise TrainingError(f"{checkpoint.path} cannot be read: {error}.") from error
    return checkpoint.step, tensors, state


def clean(folder: Path) -> tuple[Path, ...]:
    """Remove what killed saves and writes left in `folder` (nothing that `newest` would read); return what was removed."""
    left = [path for path in _entries(folder) if path.name.startswith((_SAVING, _TRASH)) or _is_part(path)]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return tuple(left)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Make `content` (text as UTF-8) the content of `path`: afterwards, and for every reader at any time, all or none.

    Raises TrainingError when it cannot be written; what `path` held before is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")  # others may write the same path at this moment
    try:
        part.unlink(missing_ok=True)  # so that the file is new, and no link planted there is followed
        _write(part, data)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, len(data), error) from error
    finally:
        with suppress(OSError):  # gone by its rename, unless something failed
            part.unlink()


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add `row` as one line of JSON to `path`, made if absent. It survives a kill, and after `sync` a power cut.

    Raises TrainingError for a row JSON does not carry exactly (NaN) and for a full disk.
    """
    line = f"{_exact(f'A row of {path}', row)}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _unwritten(path, len(line), error) from error


def truncate_log(path: Path, last_step: int) -> None:
    """Keep, byte for byte, the rows of a JSONL log whose `step` is at most `last_step`; atomic.

    A last line that the kill cut off is dropped. An absent file stays absent.
    Raises TrainingError with file:line for any other line that is no row with a step.
    """
    if not path.exists():
        return
    old = path.read_bytes()
    lines = old.splitlines(keepends=True)
    steps = [_step(line) for line in lines]
    if steps and steps[-1] is None:
        lines, steps = lines[:-1], steps[:-1]
    if None in steps:
        raise TrainingError(f"{path}:{steps.index(None) + 1} is no row with a step; the log was changed or damaged.")
    new = b"".join(line for line, step in zip(lines, steps, strict=True) if step is not None and step <= last_step)
    if new != old:
        atomic_write(path, new)


def sync(path: Path) -> None:
    """Wait until the content of `path` is on the disk itself. A log wants it before the checkpoint that goes with it.

    Raises TrainingError when the disk cannot take it.
    """
    try:
        _sync(path)
    except OSError as error:
        raise _unwritten(path, 0, error) from error


def _fill(saving: Path, step: int, tensors: Mapping[str, Tensor], text: str) -> None:
    if saving.exists():
        shutil.rmtree(saving)
    saving.mkdir()
    _write(saving / STATE, text.encode())
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, saving / TENSORS)
    (saving / TENSORS).chmod((saving / STATE).stat().st_mode)  # safetensors would keep others out, whatever the umask
    _sync(saving / TENSORS)
    manifest = {"step": step, "bytes": _sizes(saving), "sha256": _hashes(saving)}
    _write(saving / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync_folder(saving)


def _publish(saving: Path, path: Path) -> None:
    """Rename into place. A directory cannot be renamed over a full one, so the old one steps aside, still readable."""
    if path.exists():
        aside = path.with_name(f"{path.name}.replaced")
        _discard(aside)
        path.rename(aside)
    saving.rename(path)
    _sync_folder(path.parent)
    _sync_folder(path.parent.parent)


def _prune(folder: Path, step: int, keep: int) -> None:
    kept: set[int] = set()
    try:
        for found, path in _found(folder):
            if found <= step and (found in kept or len(kept) == keep):
                _discard(path)
            elif found <= step:
                kept.add(found)
    except OSError as error:
        raise TrainingError(f"Step {step} is saved, but older checkpoints could not be removed: {error}.") from error


def _discard(path: Path) -> None:
    """Delete a directory that may be killed half deleted: the rename takes its name away first."""
    if path.exists():
        trash = path.with_name(f"{_TRASH}{path.name}")
        if trash.exists():
            shutil.rmtree(trash)
        path.rename(trash)
        shutil.rmtree(trash)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_PART)


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Every (step, path), newest first; of one step the replaced one last."""
    named = [(match, path) for path in _entries(folder) if (match := _NAME.fullmatch(path.name))]
    ordered = sorted(named, key=lambda pair: (-int(pair[0][1]), pair[0][2] or ""))
    return [(int(match[1]), path) for match, path in ordered]


def _fault(path: Path, step: int) -> str:
    """What is wrong with a checkpoint, sizes before contents; empty when it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or manifest.get("step") != step:
            return f"its manifest is not that of step {step}"
        if manifest.get("bytes") != (sizes := _sizes(path)):
            return f"its files hold {sizes} bytes and the manifest says {manifest.get('bytes')}"
        return "" if manifest.get("sha256") == _hashes(path) else "the sha256 of a file is not that of the manifest"
    except (OSError, ValueError, RecursionError) as error:
        return f"{type(error).__name__}, {error}"


def _sizes(path: Path) -> dict[str, int]:
    return {name: (path / name).stat().st_size for name in (TENSORS, STATE)}


def _hashes(path: Path) -> dict[str, str]:
    return {name: _hash(path / name) for name in (TENSORS, STATE)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable; a file system that cannot (EINVAL, some network ones) has to do without."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(number)


def _exact(what: str, values: Mapping[str, Any]) -> str:
    """JSON that reads back equal. Of a float Python writes the shortest digits that give it again (repr)."""
    for key, value in values.items():
        if fault := _change({key: value}):
            possible = "lists, dicts with text keys, finite numbers, text, true, false and null are possible"
            raise TrainingError(f"{what} cannot be saved: {key!r} is {value!r:.200}, and {fault}; {possible}.")
    return json.dumps(dict(values))


def _change(value: object) -> str:
    """What JSON would do to `value`; empty when it reads back equal."""
    try:
        return "" if json.loads(json.dumps(value, allow_nan=False)) == value else "JSON would change it"
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)


def _step(line: bytes) -> int | None:
    """The step of a complete log line; None for anything else."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row["step"] if isinstance(row, dict) and type(row.get("step")) is int else None


def _unwritten(path: Path, needed: int, error: Exception) -> TrainingError:
    room = f"It needs {needed:,} bytes and {_free(path)} are free; what was saved before is untouched"
    return TrainingError(f"{path} could not be written: {error}. {room}.")


def _free(path: Path) -> str:
    """Free bytes where `path` is or would be; a disk that just failed may not even tell."""
    try:
        there = next(folder for folder in path.absolute().parents if folder.exists())
        return f"{shutil.disk_usage(there).free:,}"
    except OSError:
        return "an unknown number"
