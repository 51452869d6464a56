"""The machine as a mapping sees it: counts, capacities and the few delays that decide between layouts.

Read once from a `Machine`; plain integers from there on. What formats the banks can multiply is asked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nearbank.errors import NearbankError
from nearbank.formats import Format, format_named
from nearbank.mapping.asic import AsicModel
from nearbank.mapping.choices import Choices
from nearbank.sim.mac_unit import ACTIVATION_BITS, unit_formats
from nearbank.sim.machine import Lanes, Machine, MacUnit
from nearbank.sim.standard import MAC_AND_SCALE, delay_cycles
from nearbank.sim.standards import standard_named
from nearbank.units import ceil_div


@dataclass(frozen=True, slots=True)
class ColumnUse:
    """How the values of a format lie in one column access and go through a bank's MAC unit.

    `format` may name scales ("int4-g64"); `mac_format` names the MAC unit, which knows only the codes.

    `values` per column; `lanes` of them are multiplied in one MAC command, so that a column takes `steps` commands.
    A unit with more lanes than a column has values is limited by the column: then lanes = values. Steps are equal: of
    lanes that do not divide a column some stay idle. In a serial unit each step of the lanes is `serial` MAC commands,
    which take some bits of the activations each. `scales`: the format of the scales that the unit applies, "" for none.
    """

    format: str
    mac_format: str
    values: int
    lanes: int
    steps: int
    serial: int = 1
    scales: str = ""

    def columns(self, width: int) -> int:
        """Columns for `width` values of one output."""
        return ceil_div(width, self.values)

    def steps_for(self, width: int) -> int:
        """MAC commands per column for outputs of `width` values: fewer where they do not fill one column."""
        return ceil_div(min(width, self.values), self.lanes) * self.serial

    def multiplied(self, steps: int) -> int:
        """Values that `steps` MAC commands multiply."""
        return steps // self.serial * self.lanes


@dataclass(frozen=True, slots=True)
class MacLanes:
    """A unit's lanes: weights per step, MAC commands per step, whether its activations are integers only, of `bits`;
    the format of the scales that it applies, "" for none."""

    per_step: int
    serial: int = 1
    integer: bool = False
    bits: int = 8
    scales: str = ""

    def takes(self, inputs: str) -> bool:
        """True where the unit multiplies with activations of that format: any, or integers of so many bits."""
        return not self.integer or (not _lookup(inputs).is_float and ACTIVATION_BITS.get(inputs, 8) <= self.bits)


@dataclass(frozen=True, slots=True)
class Target:
    """Sizes in bytes, delays in clock cycles; and the choices of the mapping that is made for the machine.

    `row_change`: from the last MAC of a row to the first of the next. `readout`: what a read of the accumulators in
    the middle of a row keeps the MAC units from working. `scaling`: what a scaled sum takes longer.
    """

    name: str
    channels: int
    banks: int
    rows: int
    columns: int
    column_bytes: int
    buffer_bytes: int
    accumulator_bytes: int
    accumulators: int
    lanes: tuple[tuple[str, MacLanes], ...]
    row_change: int
    readout: int
    tck_ps: int
    asic: AsicModel
    choices: Choices = Choices()  # noqa: RUF009  (frozen)
    scaling: int = 0

    @property
    def row_bytes(self) -> int:
        return self.columns * self.column_bytes

    @property
    def read_bursts(self) -> int:
        """Bursts that read the accumulators of all banks of a channel once."""
        return ceil_div(self.banks * self.accumulator_bytes, self.column_bytes)

    @property
    def row_in_all_banks(self) -> int:
        """Bytes of one row in every bank of every channel."""
        return self.row_bytes * self.banks * self.channels

    def bursts(self, size_bytes: int) -> int:
        return ceil_div(size_bytes, self.column_bytes)

    def vector_bursts(self, values: int, bits: int) -> int:
        """Bursts of `values` activations of `bits` each."""
        return ceil_div(values * bits, 8 * self.column_bytes)

    def use(self, fmt: Format, inputs: str = "", whose: str = "") -> ColumnUse:
        """Columns and MAC steps of a format; `NearbankError` when the MAC units do not have it, or not for `inputs`.

        `whose` says in an error what is kept in the format and which option changes it.
        """
        name = self._unit_for(fmt.name, inputs)
        if name is None:
            raise NearbankError(f"machine {self.name}: {self._lacks(fmt.name, inputs)}{f' ({whose})' if whose else ''}")
        return self._column_use(fmt, name)

    def _lacks(self, weights: str, inputs: str) -> str:
        """What the banks have instead of a unit for weights, or for a pair."""
        names = [name for name, _ in self.lanes]
        if all(unit_formats(name)[0] != weights for name in names):
            return f"its MAC units have no format {weights!r}; they have: {', '.join(names)}"
        able = dict.fromkeys(unit_formats(name)[0] for name in names)
        fitting = ", ".join(w for w in able if self._unit_for(w, inputs)) or "none"
        return f"its banks have no unit for {weights} with {inputs}; they have, with {inputs}: {fitting}"

    def use_of_unit(self, name: str) -> ColumnUse:
        """The same for the weights of a unit, by its name."""
        return self._column_use(_lookup(unit_formats(name)[0]), name)

    def _unit_for(self, weights: str, inputs: str) -> str | None:
        """The unit for a pair, or one for the weights alone that takes such inputs; without `inputs` the first."""
        known, pair = dict(self.lanes), f"{weights}/{inputs}"
        if not inputs:
            return next((name for name in known if unit_formats(name)[0] == weights), None)
        if pair in known:
            return pair
        return weights if weights in known and known[weights].takes(inputs) else None

    def _column_use(self, fmt: Format, name: str) -> ColumnUse:
        have = dict(self.lanes)[name]
        values = int(8 * self.column_bytes / fmt.code_bits)
        lanes = max(n for n in range(1, min(have.per_step, values) + 1) if values % n == 0)
        steps = ceil_div(values, lanes) * have.serial
        return ColumnUse(fmt.spec, name, values, lanes, steps, have.serial, have.scales)

    def outputs_of(self, channel: int, n: int, split: int = 1) -> int:
        """Outputs in each bank of a channel when n are dealt out, a bank's worth to one channel after another.

        `split` channels share each output. All channels take the same number, some of them padding, where that adds
        little (`Choices.padding` percent): one program for all.
        """
        groups, teams = ceil_div(n, self.banks), self.channels // split
        share, extra = divmod(groups, teams)
        if extra and 100 * (teams - extra) <= self.choices.padding * groups:
            return share + 1
        return share + (channel // split < extra)


@lru_cache(maxsize=64)
def _lookup(name: str) -> Format:
    return format_named(name)


def activation_bits(name: str) -> int:
    """Bits of one activation of a format, packed; `NearbankError` when vectors cannot have it."""
    if name not in ACTIVATION_BITS:
        raise NearbankError(f"format {name!r} cannot hold activations; expected one of: {', '.join(ACTIVATION_BITS)}")
    return ACTIVATION_BITS[name]


def value_bytes(name: str) -> int:
    """Bytes of one activation of a format of whole bytes."""
    return ceil_div(activation_bits(name), 8)


def _bits(lanes: Lanes) -> int:
    """Bits of the integers that a unit for any integer activations takes: 8 unless it is described."""
    return (lanes.unit and lanes.unit.activation_bits) or 8


def _check_scaling(machine: Machine, mac: MacUnit) -> None:
    """Units that scale need the commands for it."""
    scaling = [name for name, lanes in mac.formats.items() if lanes.scales]
    if scaling and MAC_AND_SCALE not in {command.name for command in standard_named(machine.standard).commands}:
        raise NearbankError(
            f"machine {machine.name}: mac_unit.formats.{scaling[0]}: standard {machine.standard} has no commands for "
            "units that scale; leave out scales, or use gddr6-aim"
        )


def target_of(machine: Machine, choices: Choices | None = None) -> Target:
    """The mapping's view of a machine; `NearbankError` says what a machine lacks for this mapping."""
    mac, buffer, asic = machine.mac_unit, machine.global_buffer, machine.asic
    if mac is None or buffer is None or asic is None:
        parts = {"MAC units": mac, "a global buffer": buffer, "an ASIC": asic}
        missing = " and ".join(name for name, part in parts.items() if part is None)
        raise NearbankError(f"machine {machine.name} lacks {missing}, which mapping a model needs; use pim-gpt")
    _check_scaling(machine, mac)
    organization = machine.organization
    cycles = {name: machine.cycles(name) for name in machine.timing}
    return Target(
        name=machine.name,
        channels=organization.channels,
        banks=organization.banks,
        rows=organization.rows,
        columns=organization.columns,
        column_bytes=organization.column_bytes,
        buffer_bytes=buffer.bytes,
        accumulator_bytes=mac.accumulator_bytes,
        accumulators=mac.accumulators,
        lanes=tuple(
            (name, MacLanes(x.per_step, x.serial, x.activations == "integer", _bits(x), x.scales or ""))
            for name, x in mac.formats.items()
        ),
        row_change=delay_cycles("tRTP + tRP + tRCDRDMAC|tRCDRD|tRCD", cycles),
        readout=delay_cycles("tMACRD|0", cycles),
        tck_ps=machine.tck_ps,
        asic=AsicModel.of(asic),
        choices=choices or Choices(),
        scaling=delay_cycles("tMACSC|0", cycles),
    )
