"""What is wrong with a row or a file: as a value to list, and as an exception on its way there."""

from dataclasses import dataclass
from typing import Any

from acclimate.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One sentence about one place, and the rule that was broken (a few words, for totals)."""

    where: str  # file, file:line or file[element]
    rule: str
    message: str


class Refused(DataError):
    """A row or file that breaks `rule`. The text goes on after the place: "has no prompt; each Example needs one."."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule

    def at(self, where: str) -> Problem:
        """The same, now that the place is known."""
        return Problem(where, self.rule, f"{where} {self}")


Record = tuple[str, dict[str, Any] | Refused]  # a place (file:line or file[element]) and the raw row that is there
