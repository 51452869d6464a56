"""HBM-PIM against Samsung's PIMSimulator, and its table of timing rules: engine = reference, every rule exact."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.strategies import machine_with

from nearbank.errors import NearbankError
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player, simulate
from nearbank.sim.hbm_pim import elementwise, gemv
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Start, Stream, Wait
from nearbank.sim.reference import Reference
from nearbank.sim.requests import Trace, serve
from nearbank.sim.standards.hbm_pim import ALL_BANK_ROW, REGISTER_ROW, SINGLE_BANK_ROW
from nearbank.units import ceil_div

DATA = Path(__file__).parent / "data" / "hbm-pim.csv"


def gemv_rows(column: str) -> list[tuple[int, int, int]]:
    with DATA.open() as file:
        rows = [row for row in csv.DictReader(file) if row["kernel"] == "gemv"]
    return [(int(r["out_dim"]), int(r["in_dim"]), int(r[column])) for r in rows]


def elementwise_rows() -> list[tuple[str, int, int]]:
    with DATA.open() as file:
        rows = [row for row in csv.DictReader(file) if row["kernel"] != "gemv"]
    return [(r["kernel"], int(r["out_dim"]), int(r["pim_cycles"])) for r in rows]


def after_half_an_interval(program: Program) -> int:
    """Cycles of a program whose first refresh comes tREFI / 2 after its start, as the peer's (two ranks in turn)."""
    player = Player(load_machine("hbm-pim"))
    begin = player.play(Program("idle", (Stream((0,), (Start("host", "idle", 1_950_000), Wait("host"))),)))
    return player.play(program) - begin


@pytest.mark.parametrize(("outputs", "inputs", "cycles"), gemv_rows("pim_cycles"))
def test_gemv_takes_the_cycles_of_the_peer(outputs: int, inputs: int, cycles: int) -> None:
    """Within 1.5 %, or 80 cycles before and after the tiles: we wait tRP before a refresh and before all-bank mode."""
    ours = after_half_an_interval(gemv(load_machine("hbm-pim"), outputs, inputs))
    assert cycles <= ours <= max(1.015 * cycles, cycles + 80)


@pytest.mark.parametrize(("kernel", "numbers", "cycles"), elementwise_rows())
def test_elementwise_takes_the_cycles_of_the_peer(kernel: str, numbers: int, cycles: int) -> None:
    """Within 1 %, but for a refresh: the multiplication's last is due 76 cycles before the peer's end."""
    machine = load_machine("hbm-pim")
    ours = after_half_an_interval(elementwise(machine, numbers, 1 if kernel == "relu" else 2))
    spared = machine.cycles("tRFC") + 2 * machine.cycles("tRP") if kernel == "mul" else 0
    assert ours - spared == pytest.approx(cycles, rel=0.01)


@pytest.mark.parametrize(("outputs", "inputs", "cycles"), gemv_rows("host_cycles"))
def test_plain_memory_takes_the_cycles_of_the_peer(outputs: int, inputs: int, cycles: int) -> None:
    """One of 64 pseudo-channels: weights and inputs read, outputs written, and again the vectors; within 2 %."""
    assert plain_cycles(outputs, inputs) == pytest.approx(cycles, rel=0.02)


def plain_cycles(outputs: int, inputs: int) -> int:
    machine = load_machine("hbm2-pimsimulator")
    one = machine.model_copy(update={"organization": machine.organization.model_copy(update={"channels": 1})})
    moved = [(outputs * inputs, False), (inputs, False), (outputs, True), (inputs, False), (outputs, True)]
    writes = np.concatenate([np.full(ceil_div(numbers * 2, 32 * 64), write) for numbers, write in moved])
    addresses = np.arange(len(writes), dtype=np.uint64) * np.uint64(32)
    return serve(one, Trace.at_once(addresses, writes), until="answered").cycles


def test_gemv_reads_every_weight_once() -> None:
    """One tile of 4,096 outputs, 5 chunks of inputs: 64 columns each in 8 of 16 banks of 64 pseudo-channels."""
    result = simulate(load_machine("hbm-pim"), gemv(load_machine("hbm-pim"), 4096, 5 * 128))
    commands = result.commands()
    assert commands["RDAB", "fp16"] == 64 * 5 * 64
    assert commands["RDAB", "fp16"] * 8 * 16 == 4096 * 5 * 128
    assert commands["WRAB", ""] == 64 * 8
    assert commands["WRREG", ""] == 64 * (5 * 8 + 1 + 2 + 2)  # inputs, program, into and out of PIM mode, back


@pytest.mark.parametrize(
    "program",
    [gemv(load_machine("hbm-pim"), 5000, 400), *(elementwise(load_machine("hbm-pim"), 10**6, n) for n in (1, 2))],
    ids=lambda p: p.name,
)
def test_programs_are_legal_and_the_reference_plays_them_alike(program: Program) -> None:
    machine = load_machine("hbm-pim")
    issued = Player(machine).record(program, 0, 10**5)
    slow = Reference(machine)
    slow.play(program)
    ours = [(i.cycle, i.command, i.row) for i in issued]
    assert ours == [(p.cycle, p.name, p.row) for p in slow.channels[0].log]
    assert check(machine, [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued]) is None


@pytest.mark.parametrize(
    ("machine", "outputs", "inputs", "message"),
    [
        ("gddr6-aim", 16, 16, "standard gddr6-aim; expected hbm-pim"),
        ("hbm-pim", 0, 16, "matrix of 0 x 16"),
        ("hbm-pim", 10**6, 10**4, "are not reserved"),
    ],
)
def test_gemv_refuses(machine: str, outputs: int, inputs: int, message: str) -> None:
    with pytest.raises(NearbankError, match=message):
        gemv(load_machine(machine), outputs, inputs)


def enter_pim_mode(b: Builder) -> None:
    """The shortest way from single-bank mode to PIM mode."""
    b.command("ACT", bank=12, row=ALL_BANK_ROW)
    b.command("WR", bank=12, row=ALL_BANK_ROW)
    b.command("PREA")
    b.command("ACTAB", bank=0, row=REGISTER_ROW)
    b.command("WRREG", bank=0, row=REGISTER_ROW)
    b.command("PREA")


def leave_pim_mode(b: Builder) -> None:
    b.command("ACTAB", bank=0, row=REGISTER_ROW)
    b.command("WRREG", bank=0, row=REGISTER_ROW)
    b.command("ACTAB", bank=8, row=SINGLE_BANK_ROW)
    b.command("WRREG", bank=8, row=SINGLE_BANK_ROW)
    b.command("PREA")


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Rows opened by halves, banks or all at once, columns in between, halves of unlike rows across refreshes."""
    b, in_pim_mode = Builder(), False
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("half", "halves", "all", "single")))
        if in_pim_mode != (kind != "single"):
            in_pim_mode = not in_pim_mode
            enter_pim_mode(b) if in_pim_mode else leave_pim_mode(b)
        with b.loop(draw(st.integers(1, 30))) as i:
            row = draw(st.integers(0, 9)) + i * draw(st.integers(0, 1))
            first = {"half": 8 * draw(st.integers(0, 1)), "single": draw(st.integers(0, 15))}.get(kind, 0)
            if kind in ("half", "halves"):
                b.command("ACTAB", bank=first, row=row)
                if kind == "halves":
                    b.command("ACTAB", bank=8, row=row + draw(st.integers(0, 1)))
                names = ["RDAB", "WRAB", "WRREG"]
            else:
                b.command("ACT16" if kind == "all" else "ACT", bank=first, row=row)
                names = ["MACAB", "RDAB"] if kind == "all" else ["RD", "WR", "MACSB"]
            for name in draw(st.lists(st.sampled_from(names), max_size=4)):
                b.command(name, bank=first, row=row)
            if draw(st.booleans()):
                b.command(draw(st.sampled_from(("RDMAC", "WRGB", "WRBIAS", "TMOD"))))
            if kind == "half" and draw(st.booleans()):
                b.command("PREAB", bank=first)
            else:
                b.command("PREA")
    return Program("random", (Stream((0,), b.body()),))


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(0, 12), st.integers(0, 12), st.integers(30, 300))
def test_engine_is_the_reference(program: Program, short: int, long: int, room: int) -> None:
    times = dict.fromkeys(("tRCDRD", "tRP", "tRTP", "tCCDL", "tRRDL", "tWTRL", "tRTW", "tWR"), short)
    times |= dict.fromkeys(("tRCDWR", "tCCDAB", "tCWL"), long)
    machine = machine_with("hbm-pim", **times, tRFC=20, tREFI=150 + room, organization={"channels": 1})
    fast, slow = Player(machine), Reference(machine)
    issued = fast.record(program, 0, 10**6)
    assert fast.cycle == slow.play(program)
    banks = [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued]
    assert [(f.cycle, f.command) for f in banks] == [(p.cycle, p.name) for p in slow.channels[0].log]
    assert check(machine, banks) is None
    assert Player(machine, fast_forward=False).play(program) == fast.cycle


def test_refresh_reopens_half_by_half() -> None:
    machine = load_machine("hbm-pim")
    b = Builder()
    enter_pim_mode(b)
    b.command("ACTAB", bank=0, row=1)
    b.command("ACTAB", bank=8, row=2)
    with b.loop(2000):
        b.command("RDAB", bank=8, row=2)
    commands = simulate(machine, Program("p", (Stream((0,), b.body()),))).commands()
    assert commands["REFab", ""] == 2 * machine.organization.channels
    assert (commands["ACTAB", ""], commands.get(("ACT", ""), 0)) == (3 + 2 * 2, 1)
