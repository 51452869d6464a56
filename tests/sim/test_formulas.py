"""Times and rates against closed forms, within half a percent."""

from __future__ import annotations

import pytest
from tests.sim.strategies import machine_with

from nearbank.sim.engine import simulate
from nearbank.sim.machine import Machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.result import SimResult

WITHIN = 0.005


def run(machine: Machine, b: Builder) -> SimResult:
    channels = tuple(range(machine.organization.channels))
    return simulate(machine, Program("formula", (Stream(channels, b.body()),)))


def gemv(rows: int) -> Builder:
    """Per row of every bank: open, 64 MACs, close, read the accumulators."""
    b = Builder()
    with b.loop(rows) as r:
        b.command("ACT16", row=r)
        with b.loop(64) as c:
            b.command("MACAB", row=r, column=c, format="bf16")
        b.command("PREA")
        b.command("RDMAC")
    return b


def test_peak_streaming_is_one_column_every_tccd() -> None:
    machine = machine_with(policy="none", tCCD=2)
    b = Builder()
    b.command("ACT", bank=3, row=7)
    with b.loop(100_000):
        b.command("RD", bank=3, row=7)
    result = run(machine, b)
    bytes_per_s = result.command_counts()["RD"] * machine.organization.column_bytes / (result.time_ps * 1e-12)
    assert bytes_per_s == pytest.approx(machine.organization.channels * 32 / 2e-9, rel=WITHIN)


def test_random_rows_of_one_bank_take_a_row_cycle_each() -> None:
    machine = machine_with(policy="none")
    b = Builder()
    with b.loop(5000) as r:
        b.command("ACT", bank=1, row=r)
        b.command("RD", bank=1, row=r)
        b.command("PRE", bank=1)
    assert run(machine, b).cycles == pytest.approx(5000 * machine.cycles("tRC"), rel=WITHIN)


def test_random_rows_of_all_banks_are_bound_by_tfaw() -> None:
    machine = machine_with(policy="none", tFAW=20, tRRDS=3, tRRDL=3, tRAS=20, tRC=32)
    b = Builder()
    with b.loop(500) as r:
        for bank in (0, 4, 8, 12, 1, 5, 9, 13):
            b.command("ACT", bank=bank, row=r)
        b.command("PREA")
    cycles = run(machine, b).cycles
    # The eighth ACT stands three tRRDS into the second window; it is closed after tRAS, and opened after tRP again.
    round_cycles = 20 + 3 * 3 + machine.cycles("tRAS") + machine.cycles("tRP")
    assert cycles == pytest.approx(500 * round_cycles, rel=WITHIN)


@pytest.mark.parametrize("columns_ns", [1, 2])
def test_gemv_takes_its_loop_nests_time(columns_ns: int) -> None:
    machine = machine_with(policy="none", tCCD=columns_ns)
    rows = 3000
    row_cycles = machine.cycles("tRCD") + 63 * columns_ns + machine.cycles("tRTP") + machine.cycles("tRP")
    assert run(machine, gemv(rows)).cycles == pytest.approx(rows * row_cycles, rel=WITHIN)


def test_refresh_costs_its_share() -> None:
    rows = 16_000
    without = run(machine_with(policy="none"), gemv(rows))
    machine = machine_with()
    result = run(machine, gemv(rows))
    # Closed (tRTP after a MAC), tRP, refreshed, opened, and tRCD until the MACs go on.
    each = sum(machine.cycles(name) for name in ("tRTP", "tRP", "tRFC", "tRCD"))
    share = each / machine.cycles("tREFI")
    assert result.cycles == pytest.approx(without.cycles / (1 - share), rel=WITHIN)
    assert result.refreshes == 8 * (result.cycles // machine.cycles("tREFI"))


def test_one_row_miss_in_64_columns() -> None:
    assert run(machine_with(policy="none"), gemv(100)).row_hit_rate == 63 / 64


def test_channels_do_not_slow_each_other() -> None:
    one = run(machine_with(organization={"channels": 1}), gemv(100))
    many = run(machine_with(organization={"channels": 32}), gemv(100))
    assert many.cycles == one.cycles
    assert many.command_counts()["MACAB"] == 32 * one.command_counts()["MACAB"]
