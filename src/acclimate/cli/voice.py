"""How a run speaks: a bar with rate and remaining time on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from acclimate.data.template import Segment
from acclimate.run.carry import Voice
from acclimate.run.prepare import Prepared
from acclimate.run.write import rendering
from acclimate.training.fit import Step

LINES = 20  # lines a stretch of work prints where there is no terminal


def voice(quiet: bool) -> Voice:
    """Speaks on standard error, so that standard output holds results only."""
    if quiet:
        return Voice(lambda line: None, lambda what, count: lambda done: None, lambda step, steps: None, lambda p: None)
    console = Console(stderr=True, highlight=False)
    meter = Meter(console)
    return Voice(
        say=lambda line: console.print(line, markup=False, soft_wrap=True),
        told=meter.begin,
        step=lambda step, steps: meter.step(step, steps),
        sample=lambda prepared: _show_sample(console, prepared),
    )


class Meter:
    """Rate and remaining time of one stretch of work after another."""

    def __init__(self, console: Console) -> None:
        self.console, self.begun, self.train_begun, self.first = console, 0.0, 0.0, 0

    def begin(self, what: str, count: int) -> Callable[[int], None]:
        """A stretch of `count` things called `what`."""
        begun, done = time.monotonic(), [0]

        def tick(more: int) -> None:
            done[0] += more
            if more:
                self._progress(what, done[0], count, begun, more=more)

        return tick

    def step(self, step: Step, steps: int) -> None:
        """One update was made."""
        if not self.train_begun:
            self.train_begun, self.first = time.monotonic(), step.index - 1
        self._progress("training", step.index, steps, self.train_begun, f"loss {step.loss:.4f}", self.first)

    def _progress(
        self, what: str, done: int, count: int, begun: float, detail: str = "", before: int = 0, more: int = 1
    ) -> None:
        """`done` of `count`, of them `more` since the last time; elsewhere than on a terminal in LINES lines or so."""
        terminal = sys.stderr.isatty()
        stride = max(1, count // LINES)
        if not terminal and done // stride == (done - more) // stride and done < count:
            return
        spent = max(1e-9, time.monotonic() - begun)
        rate = (done - before) / spent
        left = _clock((count - done) / rate) if rate else "?"
        line = f"{what} {done}/{count}  {detail}  {rate:.2f}/s  {left} left".replace("    ", "  ")
        if terminal:
            width = 24 * done // max(1, count)
            self.console.file.write(
                f"\r\x1b[2K{'━' * width}{'─' * (24 - width)} {line}" + ("\n" if done >= count else "")
            )
            self.console.file.flush()
        else:
            self.console.print(line, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _show_sample(console: Console, prepared: Prepared) -> None:
    """What the loss counts, in numbers and in colour."""
    table = rendering(prepared)
    share = table["scored_tokens"] / max(1, table["tokens"])
    console.print(
        f"{len(prepared.train.rows):,} training rows, {table['tokens']:,} tokens, {table['scored_tokens']:,} of them scored "
        f"({share:.1%}); {table['truncated']} cut, {table['too_long']} left out.",
        markup=False,
        soft_wrap=True,
    )
    if not table["scored_tokens"]:
        return
    console.print("the first one, with what the loss counts in green:" if console.is_terminal else "the first one:")
    console.print(coloured([Segment(*piece) for piece in table["sample"]], console.is_terminal), soft_wrap=True)


def coloured(pieces: list[Segment], terminal: bool) -> Text:
    """Scored text in green; between ⟦ ⟧ where there are no colours."""
    text = Text()
    for piece, scored in pieces:
        shown = piece if len(piece) < 1200 else f"{piece[:600]} … {piece[-500:]}"
        text.append(shown if terminal or not scored else f"⟦{shown}⟧", "bold green" if scored else "dim")
    return text
