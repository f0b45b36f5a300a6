"""Every error acclimate raises on purpose, and the one sentence for "no such name".

AcclimateError          exit status
├── InputError          2   what the user gave is wrong
│   ├── UsageError          the command line
│   ├── RecipeError         the recipe
│   ├── DataError           a row or a file
│   └── SourceError         a built-in or remote source that cannot be had
├── ModelError          1   the model cannot do what was asked of it
├── TrainingError       1   a sick run: stopped, with its diagnosis
└── Interrupted         3   a signal; the run can be resumed
"""

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 30  # names a sentence holds


class AcclimateError(Exception):
    """Base of the tree; `status` is the exit status of the command line."""

    status = 1


class InputError(AcclimateError):
    """What the user gave is wrong: file, line, what was found, what is possible."""

    status = 2


class UsageError(InputError):
    """The command line asks for something that cannot be."""


class RecipeError(InputError):
    """The recipe asks for something that does not exist or does not fit."""


class DataError(InputError):
    """A file or a row of it cannot be read as what it should be."""


class SourceError(InputError):
    """A built-in, remote or local source is absent, changed or unsafe."""


class ModelError(AcclimateError):
    """The model cannot do what was asked of it."""


class TrainingError(AcclimateError):
    """A run that would only waste time was stopped."""


class Interrupted(AcclimateError):
    """A signal stopped the work; what is done is on disk."""

    status = 3


def unknown(what: str, got: str, allowed: Iterable[str]) -> str:
    """One sentence for every "no such name": what, what was given, the nearest, all of them.

    >>> unknown("method", "lorra", ["full", "lora"])
    "No method is called 'lorra'. Did you mean 'lora'? There is: full, lora."
    """
    names = sorted(allowed)
    near = get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"No {what} is called {got!r}.{hint} There is: {', '.join(names[:LISTED])}{more}."
