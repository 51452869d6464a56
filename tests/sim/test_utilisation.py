"""Utilisation of bins adds up to the run's, and a stream of MACs reaches the roof."""

from __future__ import annotations

import pytest

from nearbank.errors import NearbankError
from nearbank.sim.engine import simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.utilisation import placed, roof, utilisation


def gemv(rows: int, columns: int) -> Program:
    b = Builder()
    b.command("WRGB")
    with b.loop(rows) as r:
        b.command("ACT16", row=r)
        with b.loop(columns):
            b.command("MACAB", row=r, format="bf16")
        b.command("PREA")
        b.command("RDMAC")
    return Program("gemv", (Stream(tuple(range(4)), b.body()),))


@pytest.mark.parametrize("name", ["pim-gpt", "cent"])
def test_bins_add_up_and_nothing_is_busier_than_it_can_be(name: str) -> None:
    machine = load_machine(name)
    result = simulate(machine, gemv(300, 64), bins=32)
    assert result.profile is not None
    whole = utilisation(result.channels, machine)
    bins = [utilisation(parts, machine) for parts in result.profile.bins]
    for part, own in whole.items():
        assert sum(b[part].busy for b in bins) == own.busy
        assert sum(b[part].available for b in bins) == own.available
        assert 0 < own.share <= 1


@pytest.mark.parametrize("name", ["pim-gpt", "gddr6-aim"])
def test_a_stream_of_macs_reaches_the_roof_of_its_channels(name: str) -> None:
    machine = load_machine(name)
    quiet = machine.model_copy(update={"refresh": machine.refresh.model_copy(update={"policy": "none"})})
    used = min(machine.organization.channels, 2)
    program = Program("stream", (Stream(tuple(range(used)), gemv(1, 200_000).streams[0].body),))
    result = simulate(quiet, program)
    share = used / machine.organization.channels
    assert placed(result, quiet).macs_per_s == pytest.approx(share * roof(quiet, "bf16").macs_per_s, rel=0.001)
    assert utilisation(result.channels, quiet)["MAC units"].share == pytest.approx(share, rel=0.001)


def test_a_machine_without_units_has_no_roof() -> None:
    with pytest.raises(NearbankError, match="no roofline for 'bf16'"):
        roof(load_machine("ddr4"), "bf16")
