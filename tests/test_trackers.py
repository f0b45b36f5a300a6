"""Numbers reach TensorBoard as they were given, and no tracker can end a run."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from acclimate.errors import RecipeError, SourceError
from acclimate.report.trackers import TRACKERS, TensorBoard, safely, tracker


class Recording:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


class Failing(Recording):
    """Fails from step `since` on, with `error`."""

    def __init__(self, since: int, error: BaseException) -> None:
        super().__init__()
        self.since, self.error = since, error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        if step >= self.since:
            raise self.error

    def close(self) -> None:
        raise self.error


def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = tracker("tensorboard", tmp_path / "board")
    made.log(1, {"loss": 2.5, "rate": 1e-4})
    made.log(2, {"loss": 1.25})
    made.close()
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    read = {name: [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(name)] for name in ("loss", "rate")}
    assert read["loss"] == [(1, 2.5), (2, 1.25)]
    assert read["rate"] == [(1, pytest.approx(1e-4, rel=1e-6))]


def test_absent_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(SourceError, match=r"pip install 'acclimate\[tensorboard\]'"):
        TensorBoard(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"No tracker is called 'tensorbord'\. Did you mean 'tensorboard'\?"):
        tracker("tensorbord", tmp_path)
    assert set(TRACKERS) == {"tensorboard"}


def test_a_sound_tracker_gets_everything() -> None:
    inner = Recording()
    guarded = safely(inner)
    guarded.log(1, {"loss": 2.0})
    guarded.log(2, {"loss": 1.0})
    guarded.close()
    assert (inner.seen, inner.closed) == ([(1, {"loss": 2.0}), (2, {"loss": 1.0})], 1)


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("server gone"), KeyError("x"), AssertionError()])
def test_a_failing_tracker_is_warned_about_once_and_left_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Failing(2, error)
    guarded = safely(inner)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            guarded.log(step, {"loss": 1.0})
        guarded.close()
    assert [step for step, _ in inner.seen] == [1, 2]
    assert len(caplog.records) == 1
    sentence = caplog.records[0].getMessage()
    assert sentence.startswith("The tracker Failing failed at step 2 and gets nothing more; the run goes on.")
    assert type(error).__name__ in sentence


def test_a_tracker_that_cannot_close_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        safely(Failing(9, OSError("disk full"))).close()
    assert [record.getMessage() for record in caplog.records] == [
        "The tracker Failing failed while closing and gets nothing more; the run goes on. It said: OSError: disk full"
    ]


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(3)])
def test_signals_pass_through(signal: BaseException) -> None:
    with pytest.raises(type(signal)):
        safely(Failing(1, signal)).log(1, {"loss": 1.0})
