"""A power budget is kept by engine, reference and checker alike, and costs what its arithmetic says."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.sim.strategies import changes, machine_with, programs
from tests.sim.test_engine import assert_same_commands, reference_of, statistics

from nearbank.errors import NearbankError
from nearbank.sim.checker import Flat, check
from nearbank.sim.constants import Constant
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import Machine, PowerModel, load_machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.throttle import explain_budget, power_delays, with_units


def budgeted(machine: Machine, budget: str) -> Machine:
    constant = Constant(value=budget, source="test")
    return machine.model_copy(update={"power": machine.power.model_copy(update={"budget_per_channel": constant})})


def rows(count: int, macs: int) -> Program:
    b = Builder()
    with b.loop(count) as r:
        b.command("ACT16", row=r)
        with b.loop(macs) as c:
            b.command("MACAB", row=r, column=c, format="bf16")
        b.command("PREA")
    return Program("rows", (Stream((0,), b.body()),))


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], int, Program]:
    changed = draw(changes())
    milliwatts = draw(st.integers(700, 20000))
    assume(possible(machine_with(**changed), milliwatts))
    return changed, milliwatts, draw(programs(machine_with(**changed)))


def possible(machine: Machine, milliwatts: int) -> bool:
    """False where refresh, which these machines do very often, takes the whole budget."""
    try:
        power_delays(budgeted(machine, f"{milliwatts} mW"))
    except NearbankError:
        return False
    return True


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(cases())
def test_engine_equals_reference_within_a_budget(case: tuple[dict[str, Any], int, Program]) -> None:
    machine = budgeted(machine_with(**case[0]), f"{case[1]} mW")
    slow, fast = reference_of(machine, [case[2]]), simulate(machine, [case[2]])
    assert list(fast.program_ends) == slow.ends
    assert [statistics(c) for c in fast.channels] == [statistics(c) for c in slow.channels]
    assert_same_commands(machine, [case[2]], slow)


def energies_fj() -> dict[str, int]:
    """PIM-GPT's commands by its file: 16 activations of 1,500 pJ; 16 columns, each to 16 lanes of 583 fJ."""
    power = load_machine("pim-gpt").power
    assert power.commands is not None
    assert power.commands.mac_read_per_bit is not None
    per_bit = int(power.commands.mac_read_per_bit.value.removesuffix(" fJ"))
    return {"ACT16": 16 * 1_500_000, "MACAB": 16 * (16 * 583 + 256 * per_bit), "PREA": 0}


STANDBY_UW = 142 * 1250  # IDD3N at 1.25 V


@pytest.mark.parametrize("milliwatts", [300, 500, 1000, 5000])
def test_delays_are_energy_over_what_the_budget_leaves(milliwatts: int) -> None:
    delays = power_delays(budgeted(load_machine("pim-gpt"), f"{milliwatts} mW"))
    for name in ("ACT16", "MACAB"):
        spare_uw = 1000 * milliwatts - STANDBY_UW
        assert delays[f"tPOWER_{name}"] == ceil(energies_fj()[name] / spare_uw)  # fJ in a clock of 1 ns are uW


@pytest.mark.parametrize("milliwatts", [400, 1000])
def test_no_stretch_of_time_takes_more_than_the_budget_and_one_command(milliwatts: int) -> None:
    machine = budgeted(load_machine("pim-gpt"), f"{milliwatts} mW")
    issued = [i for i in Player(machine).record(rows(6, 20), 0, 10**6) if i.command in energies_fj()]
    fj = [energies_fj()[i.command] for i in issued]
    most = max(fj)
    for first in range(len(issued)):
        taken = 0
        for last in range(first, len(issued)):
            taken += fj[last]
            ns = issued[last].cycle - issued[first].cycle
            assert taken <= ns * (1000 * milliwatts - STANDBY_UW) + most


def test_macs_are_spaced_and_the_run_says_why() -> None:
    plain, tight = load_machine("pim-gpt"), budgeted(load_machine("pim-gpt"), "500 mW")
    spacing = power_delays(tight)["tPOWER_MACAB"]
    assert spacing > 1
    more, fewer = (simulate(tight, [rows(1, n)]).cycles for n in (60, 50))
    assert more - fewer == 10 * spacing
    result = simulate(tight, [rows(50, 60)])
    assert result.stalls()["tPOWER_MACAB"] > result.cycles / 3
    assert "500 mW per channel holds" in (explain_budget(tight, result) or "")
    assert explain_budget(plain, simulate(plain, [rows(1, 9)])) is None
    early = [Flat(0, "ACT16", row=1), Flat(200, "MACAB", row=1), Flat(200 + spacing - 1, "MACAB", row=1)]
    assert "tPOWER_MACAB" in str(check(tight, early))


def test_a_budget_that_never_binds_changes_nothing() -> None:
    plain = load_machine("pim-gpt")
    assert simulate(budgeted(plain, "100 W"), [rows(20, 64)]).cycles == simulate(plain, [rows(20, 64)]).cycles


def test_budgets_without_meaning_are_refused() -> None:
    with pytest.raises(NearbankError, match="most of the 6825 clocks between refreshes would go to REFab"):
        power_delays(budgeted(load_machine("pim-gpt"), "185 mW"))
    with pytest.raises(NearbankError, match=r"100 mW is not more than what a channel takes with open rows, 177500 uW"):
        power_delays(budgeted(load_machine("pim-gpt"), "100 mW"))
    unknown = load_machine("pim-gpt").model_copy(update={"power": PowerModel()})
    with pytest.raises(NearbankError, match="needs the energy of ACT, but the machine has no constant for activate"):
        power_delays(budgeted(unknown, "1 W"))


def test_only_units_that_a_run_uses_count() -> None:
    """pim-gpt-lowbit's dearest unit, int2/bf16, takes 41 pJ a column, bf16 9.3, int8 4.8; a column's way 72.7 pJ."""
    lowbit = budgeted(load_machine("pim-gpt-lowbit"), "700 mW")
    used = with_units(lowbit, {"bf16", "int8"})
    per_clock_fj = 700_000 - STANDBY_UW  # uW x 1 ns
    for machine, unit_fj in ((lowbit, 128 * 323), (used, 16 * 583)):
        assert power_delays(machine)["tPOWER_MACAB"] == ceil(16 * (256 * 284 + unit_fj) / per_clock_fj)
    assert power_delays(used)["tPOWER_MACAB"] < power_delays(lowbit)["tPOWER_MACAB"]
    assert with_units(load_machine("pim-gpt-lowbit"), {"bf16"}) is load_machine("pim-gpt-lowbit")


def test_a_mac_that_scales_is_spaced_where_units_scale() -> None:
    scales = power_delays(budgeted(load_machine("pim-gpt-scales"), "700 mW"))
    per_clock_fj = 700_000 - STANDBY_UW
    assert scales["tPOWER_MACSC"] == ceil(16 * (256 * 284 + 256 * 34 + 2051) / per_clock_fj)
    assert scales["tPOWER_LDSC"] == ceil(16 * 256 * 284 / per_clock_fj)
    assert "tPOWER_MACSC" not in power_delays(budgeted(load_machine("pim-gpt"), "700 mW"))
