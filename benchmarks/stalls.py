"""What the cycles of a token's command buses go to under the published mapping, for PIM-GPT's eight models:

    python benchmarks/stalls.py

Writes a table in docs/mapping.md: percent of all cycles of all channels, over the steps that the automatic mapper
samples. bf16 on `pim-gpt`, 1,024 tokens; cycles are simulated ones, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nearbank.mapping.search import sample
from nearbank.replay import plan_of
from nearbank.sim.engine import simulate
from nearbank.workload import sketch_workload

MODELS = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-large", "gpt3-xl")
TOKENS = 1024
PAGE = Path(__file__).parent.parent / "docs/mapping.md"
BEGIN, END = "<!-- made by benchmarks/stalls.py -->", "<!-- end of stalls.py -->"
COMMANDS = {"MAC": ("MACAB",), "vectors": ("WRGB",), "reads": ("RDMAC",), "K, V": ("WR",)}
HELD = {
    "tRTP": ("tRTP",),
    "tRP": ("tRP",),
    "tRCD": ("tRCD",),
    "tMACRD": ("tMACRD",),
    "refresh": ("refresh", "tRFC"),
    "ASIC": ("wait asic",),
}
REST = "other"


def shares(model: str) -> dict[str, float]:
    """Percent of the cycles by what they were for, or what held the next command."""
    load = sketch_workload(model, 1, TOKENS)
    placed = plan_of(load, "pim-gpt")
    result = simulate(placed.machine, [placed.lower(step) for step in sample(list(load.steps()))])
    channels = placed.machine.organization.channels
    found = _percent(COMMANDS, result.command_counts(), result.cycles * channels)
    found |= _percent(HELD, result.stalls(), result.cycles * channels)
    return found | {REST: 100 - sum(found.values())}


def _percent(names: Mapping[str, tuple[str, ...]], counts: Mapping[str, int], whole: int) -> dict[str, float]:
    return {name: 100 * sum(counts[each] for each in parts) / whole for name, parts in names.items()}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One model a line."""
    names = [*COMMANDS, *HELD, REST]
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {model} | {' | '.join(f'{found[name]:.1f}' for name in names)} |" for model, found in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Simulate, write and print."""
    text = table({model: shares(model) for model in MODELS})
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(text)


if __name__ == "__main__":
    main()
