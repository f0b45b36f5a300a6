"""python -m bench.profile WORK [--dtype bfloat16] [--out FOLDER]: where one repetition of our side spends its time."""

import argparse
import time
from importlib import import_module
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bench.material import write
from bench.works import OURS, WORKS


def main() -> None:
    """Print the operations that took longest by themselves."""
    asked = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    asked.add_argument("work", choices=sorted(WORKS))
    asked.add_argument("--dtype", default="bfloat16")
    asked.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = asked.parse_args()
    write(given.out / "material")
    peer = WORKS[given.work].sides[OURS]
    works = import_module(f"bench.sides.{peer.module}").WORKS
    side = works[peer.function](given.out / "material", **{**peer.options, "dtype": given.dtype})
    for _ in range(3):  # the gate, and two to warm up
        next(side)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        next(side)
        took = time.perf_counter() - began
    inside = sum(one.self_cpu_time_total for one in seen.key_averages()) / 1e6
    print(
        f"{took:.3f} s, of them {took - inside:.3f} outside PyTorch's operations: Python, and what is called by ctypes"
    )
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))


if __name__ == "__main__":
    main()
