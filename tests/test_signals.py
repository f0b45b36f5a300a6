"""SIGINT and SIGTERM ask; a second SIGINT insists. Mostly in child processes, as a run meets them."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from acclimate.errors import Interrupted
from acclimate.training.signals import stopping

RUN = """
import signal, sys, time
from acclimate.errors import AcclimateError
from acclimate.training.signals import stopping
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with stopping() as stop:
        print("ready", flush=True)
        seen, left = None, {signals}
        end = time.monotonic() + {patience}
        while left and time.monotonic() < end:
            time.sleep(0.01)
            if stop.requested != seen:
                seen, left = stop.requested, left - 1
                print(seen, flush=True)
            if {checks}:
                stop.check("step 7")
    print("finished", flush=True)
except AcclimateError as error:
    print(error, flush=True)
    sys.exit(error.status)
"""


def run(script: str, *signals: int) -> tuple[int, list[str]]:
    """Exit status and lines of a child that is sent each signal after it has said a line."""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = []
        for number in signals:
            said.append(child.stdout.readline().strip())
            child.send_signal(number)
        out, err = child.communicate(timeout=60)
    return child.returncode, said + out.split("\n")[:-1] + err.strip().split("\n")[-1:]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell may have started the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_at_the_next_check_with_status_3(name: str) -> None:
    status, said = run(RUN.format(patience=60, signals=2, checks="seen"), signal.Signals[name])
    sentence = f"{name} stopped the run during step 7; the same command with --resume continues it."
    assert (status, said) == (3, ["ready", name, sentence, ""])


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)])
def test_without_a_check_the_work_goes_on(numbers: tuple[int, ...]) -> None:
    status, said = run(RUN.format(patience=60, signals=len(numbers), checks="False"), *numbers)
    assert (status, said) == (0, ["ready", *(signal.Signals(number).name for number in numbers), "finished", ""])


@pytest.mark.parametrize("first", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_sigint_interrupts_at_once(first: tuple[int, ...]) -> None:
    status, said = run(RUN.format(patience=60, signals=9, checks="False"), *first, signal.SIGINT)
    assert status == -signal.SIGINT
    assert said == ["ready", *(signal.Signals(number).name for number in first), "KeyboardInterrupt"]


def test_outside_sigterm_kills_as_it_always_did() -> None:
    script = RUN.format(patience=0, signals=9, checks="False") + "time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == ["ready\n", "finished\n"]
        child.terminate()
        assert child.wait(60) == -signal.SIGTERM


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    script = RUN.format(patience=0.5, signals=9, checks="True").replace("signal.default_int_handler", "signal.SIG_IGN")
    assert run(script, signal.SIGINT) == (0, ["ready", "finished", ""])


def test_importing_installs_nothing() -> None:
    script = """
import signal
before = [signal.getsignal(number) for number in signal.valid_signals()]
import acclimate.training.signals
print(before == [signal.getsignal(number) for number in signal.valid_signals()])
"""
    assert run(script) == (0, ["True", ""])


def test_the_handlers_found_are_put_back() -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError

    def fail() -> None:
        with stopping():
            assert signal.getsignal(signal.SIGTERM) is not mine
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            raise ZeroDivisionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_between_two_sigints_changes_nothing() -> None:
    with stopping() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_inside_another_the_inner_one_hears() -> None:
    with stopping() as outer:
        with stopping() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert (inner.requested, outer.requested) == ("SIGTERM", None)
        signal.raise_signal(signal.SIGINT)
        assert outer.requested == "SIGINT"


def test_check_says_what_was_being_done() -> None:
    with stopping() as stop:
        stop.check("data preparation")
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT stopped the run during evaluation;") as raised:
            stop.check("evaluation")
    assert raised.value.status == 3


def test_in_another_thread_it_is_inert() -> None:
    seen: list[object] = []

    def work() -> None:
        with stopping() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])
            stop.check("step 1")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler, None]
