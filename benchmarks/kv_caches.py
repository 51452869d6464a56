"""What kinds of KV cache cost on PIM, and where they are dequantised:

    python benchmarks/kv_caches.py

GPT3-XL in bf16, 32 decode steps that end at 1,024 positions (a KIVI group becomes full once), command by command.
Writes benchmarks/results/kv_caches.json and the table in docs/mapping.md; times are simulated ones.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from nearbank.mapping import MappingOptions, Plan, command_counts, plan
from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.trace import Step
from nearbank.workload import sketch_workload

MODEL, CONTEXT, STEPS = "gpt3-xl", 1024, 32
CACHES = ("bf16", "int8", "int4", "int2", "int8-past", "int4-past", "int4-wkv", "int8-kivi", "int4-kivi", "int2-kivi")
MACHINES = ("pim-gpt", "pim-gpt-lowbit")
LABELS = ("append", "flush", "scales", "score", "softmax", "context")
ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/kv_caches.json", ROOT / "docs/mapping.md"
BEGIN, END = "<!-- made by benchmarks/kv_caches.py -->", "<!-- end of kv_caches.py -->"


def cost(machine_name: str, kv: str) -> dict[str, Any]:
    """Microseconds per token, bytes of the cache at the end of the run, bytes of scales over the pins per token."""
    load, machine = sketch_workload(MODEL, 1, CONTEXT, kv=kv), load_machine(machine_name)
    placed = plan(load.model, machine, MappingOptions(kv=kv, max_context=CONTEXT))
    steps = list(islice(load.steps(), CONTEXT - STEPS, None))
    player = Player(machine)
    for step in steps:
        player.play(placed.lower(step))
    result = player.result()
    each = machine.tck_ps / 1e6 / STEPS
    return {
        "machine": machine_name,
        "kv": kv,
        "us": result.cycles * each,
        **{f"{name}_us": result.label_cycles.get(name, 0) * each for name in LABELS},
        "cache_bytes": load.model.layers * sum(r.data_bytes for r in placed.placement.cache.regions),
        "read_bytes": _read_bytes(placed, steps) // STEPS,
    }


def _read_bytes(placed: Plan, steps: list[Step]) -> int:
    """Bytes read from rows over the pins: scales, and full groups of a window."""
    counts = sum(
        (command_counts(placed.lower(step)) for step in steps), start=type(command_counts(placed.lower(steps[0])))()
    )
    return counts["RD", ""] * placed.target.column_bytes


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| machine | cache | µs/token | " + " | ".join(LABELS) + " | cache, MB | read over the pins, KB |",
        "|---" * (len(LABELS) + 5) + "|",
    ]
    for r in rows:
        parts = " | ".join(f"{r[f'{name}_us']:.1f}" for name in LABELS)
        sizes = f"{r['cache_bytes'] / 1e6:.1f} | {r['read_bytes'] / 1e3:.0f}"
        lines.append(f"| {r['machine']} | {r['kv']} | {r['us']:.1f} | {parts} | {sizes} |")
    return "\n".join(lines)


def main() -> None:
    """Play, write and print."""
    rows = []
    for machine in MACHINES:
        for kv in CACHES:
            rows.append(cost(machine, kv))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
