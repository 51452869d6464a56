"""Machines with one value changed: nothing else changes but what hangs on it, and times move as physics says."""

import pytest

from nearbank.models.shape import gpt_shape
from nearbank.sim.machine import Machine, load_machine
from nearbank.study import knobs
from nearbank.study.point import Outcome, Point, simulate
from nearbank.units import TIME

BASE = load_machine("pim-gpt")
SHAPE = gpt_shape("two-wide-layers", 2, 1024, 8, 2048, 64)


def outcome(machine: Machine) -> Outcome:
    return simulate(Point(SHAPE, machine, 4), lambda done: None)


def changed(machine: Machine) -> set[str]:
    """Dotted names of the values that differ from the base machine, but for sources and the name."""
    return {
        name for name, value in flat(machine).items() if flat(BASE)[name] != value and not name.endswith(_UNCOMPARED)
    }


_UNCOMPARED = ("name", "source", "verified")


def flat(machine: Machine) -> dict[str, object]:
    def walk(node: object, path: str) -> dict[str, object]:
        if not isinstance(node, dict):
            return {path: node}
        return {name: value for key, child in node.items() for name, value in walk(child, f"{path}.{key}").items()}

    return walk(machine.model_dump(mode="json", by_alias=True), "")


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        (knobs.with_asic_clock(BASE, 100), {".asic.clock.value"}),
        (knobs.with_channels(BASE, 16), {".organization.channels"}),
        (knobs.with_channels(BASE, 2), {".organization.channels", ".organization.rows"}),
        (knobs.with_lanes(BASE, 8), {".mac_unit.formats.bf16.per_step"}),
        (knobs.with_buffer(BASE, 512), {".global_buffer.size.value"}),
        (
            knobs.with_pin_rate(BASE, 4),
            {".pins.rate.value"} | {f".timing.{name}.value" for name in ("tBL", "tRTW", "tWRMAC", "tWRCP")},
        ),
    ],
)
def test_only_what_belongs_together_changes(machine: Machine, names: set[str]) -> None:
    assert changed(machine) == names
    assert machine.digest != BASE.digest


def test_the_published_values_give_the_published_machine_back() -> None:
    for same in (knobs.with_pin_rate(BASE, 16), knobs.with_channels(BASE, 8), knobs.with_lanes(BASE, 16)):
        assert changed(same) == set()


def test_capacity_stays_with_fewer_channels() -> None:
    for channels in (1, 2, 3, 4, 8):
        assert knobs.with_channels(BASE, channels).organization.total_bytes >= BASE.organization.total_bytes


def test_a_burst_takes_its_bits_over_the_pins() -> None:
    slow = knobs.with_pin_rate(BASE, 2)
    assert TIME.parse(slow.timing["tBL"].value) == 32 * 8 * 1000 // (16 * 2)


def test_times_move_as_they_must() -> None:
    base = outcome(BASE).time_ns
    assert outcome(knobs.with_asic_clock(BASE, 100)).time_ns > base
    assert outcome(knobs.with_lanes(BASE, 4)).time_ns > 2 * base
    assert outcome(knobs.with_lanes(BASE, 32)).time_ns == base  # a column holds 16 values
    assert outcome(knobs.with_pin_rate(BASE, 2)).time_ns > base
    assert 1.5 * base < outcome(knobs.with_channels(BASE, 4)).time_ns < 2.1 * base
