"""A machine with one thing changed, made in memory: what studies turn by a short name (`KNOBS`).

What hangs on the changed value changes with it: the length of a burst and the delays made of it with the pins' rate;
the rows per bank with fewer channels or other columns, so that a model still fits. Delays in the bank stay: nobody has
published how they grow with a row. Both are said in the new values' sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nearbank.errors import NearbankError
from nearbank.formats import format_named
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


def with_columns(machine: Machine, columns: int) -> Machine:
    """Rows of more or fewer columns; fewer or more of them, so that the capacity stays."""
    organization = machine.organization
    rows = ceil_div(organization.rows * organization.columns, columns)
    return what_if(machine, f"{columns} columns", {"organization.columns": columns, "organization.rows": rows})


def with_lanes(machine: Machine, lanes: int, weights: str = "bf16") -> Machine:
    """Other widths of the unit for `weights` in every bank; of a described unit energy and area follow."""
    fmt = format_named(weights).name
    known = machine.mac_unit.formats if machine.mac_unit else {}
    if fmt not in known:
        raise NearbankError(f"lanes: {machine.name} has no unit for {fmt}; it has: {', '.join(known) or 'none'}")
    path = f"mac_unit.formats.{fmt}." + ("unit.lanes" if known[fmt].unit else "per_step")
    return what_if(machine, f"{lanes} lanes", {path: lanes})


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


@dataclass(frozen=True)
class Knob:
    """What a short name changes: `turn(machine, value, weights)`. Values are whole numbers of `unit`."""

    about: str
    unit: str
    change: Callable[[Machine, int, str], Machine]

    def turn(self, machine: Machine, value: object, weights: str) -> Machine:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise NearbankError(f"{self.about}: expected a whole number of 1 or more{self._of()}, not {value!r}")
        return self.change(machine, value, weights)

    def _of(self) -> str:
        return f" ({self.unit})" if self.unit else ""


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "channels": Knob("channels; fewer have more rows", "", lambda m, value, w: with_channels(m, value)),
        "columns": Knob("columns of a row; the capacity stays", "", lambda m, value, w: with_columns(m, value)),
        "lanes": Knob("lanes of the unit for the weights' format", "", with_lanes),
        "buffer": Knob("global buffer of a channel", "B", lambda m, value, w: with_buffer(m, value)),
        "pin_rate": Knob("rate of a pin, and bursts with it", "Gb/s", lambda m, value, w: with_pin_rate(m, value)),
        "asic_clock": Knob("clock of the ASIC; its power stays", "MHz", lambda m, value, w: with_asic_clock(m, value)),
    }
)
