"""Power over windows adds up to the energy of the run, and its peak stands where the work is."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.sim.strategies import changes, machine_with, programs

from nearbank.errors import NearbankError
from nearbank.sim.constants import Constant
from nearbank.sim.energy import EnergyReport, energy
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.power import Window, average_nw, peak_nw, power, profile_power
from nearbank.sim.program import Builder, Program, Start, Stream, Wait

MACHINE = machine_with(organization={"channels": 1})


def busy_then_idle() -> Program:
    b = Builder()
    with b.loop(50) as r:
        b.command("ACT16", row=r)
        with b.loop(64) as c:
            b.command("MACAB", row=r, column=c)
        b.command("PREA")
    b.add(Start("asic", "think", 20_000_000))
    b.add(Wait("asic"))
    b.command("ACT", bank=2, row=1)
    return Program("power", (Stream((0,), b.body()),))


def same_components(windows: tuple[Window, ...], whole: EnergyReport) -> None:
    """The windows add up to the run, component by component, but for the units, which are not in them."""
    for name, total in whole.components_fj.items():
        if not name.startswith("asic"):
            assert sum(w.energy.components_fj[name] or 0 for w in windows) == (total or 0), name


@pytest.mark.parametrize("window", [1, 997, 5000, 10**6])
def test_windows_add_up_to_the_run(window: int) -> None:
    player = Player(MACHINE)
    issued = player.record(busy_then_idle(), 0, 10**5)
    windows = power(MACHINE, issued, 0, player.cycle, window)
    same_components(windows, energy(player.result(), MACHINE))
    assert sum(w.cycles for w in windows) == player.cycle
    assert all(w.power_nw * w.time_ps == w.energy.total_fj * 10**6 for w in windows)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data(), st.sampled_from([2, 6, 40]))
def test_a_profile_is_the_recorded_commands_in_bins(data: st.DataObject, bins: int) -> None:
    changed = data.draw(changes())
    machine = machine_with(**changed)
    program = data.draw(programs(machine))
    result = simulate(machine, [program, program], bins=bins)
    recorder = Player(machine, fast_forward=False)
    issued = [i for _ in range(2) for i in recorder.record(program, 0, result.cycles)]
    assume(result.cycles)  # a run without commands has no profile
    assert result.profile is not None
    edges = result.profile.edges
    assert (edges[0], edges[-1]) == (0, result.cycles)
    assert len(edges) - 2 <= bins
    for (begin, end), parts in zip(pairwise(edges), result.profile.bins, strict=True):
        for part in parts:
            own = [i for i in issued if i.channel == part.channels[0] and begin <= i.cycle < end]
            assert dict(part.commands) == Counter((i.command, i.format) for i in own)
            assert sum(part.stalls.values()) == end - begin - len(own) == part.idle_cycles
    for at, whole in enumerate(result.channels):
        parts = [channels[at] for channels in result.profile.bins]
        for name in ("row_hits", "bank_misses", "bank_hits", "open_cycles", "open_bank_cycles", "refreshes"):
            assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name
        assert sum((Counter(part.stalls) for part in parts), Counter()) == Counter(whole.stalls)
    same_components(profile_power(result, machine), energy(result, machine))


def test_rounding_loses_nothing() -> None:
    """A sixteenth of 1,001 fJ is no whole number: windows rounded each by itself would lose some."""
    aim = load_machine("gddr6-aim")
    odd = aim.power.commands.model_copy(update={"mac_all_banks": Constant(value="1.001 pJ", source="test")})
    machine = aim.model_copy(update={"power": aim.power.model_copy(update={"commands": odd})})
    b = Builder()
    b.command("ACT", bank=3, row=1)
    with b.loop(5000):
        b.command("MACSB", bank=3, row=1, format="bf16")
    b.command("PREA")
    result = simulate(machine, Program("odd", (Stream((0,), b.body()),)), bins=64)
    windows = profile_power(result, machine)
    assert sum(w.energy.components_fj["mac"] or 0 for w in windows) == 5000 * 1001 // 16
    assert len({w.energy.components_fj["mac"] for w in windows}) > 2
    same_components(windows, energy(result, machine))


def test_bins_end_where_recorded_windows_do() -> None:
    player = Player(MACHINE, bins=64)
    issued = player.record(busy_then_idle(), 0, 10**5)
    windows = profile_power(player.result(), MACHINE)
    assert windows == power(MACHINE, issued, 0, player.cycle, windows[0].cycles)


def test_the_peak_is_in_the_busy_part() -> None:
    player = Player(MACHINE)
    issued = player.record(busy_then_idle(), 0, 10**5)
    windows = power(MACHINE, issued, 0, player.cycle, 1000)
    assert peak_nw(windows) > 2 * average_nw(windows)
    assert max(windows, key=lambda w: w.power_nw).first < 5000
    # 92 mA x 1.25 V while nothing is open and nothing happens
    assert min(w.power_nw for w in windows) == 115_000_000


def test_windows_must_be_in_order() -> None:
    with pytest.raises(NearbankError, match="windows of 0 cycles from 0 to 10"):
        power(MACHINE, [], 0, 10, 0)


def test_power_needs_a_profile() -> None:
    with pytest.raises(NearbankError, match="no profile"):
        profile_power(simulate(MACHINE, busy_then_idle()), MACHINE)
    with pytest.raises(NearbankError, match="profile of 3 bins"):
        Player(MACHINE, bins=3)
