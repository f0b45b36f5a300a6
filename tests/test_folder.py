"""A run folder holds one run, in one process, and nothing of anybody else's."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from acclimate.errors import UsageError
from acclimate.training.folder import RunFolder, claim, new_folder

NOW = datetime(2026, 3, 4, 5, 6, 7)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(out: Path, resume: bool) -> str:
    """The sentence of a refusal that left everything as it was."""
    before = tree(out.parent)
    with pytest.raises(UsageError) as raised:
        claim(out, resume)
    assert tree(out.parent) == before
    return str(raised.value)


def test_a_new_folder_is_made_and_its_files_named_as_the_contract_says(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with claim(out, resume=False) as run:
        assert run.path == out
        assert {path.name for path in out.iterdir()} == {".lock"}
        assert (out / ".lock").read_text() == f"{os.getpid()}\n"
        files = (run.recipe, run.report, run.log, run.checkpoints)
        assert files == (out / "recipe.yaml", out / "report.json", out / "log.jsonl", out / "checkpoints")


def test_an_empty_folder_and_one_where_nothing_was_written_yet_are_new(tmp_path: Path) -> None:
    claim(tmp_path, resume=False).release()
    (tmp_path / ".recipe.yaml.part").write_text("model: ")
    (tmp_path / ".lock").write_text("12345678901\n")  # of a dead process with a longer number
    claim(tmp_path, resume=False).release()
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    assert refused(tmp_path, resume=True).startswith(f"{tmp_path} holds no run that could be resumed;")


def test_an_unfinished_run_wants_resume(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x")
    assert refused(tmp_path, resume=False) == (
        f"{tmp_path} holds an unfinished run; continue it with --resume or give another folder with --out."
    )
    with claim(tmp_path, resume=True) as run:
        assert run.recipe.read_text() == "model: x"


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_written_over(tmp_path: Path, resume: bool) -> None:
    with claim(tmp_path, resume=False) as run:
        run.recipe.write_text("model: x")
        run.report.write_text("{}")
    assert refused(tmp_path, resume) == (
        f"{tmp_path} holds a finished run, which is never written over; give another folder with --out."
    )
    (tmp_path / ".lock").unlink()
    assert "finished run" in refused(tmp_path, resume)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "absent", tmp_path / "empty"):
        assert refused(out, resume=True) == (
            f"{out} holds no run that could be resumed; without --resume a new one begins."
        )


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, resume: bool) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("x")
    sentence = refused(out, resume)
    assert sentence == (
        f"{out} holds no run that could be resumed; without --resume a new one begins."
        if resume
        else f"{out} is no run folder and not empty (it holds 'chapter1.tex'); give another one with --out."
    )


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"The run folder {out} cannot be used: " in refused(out, resume=False)


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(UsageError, match=r"cannot be used: .*locks.*Give another one with --out"):
        claim(tmp_path / "run", resume=False)


HOLDER = """
import sys
from pathlib import Path
from acclimate.training.folder import claim
run = claim(Path(sys.argv[1]), resume=False)
run.recipe.write_text("model: x")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_never_share_one(tmp_path: Path, resume: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert refused(tmp_path, resume) == (
            f"{tmp_path} is in use by another process (pid {holder.pid}); wait for it or give another --out."
        )
        holder.kill()
    with claim(tmp_path, resume=True):  # the kernel freed it, though nobody cleaned up
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_children_do_not_keep_the_folder(tmp_path: Path) -> None:
    run = claim(tmp_path, resume=False)
    assert not os.get_inheritable(run.lock)  # not by programs it starts
    shared = os.dup(run.lock)  # as by fork
    run.release()
    claim(tmp_path, resume=False).release()
    os.close(shared)


def test_a_refused_claim_lets_go(tmp_path: Path) -> None:
    with claim(tmp_path, resume=False) as run:
        assert "in use" in refused(tmp_path, resume=False)
        run.recipe.write_text("model: x")
    assert "unfinished" in refused(tmp_path, resume=False)
    claim(tmp_path, resume=True).release()


def test_of_many_claims_at_once_one_succeeds(tmp_path: Path) -> None:
    for attempt in range(20):
        out, start = tmp_path / str(attempt), threading.Barrier(8)

        def try_to_claim(_: int, out: Path = out, start: threading.Barrier = start) -> RunFolder | str:
            start.wait()
            try:
                return claim(out, resume=False)
            except UsageError as error:
                return str(error)

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(try_to_claim, range(8)))
        winners = [result for result in results if isinstance(result, RunFolder)]
        assert len(winners) == 1
        assert sum("in use" in result for result in results if isinstance(result, str)) == 7
        winners[0].release()


def test_a_folder_of_its_own_for_every_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = [new_folder(runs, "reviews", NOW) for _ in range(3)]
    stem = "reviews-20260304-050607"
    assert made == [runs / stem, runs / f"{stem}-2", runs / f"{stem}-3"]
    assert new_folder(runs, "../a b/ö", NOW).name == "..-a-b-ö-20260304-050607"
    assert len(new_folder(runs, "ж" * 300, NOW).name) == 66
    claim(made[0], resume=False).release()


def test_runs_begun_in_the_same_second_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "runs", "x", NOW), range(64)))
    assert len(set(made)) == 64


def test_no_place_for_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("x")
    with pytest.raises(UsageError, match=r"runs/x-20260304-050607 cannot be made: .*Give another folder with --out"):
        new_folder(tmp_path / "runs", "x", NOW)
