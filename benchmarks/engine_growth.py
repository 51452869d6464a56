"""How the simulator's cost grows: commands a second of each player and requests a second of the controllers, by size.

    python benchmarks/engine_growth.py

A GEMV program on `pim-gpt` with refresh on; the sizes are commands of one channel, and all channels do the same.
Requests are reads in sequence and at random; to find the places of their addresses counts, to read a file does not.
Whole generations are those of `generations.py`. Writes `benchmarks/results/engine.json` and the tables in
`docs/simulator.md`. Compiled code is loaded before anything is measured; times are CPU seconds, the best of three where
they are short.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import generations
import numpy as np

from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.reference import Reference
from nearbank.sim.requests import Trace, serve

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine.json"
PAGE = ROOT / "docs" / "simulator.md"
BEGIN, END = "<!-- made by benchmarks/engine_growth.py -->", "<!-- end -->"

COMMANDS_A_ROW = 67
ROWS = 15_000
SIZES = [10**k for k in range(3, 10)]
# What takes longer than seconds is left to the faster players.
MOST = {
    "reference": 10**4,
    "engine, every command": 10**8,
    "engine": 10**9,
    "ddr4, stream": 10**6,
    "ddr4, random": 10**6,
    "gddr6, stream": 10**6,
    "gddr6, random": 10**6,
    "ddr4-dramsim3, stream": 10**6,
    "ddr4-dramsim3, random": 10**6,
}


def gemv(commands: int) -> Program:
    """Rows of 64 columns, opened, multiplied, closed and read out, as many as make about so many commands."""
    rows = max(commands // COMMANDS_A_ROW, 1)
    outer = -(-rows // ROWS)
    b = Builder()
    with b.loop(outer), b.loop(-(-rows // outer)) as r:
        b.command("ACT16", row=r)
        with b.loop(64) as c:
            b.command("MACAB", row=r, column=c, format="bf16")
        b.command("PREA")
        b.command("RDMAC")
    return Program(f"gemv of {commands} commands", (Stream(tuple(range(8)), b.body()),))


def reference(size: int) -> Callable[[], int]:
    program, machine = gemv(size), load_machine("pim-gpt")

    def play() -> int:
        slow = Reference(machine)
        slow.play(program)
        return sum(slow.channels[0].counts.values())

    return play


def engine(size: int, fast_forward: bool) -> Callable[[], int]:
    program, machine = gemv(size), load_machine("pim-gpt")

    def play() -> int:
        fast = Player(machine, fast_forward=fast_forward)
        fast.play(program)
        return fast.result().channels[0].issued

    return play


def controller(machine: str, kind: str, size: int) -> Callable[[], int]:
    device = load_machine(machine)
    block = device.organization.column_bytes
    places = np.arange(size) if kind == "stream" else np.random.default_rng(1).integers(0, (1 << 29) // block, size)
    trace = Trace.at_once(places.astype(np.uint64) * np.uint64(block))
    return lambda: serve(device, trace).reads_done


def case(name: str, size: int) -> Callable[[], int]:
    """What to time; it returns how many commands or requests it did."""
    if name == "reference":
        return reference(size)
    if name.startswith("engine"):
        return engine(size, name == "engine")
    machine, kind = name.split(", ")
    return controller(machine, kind, size)


def measure(name: str, size: int) -> dict[str, Any]:
    """One row: the count and the seconds."""
    play, best, done, turns = case(name, size), float("inf"), 0, 0
    while turns < 3 and (turns == 0 or best < 10):
        started = time.process_time()
        done = play()
        best, turns = min(best, time.process_time() - started), turns + 1
    return {"player": name, "size": size, "done": done, "seconds": best, "per_s": round(done / best)}


def rows() -> Iterator[dict[str, Any]]:
    for name, most in MOST.items():
        case(name, 1000)()
        for size in SIZES:
            if size <= most:
                row = measure(name, size)
                print(f"{name}: {row['done']:,} in {row['seconds']:.4f} s, {row['per_s']:,} a second", flush=True)
                yield row


def table(result: dict[str, Any]) -> str:
    """A line per size, a column per player: millions a second."""
    found = {(row["player"], row["size"]): _short(row["per_s"] / 1e6) for row in result["rows"]}
    lines = ["| size | " + " | ".join(MOST) + " |", "|---:|" + "---:|" * len(MOST)]
    for size in SIZES:
        cells = [found.get((name, size), "") for name in MOST]
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(millions: float) -> str:
    return f"{millions:,.0f}" if millions >= 1000 else f"{millions:.3g}"


def write_page(result: dict[str, Any]) -> None:
    """Put the table where the page has its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    where = f"{result['machine']}, one core, {result['date']}."
    whole = "Whole generations of GPT3-XL on `pim-gpt`, refresh on, every command of every channel accounted for:"
    parts = (BEGIN, table(result), whole, generations.table(result["generations"]), where, END)
    PAGE.write_text(before + "\n\n".join(parts) + rest.split(END)[1], encoding="utf-8")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    result = {"machine": cpu_name(), "date": date, "rows": list(rows()), "generations": list(generations.rows())}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_page(result)


if __name__ == "__main__":
    main()
