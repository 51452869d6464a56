"""Energy: exact sums, proportions, power times time, and absence where a constant is missing."""

from __future__ import annotations

import pytest
from tests.sim.strategies import machine_with

from nearbank.sim.energy import EnergyReport, energy
from nearbank.sim.energy_places import energy_by_place
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.program import Builder, Program, Start, Stream, Wait
from nearbank.sim.result import SimResult

DYNAMIC = ("activate", "read", "write", "mac_read", "mac", "io", "asic_busy")


def work(machine: Machine, rounds: int = 10) -> Program:
    b = Builder()
    with b.loop(rounds) as r:
        b.command("WRGB")
        b.command("ACT16", row=r)
        with b.loop(64) as c:
            b.command("MACAB", row=r, column=c, format="bf16")
        b.command("PREA")
        b.command("RDMAC")
        b.add(Start("asic", "sum", 20_000))
        b.command("ACT", bank=3, row=r)
        b.command("WR", bank=3, row=r)
        b.command("RD", bank=3, row=r)
        b.command("PRE", bank=3)
        b.add(Wait("asic"))
    return Program("work", (Stream(tuple(range(machine.organization.channels)), b.body()),))


def played(machine: Machine, times: int = 1) -> tuple[SimResult, EnergyReport]:
    result = simulate(machine, [work(machine)] * times)
    return result, energy(result, machine)


def test_components_sum_to_the_total() -> None:
    _, report = played(load_machine("pim-gpt"))
    assert report.total_fj == sum(v for v in report.components_fj.values() if v is not None)
    assert all(v is None or v >= 0 for v in report.components_fj.values())


def test_twice_the_work_is_twice_the_dynamic_energy() -> None:
    machine = load_machine("pim-gpt")
    # Without refresh, since opening rows again after one is work as well.
    quiet = machine.model_copy(update={"refresh": machine.refresh.model_copy(update={"policy": "none"})})
    once, twice = played(quiet)[1], played(quiet, 2)[1]
    for name in DYNAMIC:
        assert once.components_fj[name]
        assert twice.components_fj[name] == 2 * (once.components_fj[name] or 0), name


def test_background_is_standby_power_times_time_to_the_femtojoule() -> None:
    machine = load_machine("pim-gpt")
    result, report = played(machine)
    active = sum(c.open_cycles * len(c.channels) for c in result.channels)
    # 142 mA x 1.25 V = 177.5 mW = 177.5 fJ a ps; a cycle is 1000 ps.
    assert report.components_fj["background_active"] == active * 177_500
    assert report.components_fj["background_precharged"] == (8 * result.cycles - active) * 115_000


def test_hand_counted_commands() -> None:
    machine = load_machine("pim-gpt")
    result, report = played(machine)
    counts = result.command_counts()
    assert report.components_fj["activate"] == (16 * counts["ACT16"] + counts["ACT"]) * 1_500_000
    assert report.components_fj["mac"] == counts["MACAB"] * 256 * 583
    assert report.components_fj["read"] == counts["RD"] * (530 - 142) * 1250
    assert report.components_fj["write"] == counts["WR"] * (470 - 142) * 1250
    assert report.components_fj["mac_read"] == counts["MACAB"] * 16 * 256 * 284
    currents = energy(result, load_machine("pim-gpt-datasheet"))
    assert currents.components_fj["mac_read"] == counts["MACAB"] * 16 * (530 - 142) * 1250
    bursts = counts["RD"] + counts["WR"] + counts["WRGB"] + counts["RDMAC"]
    assert report.components_fj["io"] == bursts * 256 * 5500
    assert report.components_fj["refresh"] == result.refreshes * (277 - 92) * 1250 * 455
    assert report.components_fj["asic_busy"] == 10 * 20_000 * 304_590_000 // 10**6


def test_published_energies_go_before_currents() -> None:
    machine = load_machine("gddr6-aim")
    result, report = played(machine)
    counts = result.command_counts()
    assert report.components_fj["mac"] == counts["MACAB"] * 1_314_000
    assert report.components_fj["mac_read"] == 0
    assert report.components_fj["read"] == counts["RD"] * 256 * 2140


def test_a_missing_constant_makes_its_component_absent_and_no_other() -> None:
    machine = load_machine("gddr6-aim")
    result, report = played(machine, 3)
    assert result.refreshes > 0
    assert report.components_fj["refresh"] is None
    assert "refresh" in report.absent
    assert "mac" not in report.absent
    bare = machine_with("gddr6-aim").model_copy(update={"power": type(machine.power)()})
    result = simulate(bare, work(bare))
    assert energy(result, bare).absent[:4] == ("activate", "read", "write", "mac_read")


def test_nothing_costs_nothing_even_where_the_constant_is_missing() -> None:
    machine = load_machine("gddr6-aim")
    b = Builder()
    b.command("PREA")
    player = Player(machine)
    player.play(Program("idle", (Stream((0,), b.body()),)))
    assert energy(player.result(), machine).components_fj["refresh"] == 0


@pytest.mark.parametrize("name", ["pim-gpt", "gddr6-aim"])
def test_the_machines_energy_per_command_is_positive(name: str) -> None:
    _, report = played(load_machine(name))
    for component in ("activate", "read", "write", "mac", "background_active"):
        assert (report.components_fj[component] or 0) > 0


def in_bank_groups(channels: int) -> Program:
    """Single banks, four banks and all banks, not the same in every channel."""
    b, other = Builder(), Builder()
    with b.loop(9) as r:
        b.command("ACT", bank=13, row=r)
        b.command("RD", bank=13, row=r)
        b.command("PRE", bank=13)
        b.command("ACT4", bank=4, row=r)
        b.command("MAC4B", bank=4, row=r, format="bf16")
        b.command("PREA")
    other.command("WRGB")
    other.command("ACT16", row=1)
    other.command("MACAB", row=1, format="bf16")
    other.command("PREA")
    return Program("groups", (Stream((0,), b.body()), Stream(tuple(range(1, channels)), other.body())))


@pytest.mark.parametrize("name", ["pim-gpt", "gddr6-aim", "cent"])
def test_places_add_up_to_the_run(name: str) -> None:
    machine = load_machine(name)
    result = simulate(machine, [in_bank_groups(machine.organization.channels), work(machine, 7)])
    whole, places = energy(result, machine), energy_by_place(result, machine)
    for component, total in whole.components_fj.items():
        assert sum(p.energy.components_fj[component] or 0 for p in places.places) == (total or 0), component
    assert sum(places.by_channel().values()) == sum(places.by_chip().values()) == whole.total_fj
    assert sum(places.by_group(0).values()) == places.by_channel()[0]
    if machine.organization.channels_per_chip:
        chips = machine.organization.channels // machine.organization.channels_per_chip
        assert len([chip for chip in places.by_chip() if chip is not None]) == chips


def test_a_bank_group_has_what_its_banks_did() -> None:
    machine = load_machine("pim-gpt")
    places = energy_by_place(simulate(machine, in_bank_groups(8)), machine).places
    first = {p.group: p.energy.components_fj for p in places if p.channel == 0}
    assert [first[g]["activate"] for g in range(4)] == [0, 9 * 4 * 1_500_000, 0, 9 * 1_500_000]
    assert [first[g]["mac"] for g in range(4)] == [0, 9 * 4 * 16 * 583, 0, 0]
    assert first[None]["activate"] == 0
    assert first[None]["io"] == 9 * 256 * 5500
    assert [p.channel for p in places if p.energy.components_fj["asic_idle"]] in ([], [None])
