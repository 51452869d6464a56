"""What a whole generation of GPT3-XL costs to play on `pim-gpt`, refresh on, every command accounted for:

    python benchmarks/generations.py [TOKENS ...]

Each count of tokens runs in a process of its own, whose peak memory it is, after a generation of four tokens that loads
the compiled code. Seconds are CPU time of sketching, lowering, compiling and playing. `engine_growth.py` puts the rows
into `benchmarks/results/engine.json` and `docs/simulator.md`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nearbank.models.zoo import find_shape
from nearbank.replay import replay
from nearbank.workload import Workload, shape_workload

TOKENS = (1024, 8192)
MODEL, MACHINE = "gpt3-xl", "pim-gpt"


def workload(tokens: int) -> Workload:
    """So many tokens after a prompt of one, in a context that holds them."""
    shape = find_shape(MODEL)
    return shape_workload(replace(shape, context=max(shape.context, tokens)), 1, tokens)


def measure(tokens: int) -> dict[str, Any]:
    """One row."""
    replay(workload(4), MACHINE)
    started = time.process_time()
    result = replay(workload(tokens), MACHINE).result
    seconds = time.process_time() - started
    return {
        "tokens": tokens,
        "cycles": result.cycles,
        "commands": sum(result.command_counts().values()),
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def rows(counts: Sequence[int] = TOKENS) -> Iterator[dict[str, Any]]:
    """A row for each count, from a process of its own."""
    for tokens in counts:
        command = [sys.executable, __file__, "--here", str(tokens)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout)
        print(f"{tokens:,} tokens: {row['commands']:,} commands in {row['seconds']:.2f} s of CPU, "
              f"{row['peak_memory_mb']} MB", flush=True)  # fmt: skip
        yield row


def table(found: Sequence[dict[str, Any]]) -> str:
    """A line per generation; times as they are and as multiples of the first."""
    lines = ["| tokens | commands | cycles | CPU, s | times the first | peak memory, MB |", "|---:|" + "---:|" * 5]
    for row in found:
        cells = [f"{row[name]:,}" for name in ("tokens", "commands", "cycles")]
        cells += [f"{row['seconds']:.2f}", f"{row['seconds'] / found[0]['seconds']:.1f}", str(row["peak_memory_mb"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        print(table(list(rows([int(count) for count in sys.argv[1:]] or TOKENS))))
