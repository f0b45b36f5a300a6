"""SIGINT and SIGTERM as a question the run asks where it can stop, instead of an exception anywhere.

Rests on CPython running signal handlers between two bytecodes of the main thread and repeating interrupted system calls
(PEP 475): a handler that only sets a flag disturbs neither a save nor a step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from acclimate.errors import Interrupted


class Stop:
    """Whether a signal has asked the run to stop: `requested` is None, "SIGINT" or "SIGTERM"."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def check(self, what: str) -> None:
        """Raise Interrupted, naming `what` was being done ("evaluation"), when a signal has come; else nothing."""
        if self.requested:
            raise Interrupted(
                f"{self.requested} stopped the run during {what}; the same command with --resume continues it."
            )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == "SIGINT":
            raise KeyboardInterrupt
        if self.requested != "SIGINT":
            self.requested = signal.Signals(number).name


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM are remembered in the Stop this yields; a second SIGINT raises KeyboardInterrupt.

    The handlers found are put back on leaving. A signal that was ignored (SIGINT of a shell's background job) stays so.
    Outside the main thread, where Python lets nobody set handlers, nothing is installed and nothing is ever requested.
    """
    stop = Stop()
    found = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    found[number] = signal.signal(number, stop._receive)
        yield stop
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
