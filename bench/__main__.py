"""python -m bench [--work NAME …] [--out FOLDER] [--repeats N]: bench.json and bench.html."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from acclimate.models.precision import device
from bench.machine import machine
from bench.material import write
from bench.page import page
from bench.process import SideProcess
from bench.timing import Times, apart, ratio, share
from bench.works import OURS, WORKS, Peer, Work


def measured(name: str, work: Work, folder: Path, repeats: int, limits: Mapping[str, Any]) -> dict[str, Any]:
    """One row of bench.json. All sides are set up; then each works once in its turn, and again, `repeats` times.

    The gate is in float32. Where a side does not compute what ours computes, the row says how far it is apart and has no
    times of it. Where this machine multiplies bfloat16 better, the sides that may use it are then set up anew.
    """
    if work.apart:
        return together(
            [measured(name, work.beside(who), folder, repeats, limits) for who in work.sides if who != OURS]
        )
    sides = _started(name, work.sides, folder)
    found = {who: apart(sides[OURS].parity, side.parity) for who, side in sides.items() if who != OURS}
    equal = {who for who, far in found.items() if all(far[key] <= most for key, most in work.parity.items())} | {OURS}
    precision = str(limits["precision"]) if work.quick else "float32"
    rounded: dict[str, dict[str, float]] = {}
    if precision != "float32":
        gate = sides[OURS].parity
        for who in set(work.quick) & set(sides):
            sides.pop(who).stop()
        quick = {who: _in(work.sides[like], precision) for who, like in work.quick.items() if like in equal}
        sides |= (again := _started(f"{name}-{precision}", quick, folder))
        rounded = {who: apart(gate, side.parity) for who, side in again.items()}
        equal |= set(again)
    rounds: dict[str, list[dict[str, float]]] = {who: [] for who in sorted(sides, key=_ours_first) if who in equal}
    for _ in range(repeats + 1):
        for who in rounds:
            rounds[who].append(sides[who].go())
    memory = {who: side.stop() for who, side in sides.items()}
    times = {who: Times.of(done[1:]) for who, done in rounds.items()}
    tables = {who: given.table(sides[who].setting_up, memory[who]) for who, given in times.items()}
    return {
        "work": name,
        "about": work.about,
        "unit": work.unit,
        "precision": {who: precision if who in work.quick else _given(work.sides[who]) for who in tables},
        "ours": tables[OURS],
        "peers": {who: tables[who] for who in tables if who != OURS},
        "ratio": {who: ratio(times[OURS], times[who]) for who in times if who != OURS},
        "share_of_limit": share(rounds[OURS][1:], limits, precision),
        "memory_ratio": {who: memory[OURS] / memory[who] for who in times if who != OURS},
        "parity": found,
        "rounded": rounded,
        "unequal": sorted(set(found) - equal),
    }


def together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of several, each of ours beside one peer; what ours did by itself is as the first one has it."""
    both = ("precision", "peers", "ratio", "memory_ratio", "parity", "rounded")
    merged: dict[str, dict[str, Any]] = {name: {} for name in both}
    for row in rows:
        for name, known in merged.items():
            known |= {key: value for key, value in row[name].items() if key not in known}
    return {**rows[0], **merged, "unequal": sorted(who for row in rows for who in row["unequal"])}


def offered(name: str, work: Work, kind: str) -> Work | None:
    """The sides that are for this kind of device; None where ours is not. What is left out is told."""
    other = {who: peer.only for who, peer in work.sides.items() if peer.only not in ("", kind)}
    if OURS in other:
        print(f"{name}: left out, it is for {other[OURS]}, and this machine has none", flush=True)
        return None
    for who, only in other.items():
        print(f"{name}: {who} left out, it is for {only}, and this machine computes on {kind}", flush=True)
    quick = {**work.quick, **(work.on_cuda if kind == "cuda" else {})}
    return replace(work, sides={who: peer for who, peer in work.sides.items() if who not in other}, quick=quick)


def _started(name: str, peers: Mapping[str, Peer], folder: Path) -> dict[str, SideProcess]:
    started = {}
    for who, peer in peers.items():
        try:
            started[who] = SideProcess(peer, folder, folder / f"{name}-{who}.log")
        except CalledProcessError as problem:  # pip, which found or could build no package for this machine
            print(f"{name}: {who} left out, its environment cannot be made: {problem}", flush=True)
    return started


def _given(peer: Peer) -> str:
    """The dtype that a side asks for; float32 as it comes."""
    return str(peer.options.get("dtype", "float32"))


def _in(peer: Peer, precision: str) -> Peer:
    return replace(peer, options={**peer.options, "dtype": precision})


def _ours_first(who: str) -> tuple[bool, str]:
    return who != OURS, who


def main() -> None:
    """Measure what was asked for; every row is written as soon as it is known."""
    asked = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    asked.add_argument("--work", nargs="*", choices=sorted(WORKS), default=[])
    asked.add_argument("--out", type=Path, default=Path("runs/bench"))
    asked.add_argument("--repeats", type=int, default=5)
    given = asked.parse_args()
    write(given.out / "material")
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    for name in given.work or WORKS:
        if not (given.out / "material" / WORKS[name].reads).stat().st_size:
            print(f"{name}: left out, its data are not beside the project", flush=True)
            continue
        work = offered(name, WORKS[name], device().type)
        if work is None:
            continue
        try:
            row = measured(name, work, given.out / "material", given.repeats, found["machine"])
        except (BrokenPipeError, json.JSONDecodeError):  # killed, perhaps for its memory
            print(
                f"{name}: left out, a side ended before it was asked to; see {given.out}/material/{name}*.log",
                flush=True,
            )
            continue
        found["rows"].append(row)
        (given.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (given.out / "bench.html").write_text(page(found), encoding="utf-8")
        told = ", ".join(f"{who} {times['median']:.2f}×" for who, times in row["ratio"].items())
        print(f"{name}: {row['ours']['units_per_second']:.1f} {row['unit']}/s; {told}", flush=True)
        for who in row["unequal"]:
            print(f"{name}: {who} computes something else: {row['parity'][who]}", flush=True)


if __name__ == "__main__":
    main()
