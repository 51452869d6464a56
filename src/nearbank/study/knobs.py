"""A machine with one thing changed, made in memory: what sensitivities are studied on.

What hangs on the changed value changes with it: the length of a burst and the delays made of it with the pins' rate;
the rows per bank with fewer channels, so that a model still fits. Both are said in the new values' sources.
"""

from __future__ import annotations

from typing import Any

from nearbank.sim.machine import Machine
from nearbank.sim.variant import what_if
from nearbank.units import TIME, ceil_div

_SOURCE = "changed for a sensitivity"


def with_asic_clock(machine: Machine, mhz: int) -> Machine:
    """Another clock of the ASIC; its power is left, so only times are to be read."""
    return what_if(machine, f"ASIC at {mhz} MHz", {"asic.clock": _constant(f"{mhz} MHz")})


def with_channels(machine: Machine, channels: int) -> Machine:
    """More or fewer channels; fewer have more rows per bank, so that the capacity stays."""
    organization = machine.organization
    rows = organization.rows * max(ceil_div(organization.channels, channels), 1)
    return what_if(machine, f"{channels} channels", {"organization.channels": channels, "organization.rows": rows})


def with_lanes(machine: Machine, lanes: int) -> Machine:
    """Other widths of the bf16 unit of every bank."""
    return what_if(machine, f"{lanes} lanes", {"mac_unit.formats.bf16.per_step": lanes})


def with_buffer(machine: Machine, size_bytes: int) -> Machine:
    """Another size of the global buffer."""
    return what_if(machine, f"{size_bytes} B buffer", {"global_buffer.size": _constant(f"{size_bytes} B")})


def with_pin_rate(machine: Machine, gb_per_s: int) -> Machine:
    """Another rate of the pins, and with it the time of a burst and the delays that contain one."""
    bits = 8 * machine.organization.column_bytes
    burst = ceil_div(bits * 1000, machine.pins.width * gb_per_s)
    t = {name: TIME.parse(constant.value) for name, constant in machine.timing.items()}
    times = {
        "tBL": burst,
        "tRTW": t["tCL"] + burst - t["tCWL"] + machine.tck_ps,
        "tWRMAC": t["tCWL"] + burst,
        "tWRCP": t["tCWL"] + burst + t["tWR"],
    }
    values: dict[str, Any] = {f"timing.{name}": _constant(TIME.format(ps)) for name, ps in times.items()}
    return what_if(machine, f"pins at {gb_per_s} Gb/s", {"pins.rate": _constant(f"{gb_per_s} Gb/s"), **values})


def with_mac_read(machine: Machine, name: str, fj_per_bit: int, source: str) -> Machine:
    """Another energy of a column's way to the MAC unit beside its bank; `name` tells it from others."""
    cost = _constant(f"{fj_per_bit} fJ", source)
    return what_if(machine, name, {"power.commands.mac_read_per_bit": cost})


def _constant(value: str, source: str = _SOURCE) -> dict[str, Any]:
    return {"value": value, "source": source, "verified": False}
