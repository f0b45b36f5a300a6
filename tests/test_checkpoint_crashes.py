"""A run that is killed, interrupted or out of disk at any moment leaves one whole newest checkpoint (G29, G31)."""

import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acclimate.errors import TrainingError
from acclimate.training.checkpoint import (
    Checkpoint,
    append_line,
    atomic_write,
    clean,
    load,
    newest,
    save,
    truncate_log,
)
from acclimate.training.signals import stopping
from tests.crash.saver import save as save_marked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_marked(folder: Path) -> int:
    """The newest checkpoint exists and every part of it is of one and the same step, which is returned."""
    found = newest(folder)
    assert found is not None
    assert found.skipped == ()
    step, tensors, state = load(found)
    assert state == {"step": step, "rate": 0.1 * step, "order": [step] * 50}
    assert torch.equal(tensors["weight"], torch.full((40, 100), step, dtype=torch.float32))
    assert torch.equal(tensors["moment"], torch.full((2000,), step, dtype=torch.bfloat16))
    assert torch.equal(tensors["random"], torch.full((5000,), step % 251, dtype=torch.uint8))
    assert tensors["nothing"].shape == (3, 0)
    return step


# Kills


@pytest.fixture(scope="module")
def saver() -> Iterator[Callable[..., dict[str, object]]]:
    script = Path(__file__).parent / "crash" / "saver.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(**request: object) -> dict[str, object]:
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.fixture
def ram() -> Iterator[Path]:
    """A folder in memory where there is one: a kill, unlike a power cut, is the same there, and fsync costs nothing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def test_a_hundred_kills_at_random_moments(ram: Path, saver: Callable[..., dict[str, object]]) -> None:
    moments = random.Random(0)
    save_marked(ram, 1)
    last, kills, interrupted = 1, 0, 0
    while kills < 100 or (interrupted < 20 and kills < 500):  # a busy machine may need more to hit 20 saves
        answer = saver(folder=ram, seconds=moments.uniform(0, 0.02))
        kills += 1
        assert answer["killed"]
        assert answer["error"] == ""
        interrupted += any(name.startswith(".") for name in names(ram))
        step = assert_marked(ram)
        assert max(answer["acknowledged"], last) <= step <= max(answer["acknowledged"], last) + 1
        last = step
    assert interrupted >= 20
    assert last > 20


@pytest.mark.parametrize("step", [3, 2], ids=["next", "again"])
def test_a_kill_before_every_line(ram: Path, saver: Callable[..., dict[str, object]], step: int) -> None:
    before = ram / "before"
    save_marked(before, 1)
    save_marked(before, 2)
    kills, leftovers = 0, set()
    while True:
        folder = ram / f"killed-{kills}"
        shutil.copytree(before, folder)
        answer = saver(folder=folder, step=step, line=kills + 1)
        if not answer["killed"]:
            break
        kills += 1
        assert assert_marked(folder) in ({2, step} if answer["acknowledged"] == 0 else {step})
        leftovers |= {name.split("0")[0] for name in names(folder) if name.startswith(".")}
        save_marked(folder, step)  # among the leftovers
        assert assert_marked(folder) == step
        clean(folder)
        assert len(names(folder)) == 2
        assert not [name for name in names(folder) if name.startswith(".")]
    assert answer == {"acknowledged": step, "error": "", "killed": False}
    assert kills > 60
    assert leftovers == {".saving-", ".trash-step-"}


# Full disks and other failures


def test_a_disk_that_fills_at_any_byte(ram: Path, saver: Callable[..., dict[str, object]]) -> None:
    before = ram / "before"
    save_marked(before, 1)
    save_marked(before, 2)
    whole = max(file.stat().st_size for file in (before / "step-00000002").iterdir())
    assert whole > 20_000
    for limit in (*range(0, 700, 50), *range(1000, whole, 2500), whole - 1):
        folder = ram / f"limit-{limit}"
        shutil.copytree(before, folder)
        answer = saver(folder=folder, step=3, limit=limit)
        assert answer["acknowledged"] == 0
        assert f"{folder}/step-00000003 could not be written: " in str(answer["error"])
        assert "File too large" in str(answer["error"])
        assert assert_marked(folder) == 2
        assert names(folder) == ["step-00000001", "step-00000002"]
    assert saver(folder=before, step=3, limit=whole)["acknowledged"] == 3


CALLS = [
    *(
        (os, name)
        for name in ("mkdir", "rename", "replace", "fsync", "chmod", "listdir", "scandir", "unlink", "rmdir", "stat")
    ),
    (io, "open"),
]


def failing(patch: pytest.MonkeyPatch, call: int, number: int, forever: bool) -> list[str]:
    """Let the `call`-th of all calls to the system below save fail, and, if `forever`, every one after; list them."""
    made: list[str] = []

    def wrapped(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def fail_or_do(*positional: object, **named: object) -> object:
            made.append(name)
            if len(made) == call or (forever and len(made) > call):
                raise OSError(number, os.strerror(number))
            return real(*positional, **named)

        return fail_or_do

    for module, name in CALLS:
        patch.setattr(module, name, wrapped(name, getattr(module, name)))
    return made


@pytest.mark.parametrize("forever", [False, True], ids=["once", "forever"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_any_call_to_the_system_may_fail(ram: Path, number: int, forever: bool) -> None:
    before = ram / "before"
    save_marked(before, 1)
    save_marked(before, 2)
    failed: list[str] = []
    for call in range(1, 1000):
        folder = ram / str(call)
        shutil.copytree(before, folder)
        with pytest.MonkeyPatch.context() as patch:
            made = failing(patch, call, number, forever)
            try:
                save_marked(folder, 3)
                error = ""
            except TrainingError as raised:
                error = str(raised)
        if len(made) < call:
            break
        failed.append(made[call - 1])
        step = assert_marked(folder)
        assert step == 3 if not error else step in (2, 3)
        if error:
            assert os.strerror(number) in error
            assert "step-00000003" in error or "Step 3 is saved" in error
        if not forever and "could not be written" in error:
            assert not [name for name in names(folder) if name.startswith(".")]
        shutil.rmtree(folder)
    assert error == ""
    assert step == 3
    assert {"mkdir", "rename", "fsync", "chmod", "listdir", "unlink", "rmdir", "open"} <= set(failed)
    assert failed.count("fsync") >= 5  # three files, their folder, its parent


def test_the_sentence_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, {}, {})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_345))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError) as raised:
        save(tmp_path, 2, {"weight": torch.zeros(500)}, {"a": 1})  # 500 x 4 bytes and '{"a": 1}'
    assert str(raised.value) == (
        f"{tmp_path}/step-00000002 could not be written: [Errno 28] No space left on device. "
        "It needs 2,008 bytes and 12,345 are free; what was saved before is untouched."
    )
    assert names(tmp_path) == ["step-00000001"]


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda: save(tmp_path / "file" / "checkpoints", 1, {}, {}),
        lambda: save(tmp_path / "file", 1, {}, {}),
    ):
        with pytest.raises(TrainingError, match=r"could not be written: .*free; what was saved before is untouched\.$"):
            write()
    assert (tmp_path / "file").read_text() == ""


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = os.fsync, []

    def sync_files_only(number: int) -> None:
        if os.path.isdir(f"/dev/fd/{number}"):
            refused.append(number)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(number)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    save(tmp_path, 1, {}, {})
    assert len(refused) == 3
    assert newest(tmp_path) == Checkpoint(tmp_path / "step-00000001", 1)


def test_a_folder_that_fails_to_sync_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, {}, {})
    real = os.fsync

    def fail_for_folders(number: int) -> None:
        if os.path.isdir(f"/dev/fd/{number}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(number)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(TrainingError, match=r"step-00000002 could not be written: .*Input/output error"):
        save(tmp_path, 2, {}, {})
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
def test_atomic_write_fails_without_a_trace(tmp_path: Path, number: int) -> None:
    path = tmp_path / "report.json"
    failed: list[str] = []
    for call in range(1, 100):
        path.write_text("old")
        with pytest.MonkeyPatch.context() as patch:
            made = failing(patch, call, number, forever=False)
            try:
                atomic_write(path, "new!")
                error = ""
            except TrainingError as raised:
                error = str(raised)
        if len(made) < call:
            break
        failed.append(made[call - 1])
        if error:
            assert f"{path} could not be written: " in error
            assert "needs 4 bytes" in error
        assert path.read_text() == "new!" if not error else path.read_text() in ("old", "new!")
        if failed[-1] == "unlink":
            (tmp_path / f".report.json.{os.getpid()}.part").unlink(missing_ok=True)
        assert names(tmp_path) == ["report.json"]
    assert path.read_text() == "new!"
    assert set(failed) >= {"open", "fsync", "replace", "unlink"}
    with pytest.raises(TrainingError, match="No such file"):
        atomic_write(tmp_path / "absent" / "x", "y")


def test_a_disk_that_fills_within_a_line_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, {"step": 1})  # 12 bytes with the end of the line
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(TrainingError, match=r"log.jsonl could not be written: .*No space left.* needs 25 bytes"):
            append_line(log, {"step": 2, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.read_bytes() == b'{"step": 1}\n{"step":'
    truncate_log(log, 5)
    assert log.read_bytes() == b'{"step": 1}\n'


# Signals during a save


def at_fsync(monkeypatch: pytest.MonkeyPatch, which: int, *signals: int) -> None:
    """Send `signals` to this process at the `which`-th fsync, before it is done."""
    real, calls = os.fsync, []

    def interrupted(number: int) -> None:
        calls.append(number)
        if len(calls) == which:
            for sent in signals:
                signal.raise_signal(sent)
        real(number)

    monkeypatch.setattr(os, "fsync", interrupted)


@pytest.mark.parametrize("which", [1, 2, 3, 4, 5, 6])
def test_a_kind_signal_lets_the_save_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    save_marked(tmp_path, 1)
    at_fsync(monkeypatch, which, signal.SIGTERM)
    with stopping() as stop:
        save_marked(tmp_path, 2)
        assert stop.requested == "SIGTERM"
    assert assert_marked(tmp_path) == 2


@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_a_second_interrupt_breaks_the_save_off_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    save_marked(tmp_path, 1)
    at_fsync(monkeypatch, which, signal.SIGINT, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests ignoring it
    try:
        with pytest.raises(KeyboardInterrupt), stopping():
            save_marked(tmp_path, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == ["step-00000001"]
    assert assert_marked(tmp_path) == 1
