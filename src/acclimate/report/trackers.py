"""Where a run's numbers go besides log.jsonl. A tracker is told numbers by step and never costs the run."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from acclimate.errors import RecipeError, SourceError, unknown


class Tracker(Protocol):
    """Receives numbers while a run goes on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take `values` (name to number) of `step`, counted from 1."""

    def close(self) -> None:
        """Write what is still held. Nothing is logged afterwards."""


class TensorBoard:
    """Scalars in TensorBoard's event files under `folder`, by TensorBoard's own writer (no torch is needed).

    SourceError where the package is absent.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            sentence = (
                "The tensorboard tracker needs a package that is not installed: pip install 'acclimate[tensorboard]'."
            )
            raise SourceError(sentence) from error
        self._writer = Writer(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = MappingProxyType({"tensorboard": TensorBoard})


def tracker(name: str, folder: Path) -> Tracker:
    """The tracker called `name`, writing under `folder`; RecipeError where there is none of that name."""
    if name not in TRACKERS:
        raise RecipeError(unknown("tracker", name, TRACKERS))
    return TRACKERS[name](folder)


def safely(tracker: Tracker) -> Tracker:
    """`tracker`, which at its first failure is warned about once and not asked again."""
    return _Guarded(tracker)


class _Guarded:
    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._failed = tracker, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(f"at step {step}", lambda: self._tracker.log(step, values))

    def close(self) -> None:
        self._attempt("while closing", self._tracker.close)

    def _attempt(self, when: str, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except Exception as error:  # anything that someone else's tracker raises: no number is worth a run (G31)
            self._failed = True
            sentence = "The tracker %s failed %s and gets nothing more; the run goes on. It said: %s: %s"
            logging.getLogger(__name__).warning(
                sentence, type(self._tracker).__name__, when, type(error).__name__, error
            )
