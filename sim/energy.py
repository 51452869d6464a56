"""Energy of a run, by component, in exact integers.

Two families of constants feed it: datasheet currents, by DRAMPower's equations (Chandrasekar et al.), and published
energies per command or per bit, which go before the currents where a machine gives both. Counts are multiplied in
zeptojoules (1 nW x 1 ps), as fractions where a constant is divided, so nothing is rounded before the end; then every
component is rounded down to a femtojoule and the total is their sum. Parts of a whole (channels, bank groups, windows
of time) are rounded so that they add up to it: each is the whole up to its end less the whole up to its beginning. A
component whose constant is not known is None, never 0, unless nothing happened in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from nearbank import units
from nearbank.sim.constants import Constant
from nearbank.sim.machine import Asic, Currents, Machine
from nearbank.sim.result import SimResult
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.standard import LOAD_SCALES, MAC_AND_SCALE, CommandSpec, Effect, Row

ZJ_PER_FJ = 10**6

# Column accesses in the array, per bank reached: AF looks one up; EWMUL multiplies two banks of four into a third.
_ARRAY_READS = {"AF": (1, 1), "EWMUL": (1, 2)}
_ARRAY_WRITES = {"EWMUL": (1, 4)}


@dataclass(frozen=True)
class Activity:
    """What the energy depends on, of the whole run or of a part: some channels, some banks, some time.

    `commands` counts those on the command bus by (name, MAC format), `banks` the banks they reached; a part that is a
    bank group has banks alone, and what its channel has to itself, such as the pins, has commands alone.
    """

    commands: Mapping[tuple[str, str], int]
    banks: Mapping[tuple[str, str], int]
    active_ps: int
    precharged_ps: int
    time_ps: int
    busy_ps: Mapping[str, int]


@dataclass(frozen=True)
class EnergyReport:
    """Femtojoules by component; `total_fj` is the sum of the known ones, `absent` names the others."""

    components_fj: Mapping[str, int | None]

    @property
    def total_fj(self) -> int:
        return sum(value for value in self.components_fj.values() if value is not None)

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.components_fj.items() if value is None)


def activity(result: SimResult, machine: Machine) -> Activity:
    """The run as the energy model sees it."""
    tck = result.tck_ps
    commands = result.commands()
    return Activity(
        commands=commands,
        banks=banks_reached(commands, rulebook(machine)),
        active_ps=tck * sum(c.open_cycles * len(c.channels) for c in result.channels),
        precharged_ps=tck * sum(c.precharged_cycles * len(c.channels) for c in result.channels),
        time_ps=result.time_ps,
        busy_ps=result.unit_busy_ps(),
    )


def banks_reached(commands: Mapping[tuple[str, str], int], book: RuleBook) -> dict[tuple[str, str], int]:
    """How many banks these commands reached, each counted as often as it was."""
    return {(name, weights): n * book.reach[name] for (name, weights), n in commands.items()}


def energy(result: SimResult, machine: Machine) -> EnergyReport:
    """The run's energy by component."""
    return rounded([exact_energy(activity(result, machine), machine)])[0]


Exact = Mapping[str, Fraction | int | None]


def exact_energy(what: Activity, machine: Machine) -> Exact:
    """The energy of any activity on the machine, in zeptojoules, not rounded."""
    model = _Model(machine, rulebook(machine))
    return {name: component(model, what) for name, component in _COMPONENTS.items()}


def rounded(parts: Sequence[Exact]) -> list[EnergyReport]:
    """Whole femtojoules of the parts of a whole, in order; they add up to the whole's own, component by component."""
    columns = {name: _telescoped([part[name] for part in parts]) for name in _COMPONENTS}
    return [EnergyReport({name: column[i] for name, column in columns.items()}) for i in range(len(parts))]


def _telescoped(parts: Sequence[Fraction | int | None]) -> list[int | None]:
    """Each part as the rounded sum up to its end less that up to its beginning; None stays None."""
    result: list[int | None] = []
    done: Fraction | int = 0
    for part in parts:
        before = done // ZJ_PER_FJ
        done += part or 0
        result.append(None if part is None else done // ZJ_PER_FJ - before)
    return result


@dataclass(frozen=True)
class _Model:
    """The machine's constants, in zeptojoules and nanowatts."""

    machine: Machine
    book: RuleBook

    @property
    def currents(self) -> Currents | None:
        return self.machine.power.currents

    @property
    def asic(self) -> Asic | None:
        return self.machine.asic

    @property
    def column_bits(self) -> int:
        return 8 * self.machine.organization.column_bytes

    def published(self, name: str) -> int | None:
        """An energy per command or bit from the machine file."""
        commands = self.machine.power.commands
        return _energy_zj(getattr(commands, name) if commands else None)

    def time_ps(self, *names: str) -> int | None:
        """The first of these timing values that the machine has."""
        known = (self.machine.timing[n].value for n in names if n in self.machine.timing)
        return next((units.TIME.parse(value) for value in known), None)

    @cached_property
    def burst_ps(self) -> int | None:
        return self.time_ps("tBL", "tCCD", "tCCDS", "tCCD_S")

    def over_standby(self, name: str, standby: str, time_ps: int | None) -> int | None:
        """(IDDx - standby) · VDD · time, or None without the currents."""
        if self.currents is None or time_ps is None:
            return None
        return (_current(self.currents, name) - _current(self.currents, standby)) * _millivolts(self) * time_ps


def _energy_zj(constant: Constant | None) -> int | None:
    return None if constant is None else units.ENERGY.parse(constant.value) * ZJ_PER_FJ


def _current(currents: Currents, name: str) -> int:
    return units.CURRENT.parse(getattr(currents, name).value)


def _millivolts(model: _Model) -> int:
    assert model.currents is not None
    return units.VOLTAGE.parse(model.currents.VDD.value)


def _times(count: Fraction | int, each: Fraction | int | None) -> Fraction | int | None:
    """The product; nothing costs nothing, known or not."""
    if count == 0:
        return 0
    return None if each is None else count * each


def _per_bank(model: _Model, what: Activity, weight: Callable[[CommandSpec], tuple[int, int]]) -> Fraction:
    """Σ over commands of banks reached x weight."""
    total = Fraction(0)
    for (name, _), banks in what.banks.items():
        times, per = weight(model.book.specs[name])
        total += Fraction(banks * times, per)
    return total


def _activate(model: _Model, what: Activity) -> Fraction | int | None:
    """Opening and closing a row: IDD0 over a row cycle less the standby currents it contains."""
    banks = _per_bank(model, what, lambda spec: (int(spec.effect is Effect.OPENS), 1))
    return _times(banks, _known(model.published("activate_per_bank"), _activate_from_currents(model)))


def _activate_from_currents(model: _Model) -> int | None:
    currents, ras, cycle = model.currents, model.time_ps("tRAS"), model.time_ps("tRC")
    if currents is None or ras is None or cycle is None:
        return None
    standby = _current(currents, "IDD3N") * ras + _current(currents, "IDD2N") * (cycle - ras)
    each = (_current(currents, "IDD0") * cycle - standby) * _millivolts(model)
    return each if each > 0 else None  # a negative difference means that the currents contradict each other


def _known(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def _read(model: _Model, what: Activity) -> Fraction | int | None:
    columns = _per_bank(model, what, _reads)
    return _times(columns, _read_column(model))


def _read_column(model: _Model) -> int | None:
    per_bit = model.published("read_per_bit")
    from_currents = model.over_standby("IDD4R", "IDD3N", model.burst_ps)
    return from_currents if per_bit is None else per_bit * model.column_bits


def _reads(spec: CommandSpec) -> tuple[int, int]:
    if spec.name in _ARRAY_READS:
        return _ARRAY_READS[spec.name]
    return int(spec.row is Row.OPEN and spec.name.startswith("RD")), 1


def _write(model: _Model, what: Activity) -> Fraction | int | None:
    columns = _per_bank(model, what, _writes)
    per_bit = model.published("write_per_bit")
    from_currents = model.over_standby("IDD4W", "IDD3N", model.burst_ps)
    return _times(columns, from_currents if per_bit is None else per_bit * model.column_bits)


def _writes(spec: CommandSpec) -> tuple[int, int]:
    if spec.name in _ARRAY_WRITES:
        return _ARRAY_WRITES[spec.name]
    return int(spec.row is Row.OPEN and spec.name.startswith("WR")), 1


def _mac_read(model: _Model, what: Activity) -> Fraction | int | None:
    """Columns, of scales too, from the arrays to the MAC units; contained in `mac_all_banks` where that is published.

    Without a constant of its own a column costs what a read costs, way to the pins included: an upper bound.
    """
    if model.published("mac_all_banks") is not None:
        return 0
    per_bit = model.published("mac_read_per_bit")
    each = _read_column(model) if per_bit is None else per_bit * model.column_bits
    return _times(_per_bank(model, what, lambda spec: (int(spec.macs or spec.name == LOAD_SCALES), 1)), each)


def _mac(model: _Model, what: Activity) -> Fraction | int | None:
    """Arithmetic of the MAC units, by weight format, with that of scales."""
    total: Fraction | int = 0
    for (name, weights), banks in what.banks.items():
        if model.book.specs[name].macs and banks:
            each = _mac_in_a_bank(model, weights)
            scale = _scale_in_a_bank(model, weights) if name == MAC_AND_SCALE else 0
            if each is None or scale is None:
                return None
            total += banks * (each + scale)
    return total


def _mac_in_a_bank(model: _Model, weights: str) -> Fraction | None:
    everything = model.published("mac_all_banks")
    if everything is not None:
        return Fraction(everything, model.book.banks)
    formats = model.machine.mac_unit.formats if model.machine.mac_unit else {}
    lanes = formats.get(weights) if weights else (next(iter(formats.values())) if len(formats) == 1 else None)
    each = _energy_zj(lanes.energy_per_mac) if lanes else None
    return None if lanes is None or each is None else Fraction(lanes.per_step * each, lanes.serial)


def _scale_in_a_bank(model: _Model, weights: str) -> int | None:
    """What the end of a group costs beyond a MAC."""
    formats = model.machine.mac_unit.formats if model.machine.mac_unit else {}
    return _energy_zj(formats[weights].energy_per_scale) if weights in formats else None


def _global_buffer(model: _Model, what: Activity) -> Fraction | int | None:
    """Writes of the input vector into the buffer."""
    count = sum(n for (name, _), n in what.commands.items() if name == "WRGB")
    per_bit = _energy_zj(model.machine.power.global_buffer_per_bit)
    return _times(count, None if per_bit is None else per_bit * model.column_bits)


def _io(model: _Model, what: Activity) -> Fraction | int | None:
    """Bursts over the pins."""
    bursts = sum(n * model.book.specs[name].bursts for (name, _), n in what.commands.items())
    per_bit = _energy_zj(model.machine.power.io_per_bit)
    return _times(bursts, None if per_bit is None else per_bit * model.column_bits)


def _refresh(model: _Model, what: Activity) -> Fraction | int | None:
    """IDD5B over tRFC, less the precharged standby that the background has already counted."""
    standard = model.book.standard
    names = (standard.refresh, standard.refresh_bank)
    banks = sum(n for (name, _), n in what.banks.items() if name in names)
    published = model.published("refresh_all_banks")
    each = _known(published, model.over_standby("IDD5B", "IDD2N", model.time_ps("tRFC")))
    return _times(banks, None if each is None else Fraction(each, model.book.banks))


def _background_active(model: _Model, what: Activity) -> Fraction | int | None:
    return _times(what.active_ps, _standby_nw(model, "standby_active", "IDD3N"))


def _background_precharged(model: _Model, what: Activity) -> Fraction | int | None:
    return _times(what.precharged_ps, _standby_nw(model, "standby_precharged", "IDD2N"))


def _standby_nw(model: _Model, published: str, current: str) -> int | None:
    """Standby power of one channel in nanowatts."""
    commands = model.machine.power.commands
    constant: Constant | None = getattr(commands, published) if commands else None
    if constant is not None:
        return units.POWER.parse(constant.value)
    return None if model.currents is None else _current(model.currents, current) * _millivolts(model)


def _asic_busy(model: _Model, what: Activity) -> Fraction | int | None:
    busy = what.busy_ps.get("asic", 0)
    return _times(busy, None if model.asic is None else units.POWER.parse(model.asic.power.value))


def _asic_idle(model: _Model, what: Activity) -> Fraction | int | None:
    if model.asic is None:
        return 0
    idle = model.asic.idle_power
    rest = what.time_ps - what.busy_ps.get("asic", 0)
    return _times(rest, None if idle is None else units.POWER.parse(idle.value))


_COMPONENTS: Mapping[str, Callable[[_Model, Activity], Fraction | int | None]] = {
    "activate": _activate,
    "read": _read,
    "write": _write,
    "mac_read": _mac_read,
    "mac": _mac,
    "global_buffer": _global_buffer,
    "io": _io,
    "refresh": _refresh,
    "background_active": _background_active,
    "background_precharged": _background_precharged,
    "asic_busy": _asic_busy,
    "asic_idle": _asic_idle,
}
