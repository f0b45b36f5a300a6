"""The benchmark's own parts: two sides in processes of their own, in turns, and what their times say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.page import page
from bench.timing import Times, apart, ratio
from bench.works import OURS, WORKS

ROOT = Path(__file__).parents[1]
SIDE = """
import time
from bench.turns import serve

def side():
    print("a library says something")
    yield {"loss": 2.0}
    while True:
        time.sleep(0.05)
        yield {"units": 10}

serve(side())
"""


def test_a_side_works_when_it_is_told_to_and_says_how_long_it_took() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIDE], cwd=ROOT, input="go\ngo\nstop\n", text=True, capture_output=True
    )
    ready, first, second, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["parity"] == {"loss": 2.0}
    assert "a library says something" in done.stderr
    assert first["units"] == second["units"] == 10
    assert 0.05 <= second["seconds"] < 1
    assert end["peak_memory_bytes"] > 1 << 20


def test_rates_are_medians_and_ratios_are_of_repetitions_beside_each_other() -> None:
    ours, theirs = Times((1.0, 1.0, 4.0), (10, 10, 10)), Times((2.0, 5.0, 4.0), (10, 10, 10))
    assert ours.table(0.0, 1)["units_per_second"] == 10.0
    assert ratio(ours, theirs) == {"median": 2.0, "least": 1.0, "most": 5.0}


def test_what_differs_is_told_and_what_cannot_be_compared_is_refused() -> None:
    assert apart({"ids": [1, 2, 3]}, {"ids": [1, 2]}) == {"ids": 1.0}
    assert apart({"loss": 1.0}, {"loss": -1.0}) == {"loss": 2.0}
    with pytest.raises(TypeError, match="numbers and lists"):
        apart({"name": "a"}, {"name": "b"})


def test_every_work_has_our_side_and_a_peer_and_every_side_a_file() -> None:
    for name, work in WORKS.items():
        assert OURS in work.sides, name
        assert len(work.sides) > 1, name
        assert work.parity, name
        for peer in work.sides.values():
            assert (ROOT / "bench" / "sides" / f"{peer.module}.py").exists()
            assert not peer.environment or (ROOT / "bench" / "peers" / f"{peer.environment}.txt").exists()


def test_the_page_says_whose_times_do_not_count() -> None:
    table = Times((1.0,), (10,)).table(0.5, 1 << 30)
    row = {
        "work": "sft", "about": "a < b", "unit": "tokens", "ours": table, "peers": {"peer": table},
        "ratio": {"peer": {"median": 3.0, "least": 2.0, "most": 4.0}}, "parity": {"peer": {"loss": 1e-6}, "odd": {"loss": 0.3}},
        "unequal": ["odd"],
    }  # fmt: skip
    machine = {
        "processor": "P", "cores": 2, "threads": 2, "torch": "2", "transformers": "5", "python": "3", "gemm_float32": 1e11,
        "gemm_bfloat16": 2e11, "copy_bytes_per_second": 5e9,
    }  # fmt: skip
    found = page({"machine": machine, "rows": [row]})
    assert "a &lt; b" in found
    assert "<b>3.00</b>" in found
    assert "computes something else" in found
