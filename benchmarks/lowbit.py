"""What low-bit weights are worth on banks made for them: their units, a decode step of GPT3-XL, what holds it back.

    python benchmarks/lowbit.py            the tables of docs/machine.md, as Markdown

Every row is a step at 128 tokens of context, played command by command; speed is against bf16 on PIM-GPT's banks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice

from nearbank.formats import FORMATS
from nearbank.mapping import MappingOptions, plan
from nearbank.mapping.account import MACS
from nearbank.mapping.search import plan_best
from nearbank.sim.constants import Constant
from nearbank.sim.engine import Player
from nearbank.sim.mac_unit import Process, UnitDesign, unit_costs, unit_formats
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.result import SimResult
from nearbank.sim.throttle import PREFIX, power_delays
from nearbank.workload import sketch_workload

MODEL, CONTEXT = "gpt3-xl", 128


@dataclass(frozen=True)
class Case:
    """A machine, the format of the block matrices and of the LM head; another budget per channel or accumulators.

    `inputs` of the blocks' integer weights; `auto`: by the automatic mapper.
    """

    machine: str
    weights: str
    head: str
    budget: str = ""
    accumulators: int | None = None
    inputs: str | None = None
    auto: bool = False


SPEED = (
    Case("pim-gpt", "bf16", "bf16"),
    Case("pim-gpt", "ternary", "bf16"),
    Case("pim-gpt-ternary", "ternary", "bf16", accumulators=1),
    Case("pim-gpt-ternary", "ternary", "bf16"),
    Case("pim-gpt-ternary", "ternary-tensor", "bf16"),
    Case("pim-gpt-ternary", "ternary-tensor", "int8-tensor"),
    Case("pim-gpt-ternary", "ternary-tensor", "ternary-tensor"),
    Case("pim-gpt-lowbit", "ternary-tensor", "bf16"),
    Case("pim-gpt-lowbit", "ternary-tensor", "bf16", auto=True),
    Case("pim-gpt-lowbit", "ternary-tensor", "int8-tensor"),
    Case("pim-gpt-lowbit", "ternary-tensor", "int8-tensor", auto=True),
    Case("pim-gpt-lowbit", "ternary", "int8"),
    Case("pim-gpt-lowbit", "ternary-tensor", "int8-tensor", inputs="ternary"),
    Case("pim-gpt-lowbit", "ternary-tensor", "ternary-tensor"),
    Case("pim-gpt-lowbit", "ternary-b3-tensor", "int8-tensor"),
    Case("pim-gpt-lowbit", "int8-tensor", "int8-tensor"),
    Case("pim-gpt-lowbit", "int4", "int8-tensor"),
    Case("pim-gpt-scales", "int4", "int8-tensor"),
    Case("pim-gpt-lowbit", "binary-tensor", "int8-tensor"),
    Case("pim-gpt-lowbit", "binary-tensor", "binary-tensor"),
)
UNITS = (
    ("bf16/bf16", UnitDesign()),
    ("int8/bf16", UnitDesign()),
    ("int8/bf16", UnitDesign(lanes=16)),
    ("int4/bf16", UnitDesign()),
    ("int4/bf16", UnitDesign(lanes=16)),
    ("int2/bf16", UnitDesign()),
    ("int2/bf16", UnitDesign(lanes=16)),
    ("int8/int8", UnitDesign()),
    ("int4/int8", UnitDesign()),
    ("int2/int8", UnitDesign()),
    ("int8/int8", UnitDesign(scales="bf16")),
    ("int4/int8", UnitDesign(scales="bf16")),
    ("int4/int8", UnitDesign(scales="fp32")),
    ("int2/int8", UnitDesign(scales="bf16")),
    ("ternary/int8", UnitDesign()),
    ("ternary/int8", UnitDesign(lanes=32)),
    ("ternary/int8", UnitDesign(bits_per_step=1)),
    ("ternary/ternary", UnitDesign()),
    ("ternary/ternary", UnitDesign(bits_per_step=1)),
    ("ternary-b3/int8", UnitDesign()),
    ("binary/int8", UnitDesign()),
    ("binary/ternary", UnitDesign()),
    ("binary/binary", UnitDesign()),
)
PUBLISHED_FJ = 583  # PIM-GPT's bf16 unit
POWER = tuple(
    Case(machine, weights, "bf16", budget)
    for machine, weights in (("pim-gpt", "bf16"), ("pim-gpt-ternary", "ternary-tensor"))
    for budget in ("", "2 W", "1 W", "700 mW", "500 mW")
)


def machine_of(case: Case) -> Machine:
    """The machine with the case's budget or accumulators."""
    machine = load_machine(case.machine)
    if case.accumulators and machine.mac_unit:
        unit = machine.mac_unit.model_copy(update={"accumulators": case.accumulators})
        machine = machine.model_copy(update={"mac_unit": unit})
    if not case.budget:
        return machine
    power = machine.power.model_copy(
        update={"budget_per_channel": Constant(value=case.budget, source="what if", verified=False)}
    )
    return machine.model_copy(update={"power": power})


def step(case: Case) -> SimResult:
    """One decode step whose token attends `CONTEXT` positions."""
    machine = machine_of(case)
    load = sketch_workload(MODEL, CONTEXT - 2, 2, case.weights)
    options = MappingOptions(weights=case.weights, head=case.head, inputs=case.inputs, max_context=CONTEXT)
    found = plan_best(load.model, machine, options, load.steps()).plan if case.auto else None
    placed = found or plan(load.model, machine, options)
    player = Player(placed.machine)
    for work in islice(load.steps(), 1, None):
        player.play(placed.lower(work))
    return player.result()


def shares(counts: dict[str, int], total: int, count: int) -> str:
    """The largest of these shares of the time, in words."""
    largest = sorted(counts.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {100 * cycles / total:.0f} %" for name, cycles in largest)


def cycles_of_channels(result: SimResult) -> int:
    return sum(channel.cycles * len(channel.channels) for channel in result.channels)


def unit_table() -> None:
    process = Process(node_nm=28, source="PIM-GPT: 28 nm")
    routed, bare = (
        unit_costs(FORMATS["bf16"], UnitDesign(), 32, process.model_copy(update={"routing": r})).energy_per_mac_fj
        for r in (process.routing, 1)
    )
    scale = PUBLISHED_FJ / routed
    print(f"Model of PIM-GPT's bf16 unit: {routed} fJ ({bare} without routing); published: {PUBLISHED_FJ} fJ.")
    print()
    print("| weights | activations | lanes | clocks per column | limited by | tree | fJ per MAC | fJ per group | µm² |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, design in UNITS:
        weights, activations = unit_formats(name)
        unit = unit_costs(FORMATS[weights], design, 32, process, scale, activations)
        bits = design.bits_per_step
        inputs = activations + (f", {bits} bit a clock" if bits else "")
        tree = f"{unit.tree_bits} bits" if unit.tree_bits else "fp"
        inputs += f"; scales {design.scales}" if design.scales else ""
        costs = f"{unit.energy_per_mac_fj} | {unit.energy_per_scale_fj or '–'} | {unit.area_um2}"
        print(f"| {weights} | {inputs} | {unit.lanes} | {unit.steps} | {unit.limit} | {tree} | {costs} |")


def speed_table() -> None:
    print("| machine | weights | LM head | µs | speed | MAC units | longest parts | idle for |")
    print("|---|---|---|---|---|---|---|---|")
    base = None
    for case in SPEED:
        result = step(case)
        base = base or result.time_ps
        counts = result.command_counts()
        macs = sum(counts[name] for name in MACS) / cycles_of_channels(result)
        parts = shares(dict(result.label_cycles), result.cycles, 3)
        idle = shares(dict(result.stalls()), cycles_of_channels(result), 4)
        time = f"{result.time_ps / 1e6:.1f} | {base / result.time_ps:.2f} × | {100 * macs:.0f} %"
        name = case.machine + (f", {case.accumulators} accumulator" if case.accumulators else "")
        name += (", auto" if case.auto else "") + (f", {case.inputs} inputs" if case.inputs else "")
        print(f"| {name} | {case.weights} | {case.head} | {time} | {parts} | {idle} |")


def power_table() -> None:
    print("| machine | weights | budget per channel | clocks after ACT16, MACAB | µs | held back |")
    print("|---|---|---|---|---|---|")
    for case in POWER:
        result, delays = step(case), power_delays(machine_of(case))
        clocks = ", ".join(str(delays[f"{PREFIX}{name}"]) for name in ("ACT16", "MACAB")) if delays else "–"
        held = sum(cycles for reason, cycles in result.stalls().items() if reason.startswith(PREFIX))
        share = f"{100 * held / cycles_of_channels(result):.0f} %" if delays else "–"
        time = f"{result.time_ps / 1e6:.1f}"
        print(f"| {case.machine} | {case.weights} | {case.budget or 'none'} | {clocks} | {time} | {share} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(f"{sys.argv[0]}: takes no arguments")
    unit_table()
    print()
    speed_table()
    print()
    power_table()
