"""Rewards that somebody else computes: a function of the user's, or a server."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from acclimate.errors import ModelError, RecipeError
from acclimate.rewards.reward import Completion, Mark, Marks, whole


@dataclass(frozen=True)
class Function:
    """A Python function, as `module:name`: completions in, a number for each (or (end, score) pairs for each) out."""

    function: str = ""

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        return marks(self._found()(completions), completions, self.function)

    def _found(self) -> Any:
        module, sign, name = self.function.partition(":")
        if not (module and sign and name):
            raise RecipeError(f"The reward function is named as module:function, not {self.function!r}.")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"There is no reward function {self.function}: {error}.") from None


@dataclass(frozen=True)
class Endpoint:
    """A server: POST {"completions": [{prompt, text, ended, fields}]} → {"scores": [number or [[end, score], …], …]}."""

    url: str = ""
    seconds: float = 60.0  # waited for an answer
    tries: int = 3

    def __call__(self, completions: Sequence[Completion]) -> list[Marks]:
        body = json.dumps({"completions": [asdict(c) for c in completions]}, default=str).encode()
        return marks(self._asked(body), completions, self.url)

    def _asked(self, body: bytes) -> Any:
        if not self.url.startswith(("http://", "https://")):
            raise RecipeError(f"The reward endpoint needs a url with http:// or https://, not {self.url!r}.")
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        problem: Exception = OSError("it was not asked")
        for _ in range(self.tries):
            try:
                with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                    return json.load(answer)["scores"]
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                problem = error
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{self.url} answered something that is no {{'scores': […]}}: {error!r}.") from None
        raise ModelError(f"{self.url} gave no scores after {self.tries} tries: {problem}.")


def marks(scores: Any, completions: Sequence[Completion], name: str) -> list[Marks]:
    """What an outside scorer said, as marks. ModelError for anything but a number or a list of (end, score) for each."""
    try:
        listed = list(scores)
        if all(isinstance(score, int | float) for score in listed):
            return whole([float(score) for score in listed], completions)
        return [tuple(Mark(int(end), float(score)) for end, score in each) for each in listed]
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} gave scores that cannot be read: {error}.") from None
