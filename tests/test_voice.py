"""What a person sees of long work where there is no terminal."""

import io

import pytest
from rich.console import Console

from acclimate.cli.voice import LINES, Meter


@pytest.mark.parametrize("batch", [1, 7, 40, 999])
def test_work_in_batches_of_any_size_is_told_in_some_lines(batch):
    """A batch seldom ends where a line is due: the line comes with the batch that passes that place."""
    seen, count = io.StringIO(), 1000
    tick = Meter(Console(file=seen, width=200)).begin("evaluation", count)
    for start in range(0, count, batch):
        tick(min(batch, count - start))
    lines = seen.getvalue().splitlines()
    assert min(LINES, -(-count // batch)) <= len(lines) <= LINES + 1
    assert lines[-1].startswith("evaluation 1000/1000")
