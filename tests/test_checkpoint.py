"""What is saved comes back exactly, or its damage is named. Kills and full disks: test_checkpoint_crashes.py."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import TrainingError
from acclimate.training.checkpoint import (
    Checkpoint,
    append_line,
    atomic_write,
    clean,
    load,
    newest,
    save,
    sync,
    truncate_log,
)

DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def small(folder: Path, step: int, **tensors: torch.Tensor) -> Path:
    return save(folder, step, tensors or {"weight": torch.tensor([float(step)])}, {"step": step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# What is saved comes back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (6, 16), dtype=torch.uint8)
    tensor = raw.view(dtype)  # includes NaN payloads, infinities, denormals
    small(tmp_path, 3, weight=tensor, strided=tensor.t()[1:, ::2], scalar=tensor[0, 0].clone(), empty=tensor[:0])
    step, tensors, state = load(newest(tmp_path))  # type: ignore[arg-type]
    assert (step, state) == (3, {"step": 3})
    for name, expected in {"weight": tensor, "strided": tensor.t()[1:, ::2], "scalar": tensor[0, 0]}.items():
        assert tensors[name].dtype == dtype
        assert tensors[name].shape == expected.shape
        assert bits(tensors[name]) == bits(expected)
    assert tensors["empty"].shape == (0, *tensor.shape[1:])


def test_parameters_and_no_tensors_at_all_can_be_saved(tmp_path: Path) -> None:
    small(tmp_path, 1, weight=torch.nn.Parameter(torch.tensor([1.5])))
    _, tensors, _ = load(newest(tmp_path))  # type: ignore[arg-type]
    assert tensors["weight"].tolist() == [1.5]
    assert not tensors["weight"].requires_grad
    save(tmp_path, 2, {}, {})
    assert load(newest(tmp_path)) == (2, {}, {})  # type: ignore[arg-type]


def test_a_random_generator_continues_where_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(7)
    small(tmp_path, 1, random=torch.get_rng_state())
    expected = torch.rand(5)
    torch.manual_seed(8)
    torch.set_rng_state(load(newest(tmp_path))[1]["random"])  # type: ignore[arg-type]
    assert torch.equal(torch.rand(5), expected)


def test_training_on_loaded_tensors_leaves_the_checkpoint_alone(tmp_path: Path) -> None:
    small(tmp_path, 1, weight=torch.ones(1000))
    found = newest(tmp_path)
    assert found is not None
    load(found)[1]["weight"].add_(1)
    assert newest(tmp_path) == found
    assert load(found)[1]["weight"].sum() == 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(state=st.dictionaries(st.text(), JSON, max_size=5))
def test_any_json_state_comes_back_exactly(state: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), 1, {}, state)
        found = newest(Path(folder))
        assert found is not None
        assert repr(load(found)[2]) == repr(state)  # repr tells -0.0 from 0.0 and 1 from True


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, [{"deep": -math.inf}], (1, 2), {"a": (1,)}, {1: 2}, {1, 2}, b"x", torch.ones(1)],
    ids=repr,
)
def test_state_that_json_would_change_is_refused_by_name(tmp_path: Path, value: object) -> None:
    small(tmp_path, 1)
    with pytest.raises(TrainingError, match=r"The state of the run cannot be saved: 'loss' is .* possible\."):
        save(tmp_path, 2, {}, {"rate": 0.1, "loss": value})
    assert names(tmp_path) == ["step-00000001"]


def test_tensors_that_share_memory_are_refused_without_a_trace(tmp_path: Path) -> None:
    small(tmp_path, 1)
    tied = torch.ones(3)
    with pytest.raises(RuntimeError, match="share memory"):
        small(tmp_path, 2, embedding=tied, head=tied)
    assert names(tmp_path) == ["step-00000001"]


def test_nonsense_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step -1"):
        small(tmp_path, -1)
    with pytest.raises(ValueError, match="keep 0"):
        save(tmp_path, 1, {}, {}, keep=0)
    assert names(tmp_path) == []


def test_the_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = small(tmp_path, 1)
    finally:
        os.umask(old)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


# Which checkpoint is the newest, and which stay


def test_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert (newest(tmp_path / "absent"), clean(tmp_path / "absent")) == (None, ())
    (tmp_path / ".saving-00000009").mkdir()
    assert newest(tmp_path) is None


def test_the_newest_by_number_of_those_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    paths = [small(folder, step) for step in (0, 9, 10, 99_999_999, 100_000_000)]
    assert [path.name for path in paths[:2]] == ["step-00000000", "step-00000009"]
    assert names(folder) == ["step-100000000", "step-99999999"]
    assert newest(folder) == Checkpoint(paths[-1], 100_000_000)
    save(folder, 100_000_001, {}, {}, keep=1)
    assert names(folder) == ["step-100000001"]


def test_the_same_step_again_replaces_and_newer_ones_of_an_abandoned_future_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        small(tmp_path, step)
    save(tmp_path, 20, {}, {"again": True})
    assert names(tmp_path) == ["step-00000020", "step-00000030"]
    assert json.loads((tmp_path / "step-00000020" / "state.json").read_text()) == {"again": True}


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{" * 3)


def nest_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


def list_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"step": 20}')


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose_state(path: Path) -> None:
    (path / "state.json").unlink()


def shorten(path: Path) -> None:
    os.truncate(path / "tensors.safetensors", 20)


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(data)


def rename_from_older(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000010"), path)


def be_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("no folder")


DAMAGES: dict[Callable[[Path], None], str] = {
    damage_manifest: "JSONDecodeError",
    nest_manifest: "RecursionError",
    list_manifest: "not that of step 20",
    empty_manifest: "the manifest says None",
    lose_manifest: "FileNotFoundError.*manifest.json",
    lose_state: "FileNotFoundError.*state.json",
    shorten: "hold {'tensors.safetensors': 20",
    flip_a_bit: "sha256",
    rename_from_older: "not that of step 20",
    be_a_file: "NotADirectoryError",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_broken_checkpoint_is_skipped_and_reported(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    small(tmp_path, 10)
    damage(small(tmp_path, 20))
    found = newest(tmp_path)
    assert found is not None
    assert found.path == tmp_path / "step-00000010"
    assert load(found)[1]["weight"].tolist() == [10.0]
    assert len(found.skipped) == 1
    shutil.rmtree(tmp_path / "step-00000010")
    with pytest.raises(TrainingError, match=f"step-00000020 is broken: .*{DAMAGES[damage]}.*None is left"):
        newest(tmp_path)


@pytest.mark.parametrize("damage", [damage_manifest, lose_state, flip_a_bit], ids=lambda damage: damage.__name__)
def test_a_run_resumed_before_a_broken_checkpoint_writes_it_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    small(tmp_path, 10)
    damage(small(tmp_path, 20))
    small(tmp_path, 20)
    assert newest(tmp_path) == Checkpoint(tmp_path / "step-00000020", 20)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_forged_checkpoint_runs_no_code(tmp_path: Path, name: str) -> None:
    found = Checkpoint(small(tmp_path, 1), 1)
    (found.path / name).write_text(f"cbuiltins\nopen\n(S'{tmp_path}/executed'\nS'w'\ntR.")  # a pickle of open(…, "w")
    with pytest.raises(TrainingError, match=r"step-00000001 cannot be read: "):
        load(found)
    assert names(tmp_path) == ["step-00000001"]


# Leftovers


def test_clean_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    small(tmp_path, 1)
    (tmp_path / "step-00000001.replaced").mkdir()
    (tmp_path / ".lock").write_text("1")
    (tmp_path / "notes.part").write_text("mine")
    for name in (".saving-00000002", ".trash-step-00000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{")
    (tmp_path / ".report.json.part").write_text("{")
    removed = clean(tmp_path)
    assert [path.name for path in removed] == [".report.json.part", ".saving-00000002", ".trash-step-00000000"]
    assert names(tmp_path) == [".lock", "notes.part", "step-00000001", "step-00000001.replaced"]


# Single files


def test_atomic_write_replaces_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    atomic_write(path, "größer\r\n")
    assert path.read_bytes() == "größer\r\n".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    atomic_write(path, b"")
    assert path.read_bytes() == b""
    assert names(tmp_path) == ["report.html"]


def test_atomic_write_follows_no_link_planted_in_its_way(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".report.json.{os.getpid()}.part").symlink_to(victim)
    atomic_write(tmp_path / "report.json", "{}")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "report.json").is_symlink()


def test_processes_that_write_one_path_at_once_leave_the_whole_of_one(tmp_path: Path) -> None:
    write = (
        "import sys; from pathlib import Path; from acclimate.training.checkpoint import atomic_write\n"
        "for _ in range(150): atomic_write(Path(sys.argv[1]), sys.argv[2] * 100000)"
    )
    path = tmp_path / "kept.json"
    writers = [subprocess.Popen([sys.executable, "-c", write, str(path), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen | {path.read_text()} <= {"a" * 100000, "b" * 100000}
    assert names(tmp_path) == ["kept.json"]


# The log


def test_the_log_grows_by_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    append_line(log, {"step": 1, "loss": 0.1 + 0.2, "metrics": {}})
    append_line(log, {"step": 1, "dev": {"loss": 1e-300}, "text": "a\nb\u2028"})
    sync(log)
    lines = log.read_bytes().split(b"\n")
    assert lines[0] == b'{"step": 1, "loss": 0.30000000000000004, "metrics": {}}'
    assert json.loads(lines[1]) == {"step": 1, "dev": {"loss": 1e-300}, "text": "a\nb\u2028"}
    assert lines[2:] == [b""]


def test_the_log_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with pytest.raises(TrainingError, match=r"A row of .*log.jsonl cannot be saved: 'loss' is nan"):
        append_line(log, {"step": 1, "loss": math.nan})
    assert not log.exists()
    with pytest.raises(TrainingError, match=r"absent/log.jsonl could not be written: .*No such file"):
        append_line(tmp_path / "absent" / "log.jsonl", {"step": 1})
    with pytest.raises(TrainingError, match=r"log.jsonl could not be written: .*No such file"):
        sync(log)


ROWS = st.lists(
    st.fixed_dictionaries({"step": st.integers(0, 9), "loss": st.floats(0, 1), "text": st.text(max_size=5)}), max_size=8
)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, last_step=st.integers(-1, 10), data=st.data())
def test_a_log_cut_anywhere_keeps_its_whole_rows_up_to_the_step(
    rows: list[dict[str, object]], last_step: int, data: st.DataObject
) -> None:
    whole = [json.dumps(row).encode() + b"\n" for row in rows]
    cut = data.draw(st.integers(0, sum(map(len, whole))))
    expected, position = b"", 0
    for row, line in zip(rows, whole, strict=True):
        position += len(line)
        if position <= cut and row["step"] <= last_step:
            expected += line
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        log.write_bytes(b"".join(whole)[:cut])
        truncate_log(log, last_step)
        assert log.read_bytes() == expected
        assert names(Path(folder)) == ["log.jsonl"]


def test_resuming_a_log_gives_the_bytes_of_the_uninterrupted_one(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight.jsonl", tmp_path / "broken.jsonl"
    for step in range(1, 8):
        append_line(straight, {"step": step, "loss": 1 / step})
    for step in range(1, 6):
        append_line(broken, {"step": step, "loss": 1 / step})
    os.truncate(broken, broken.stat().st_size - 1)  # nothing but the end of the line is missing
    truncate_log(broken, 5)
    assert broken.read_bytes().endswith(b'{"step": 4, "loss": 0.25}\n')
    truncate_log(broken, 3)  # the newest checkpoint was of step 3
    for step in range(4, 8):
        append_line(broken, {"step": step, "loss": 1 / step})
    assert broken.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize(
    "line", [b"\n", b"{\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": true}\n', b'{"step": 1.0}\n', b"\0\0\n", b"\xff\n"]
)
def test_a_damaged_log_names_the_line(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "log.jsonl"
    damaged = b'{"step": 1}\n' + line + b'{"step": 2}\n'
    log.write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"log\.jsonl:2 is no row with a step"):
        truncate_log(log, 5)
    assert log.read_bytes() == damaged
    log.write_bytes(b'{"step": 1}\n' + line)
    truncate_log(log, 5)
    assert log.read_bytes() == b'{"step": 1}\n'


def test_a_log_that_needs_no_cut_is_not_written_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    truncate_log(log, 1)
    assert not log.exists()
    append_line(log, {"step": 1})
    inode = log.stat().st_ino
    truncate_log(log, 1)
    assert log.stat().st_ino == inode
