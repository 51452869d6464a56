"""Power over windows adds up to the energy of the run, and its peak stands where the work is."""

from __future__ import annotations

import pytest
from tests.sim.strategies import machine_with

from nearbank.errors import NearbankError
from nearbank.sim.energy import energy
from nearbank.sim.engine import Player
from nearbank.sim.power import average_nw, peak_nw, power
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


@pytest.mark.parametrize("window", [1, 997, 5000, 10**6])
def test_windows_add_up_to_the_run(window: int) -> None:
    player = Player(MACHINE)
    issued = player.record(busy_then_idle(), 0, 10**5)
    windows = power(MACHINE, issued, 0, player.cycle, window)
    whole = energy(player.result(), MACHINE).components_fj
    for name in ("activate", "mac_read", "refresh", "background_active", "background_precharged"):
        assert sum(w.energy.components_fj[name] or 0 for w in windows) == whole[name], name
    assert sum(w.cycles for w in windows) == player.cycle


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
