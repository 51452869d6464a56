"""What the AiM simulator leaves out: its own cycles beside those with every rule on, and what each rule costs.

    python benchmarks/aim_rules.py [TRACE ...]

prints a table of cycles; without traces, of a GEMV and of one of CENT's transformer blocks. "Without" rows switch one
thing off on the machine `cent`, gddr6-aim with 32 channels, and say how much less time the trace takes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nearbank.cli.output import console
from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.readers import aim_gemv, replay_file

_BLOCK = Path(__file__).parents[1] / "tests" / "sim" / "data" / "aim" / "cent_llama2_7b_tp8_seq128.txt.gz"
_HONEST = "gddr6-aim, 32 channels"
_WITHOUT = {
    "refresh": (),
    "tFAW": ("tFAW",),
    "turning the pins (tRTW, tWTR)": ("tRTW", "tWTRS", "tWTRL"),
    "MAC latency (tMACRD, tWRMAC)": ("tMACRD", "tWRMAC"),
    "register mode (tMODCH)": ("tMODCH",),
}


def machines() -> dict[str, Machine]:
    """The peer, the honest machine, and that one with one thing off at a time, by the name of the row."""
    honest = load_machine("cent")
    off = {f"without {name}": _without(honest, names) for name, names in _WITHOUT.items()}
    peer = load_machine("gddr6-aim-peer")
    slow = honest.model_copy(update={"timing": {**honest.timing, **peer.timing}})
    return {"gddr6-aim-peer": peer, _HONEST: honest, "with the peer's delays": slow, **off}


def _without(machine: Machine, names: tuple[str, ...]) -> Machine:
    refresh = machine.refresh if names else machine.refresh.model_copy(update={"policy": "none"})
    timing = {name: value for name, value in machine.timing.items() if name not in names}
    return machine.model_copy(update={"timing": timing, "refresh": refresh})


def table(traces: Mapping[str, Path]) -> str:
    """A Markdown table of cycles by machine and trace."""
    rows = {
        name: [replay_file(path, machine).cycles for path in traces.values()] for name, machine in machines().items()
    }
    lines = ["| machine | " + " | ".join(traces) + " |", "|---" * (len(traces) + 1) + "|"]
    honest = rows[_HONEST]
    for name, cycles in rows.items():
        cells = [
            f"{now:,}" if now == full else f"{now:,} ({100 * (now / full - 1):+.2f} %)"
            for now, full in zip(cycles, honest, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(files: list[str]) -> None:
    """Print the table for these traces, or for the two of the documentation."""
    if files:
        print(table({Path(name).name: Path(name) for name in files}))
        return
    with tempfile.TemporaryDirectory() as folder:
        gemv = Path(folder) / "gemv.txt"
        gemv.write_text("\n".join(aim_gemv(4096, 4096, channels=32)) + "\n", encoding="ascii")
        print(table({"GEMV 4096x4096": gemv, "CENT, Llama-2-7B block": _BLOCK}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except NearbankError as error:
        console().print(str(error))
        raise SystemExit(2) from None
