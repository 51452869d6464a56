"""The machine a program runs on: organisation, timing, MAC units, buffers, ASIC and power, read from a YAML file.

Every constant carries its unit and its source, and says when nobody checked it. Unknown keys, missing units and
contradictions are refused here, so that everything after this module can trust what it is given. A file may extend
another one (`extends: pim-gpt`) and override any value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from nearbank import units
from nearbank.errors import NearbankError
from nearbank.sim.constants import Area, BitRate, Count, Current, Energy, Frequency, Power, Size, Strict, Time, Voltage
from nearbank.sim.mac_unit import Process, ScaleFormat, UnitDesign, unit_formats, with_derived
from nearbank.sim.policy import Policy
from nearbank.sim.standards import standard_named, timing_names

_MACHINES = Path(__file__).parent / "machines"
MACHINE_SCHEMA = "nearbank.machine/1"
_LARGEST_BYTES = 2**60


class Organization(Strict):
    """Channels of bank groups of banks of rows of columns; one column access moves `column_bytes` per bank.

    A channel may be split in pseudo-channels (HBM) and shared by ranks (DIMMs, stack ids): each has all bank groups.
    `channels_per_chip` is for reports by chip alone.
    """

    source: str
    channels: Count
    bank_groups: Count
    banks_per_group: Count
    rows: Count
    columns: Count
    column_bytes: Count
    pseudo_channels: Count = 1
    ranks: Count = 1
    channels_per_chip: Count | None = None
    verified: bool = True

    @field_validator("column_bytes")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise NearbankError(f"{value} bytes; expected a power of two, as a burst of a memory has")
        return value

    @property
    def banks(self) -> int:
        """Banks in one channel, those of all its pseudo-channels and ranks."""
        return self.pseudo_channels * self.ranks * self.bank_groups * self.banks_per_group

    @property
    def row_bytes(self) -> int:
        return self.columns * self.column_bytes

    @property
    def channel_bytes(self) -> int:
        return self.banks * self.rows * self.row_bytes

    @property
    def total_bytes(self) -> int:
        return self.channels * self.channel_bytes


class Pins(Strict):
    """The bus between one channel and the unit that drives it."""

    width: Count
    rate: BitRate
    source: str

    @property
    def bits_per_s(self) -> int:
        """Peak bandwidth of one channel's pins."""
        return self.width * units.BIT_RATE.parse(self.rate.value)


class Refresh(Strict):
    """`all_bank` refreshes every bank of a channel each tREFI, `per_bank` one bank after another each tREFIpb.

    `by_use` leaves refresh to the program, which opens every row with data often enough (`sim.retention`).
    `none` is for machines whose peers never refresh.
    """

    policy: Literal["all_bank", "per_bank", "by_use", "none"] = "all_bank"
    source: str


class Lanes(Strict):
    """How many weights a bank's unit takes from an open column in one step, and what a MAC costs.

    A step lasts `serial` MAC commands, in each of which the unit takes some bits of the activations. With `activations`
    integer the lanes are no good for floating ones. A unit with `scales`, in that format, scales the sums of groups
    itself, each for `energy_per_scale`. All but `source` follow from `unit`, where that is given.
    """

    per_step: Count
    source: str
    serial: Count = 1
    activations: Literal["any", "integer"] = "any"
    energy_per_mac: Energy | None = None
    scales: ScaleFormat | None = None
    energy_per_scale: Energy | None = None
    area: Area | None = None
    unit: UnitDesign | None = None


class MacUnit(Strict):
    """The multiply-accumulate units beside every bank, by weight format or by pair of weights and activations.

    A pair ("int8/bf16") goes before a unit of the weights alone, which takes all activations or all integers.
    A bank has `accumulators`, each of which the pins read as `accumulator_bytes`; a MAC command says which it adds to.
    """

    formats: dict[str, Lanes]
    accumulator_bytes: Count
    source: str
    accumulators: Count = 1
    process: Process | None = None

    @model_validator(mode="after")
    def _known_formats(self) -> MacUnit:
        for name in self.formats:
            unit_formats(name)
        return self


class GlobalBuffer(Strict):
    """The SRAM per channel that holds the input vector and feeds it to every bank."""

    size: Size
    source: str

    @property
    def bytes(self) -> int:
        return units.SIZE.parse(self.size.value)


class Asic(Strict):
    """The unit beside the memory for everything that is not a matrix product."""

    clock: Frequency
    adders: Count
    multipliers: Count
    sram: Size
    power: Power
    idle_power: Power | None = None
    source: str
    verified: bool = True


class Currents(Strict):
    """Datasheet currents of one channel, from which command and background energy follow (as DRAMPower does)."""

    VDD: Voltage
    IDD0: Current
    IDD2N: Current
    IDD3N: Current
    IDD4R: Current
    IDD4W: Current
    IDD5B: Current


class CommandEnergy(Strict):
    """Energy per command or per bit, where that is published; each goes before what the currents would give.

    `read_per_bit` and `write_per_bit` are a column's way from the bank to the pins, without the pins themselves;
    `mac_read_per_bit` is that from the bank to its own MAC unit; `mac_all_banks` is a MACAB with its arithmetic.
    """

    activate_per_bank: Energy | None = None
    mac_read_per_bit: Energy | None = None
    read_per_bit: Energy | None = None
    write_per_bit: Energy | None = None
    mac_all_banks: Energy | None = None
    refresh_all_banks: Energy | None = None
    standby_active: Power | None = None
    standby_precharged: Power | None = None


class PowerModel(Strict):
    """Per channel. What is absent is reported as absent, never as zero.

    With a `budget_per_channel` commands are spaced so that a channel takes no more (`sim.throttle`).
    """

    currents: Currents | None = None
    commands: CommandEnergy | None = None
    io_per_bit: Energy | None = None
    global_buffer_per_bit: Energy | None = None
    budget_per_channel: Power | None = None


class Machine(Strict):
    """A whole machine description. `standard` names the table of commands and timing rules it obeys."""

    machine_schema: Literal["nearbank.machine/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    title: str
    standard: str
    tCK: Time  # noqa: N815  (the field's own name)
    organization: Organization
    timing: dict[str, Time]
    refresh: Refresh
    pins: Pins
    mac_unit: MacUnit | None = None
    global_buffer: GlobalBuffer | None = None
    asic: Asic | None = None
    power: PowerModel = PowerModel()
    controller: Policy | None = None

    @model_validator(mode="before")
    @classmethod
    def _derive_units(cls, content: Any) -> Any:
        """Fill in what follows from the description of the MAC units."""
        if not isinstance(content, dict):
            return content
        mac, organization = content.get("mac_unit"), content.get("organization")
        if not isinstance(mac, dict) or not isinstance(organization, dict):
            return content  # what is wrong with it is said field by field
        width = organization.get("column_bytes")
        if not isinstance(mac.get("formats"), dict) or not isinstance(width, int) or width < 1:
            return content
        return {**content, "mac_unit": with_derived(mac, width)}

    @property
    def tck_ps(self) -> int:
        return units.TIME.parse(self.tCK.value)

    def cycles(self, name: str) -> int:
        """The timing value `name` in clock cycles, rounded up as a controller must."""
        if name not in self.timing:
            raise NearbankError(f"machine {self.name}: timing {name} is missing; the {self.standard} rules need it")
        return units.ceil_div(units.TIME.parse(self.timing[name].value), self.tck_ps)

    @cached_property
    def digest(self) -> str:
        """A short hash of every value, for results to carry."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Machine:
        """A copy with some values changed; its digest is its own, so no result of the original is taken for it."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)
        return copied

    def unverified(self) -> list[str]:
        """Dotted names of the constants whose source was not checked."""
        return sorted(_unverified(self.model_dump(), ""))


def _unverified(node: object, path: str) -> list[str]:
    if not isinstance(node, dict):
        return []
    here = [path] if node.get("verified") is False else []
    return here + [name for key, child in node.items() for name in _unverified(child, f"{path}.{key}".strip("."))]


def machine_names() -> list[str]:
    """The machines that come with the package."""
    return sorted(p.stem for p in _MACHINES.glob("*.yaml"))


@cache
def load_machine(name_or_file: str) -> Machine:
    """The machine of that name, or in that YAML file; `NearbankError` names the file, the key and the expectation."""
    path = _locate(name_or_file, Path.cwd())
    return _validated(_effective(path, ()), path)


def _locate(name_or_file: str, folder: Path) -> Path:
    if name_or_file in machine_names():
        return _MACHINES / f"{name_or_file}.yaml"
    path = folder / name_or_file
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise NearbankError(
        f"unknown machine {name_or_file!r}; known: {', '.join(machine_names())}, or the path of a .yaml file"
    )


def _effective(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's content laid over that of the machine it extends."""
    if path in seen:
        raise NearbankError(f"{path}: extends itself through {', '.join(p.name for p in seen)}")
    own = _read_yaml(path)
    base = own.pop("extends", None)
    if base is None:
        return own
    return _merged(_effective(_base_of(path, str(base)), (*seen, path)), own)


def _base_of(path: Path, base: str) -> Path:
    try:
        return _locate(base, path.parent)
    except NearbankError as error:
        raise NearbankError(f"{path}: extends: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise NearbankError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise NearbankError(f"{path}: not readable as YAML: nested too deeply; expected few levels") from error
    if not isinstance(content, dict):
        raise NearbankError(f"{path}: expected a mapping of keys, such as 'schema: {MACHINE_SCHEMA}'")
    return content


# What has one of these is replaced as a whole: its other keys belong to it.
_WHOLE = frozenset({"value", "unit"})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        nested = isinstance(old, dict) and isinstance(value, dict) and not _WHOLE & value.keys()
        result[key] = _merged(old, value) if nested else value  # type: ignore[arg-type]
    return result


def _validated(content: dict[str, Any], path: Path) -> Machine:
    try:
        machine = Machine.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NearbankError(f"{path}: {where}: {_complaint(dict(first))}") from error
    check_timing(machine, path)
    return machine


def _complaint(error: dict[str, Any]) -> str:
    known = {
        "extra_forbidden": "unknown key; `nearbank machines pim-gpt` shows a machine with every key",
        "missing": "is missing; `nearbank machines pim-gpt` shows a machine with every key",
        "dict_type": "expected keys with values below it",
        "model_type": "expected keys with values below it",
    }
    return known.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")


def check_timing(machine: Machine, path: Path | str) -> None:
    """Refuse timing that contradicts itself or that no rule knows; `path` says in the error where it stands."""
    _check_names(machine, path)
    if machine.tck_ps == 0:
        raise NearbankError(f"{path}: tCK: a clock of 0 ps; expected more than 0")
    if machine.organization.total_bytes > _LARGEST_BYTES:
        capacity = machine.organization.total_bytes
        raise NearbankError(f"{path}: organization: {capacity} bytes; expected at most {_LARGEST_BYTES}")
    t = {name: units.TIME.parse(constant.value) for name, constant in machine.timing.items()}
    if {"tRC", "tRAS", "tRP"} <= t.keys() and t["tRC"] < t["tRAS"] + t["tRP"]:
        raise NearbankError(f"{path}: timing.tRC: {t['tRC']} ps is less than tRAS + tRP = {t['tRAS'] + t['tRP']} ps")
    _check_refresh(machine, t, path)


def _check_refresh(machine: Machine, t: dict[str, int], path: Path | str) -> None:
    """A machine that refreshes says how often and for how long, and the first is more than the second."""
    if machine.refresh.policy in ("none", "by_use"):
        return
    if not {"tREFI", "tRFC"} <= t.keys():
        raise NearbankError(f"{path}: timing: refresh needs tREFI and tRFC; give both, or refresh policy none")
    if t["tREFI"] <= t["tRFC"]:
        raise NearbankError(f"{path}: timing.tREFI: {t['tREFI']} ps is not more than tRFC = {t['tRFC']} ps")
    if machine.refresh.policy == "per_bank" and "tREFIpb" not in t:
        raise NearbankError(f"{path}: timing: refresh per_bank needs tREFIpb; give it, or refresh policy all_bank")
    if machine.refresh.policy == "per_bank" and not standard_named(machine.standard).refresh_bank:
        raise NearbankError(f"{path}: refresh.policy: {machine.standard} has no refresh of one bank; expected all_bank")


def _check_names(machine: Machine, path: Path | str) -> None:
    """Refuse an unknown standard, and timing values no standard has: a misspelt one would count for nothing."""
    try:
        standard_named(machine.standard)
    except NearbankError as error:
        raise NearbankError(f"{path}: standard: {error}") from error
    unknown = sorted(machine.timing.keys() - timing_names())
    if unknown:
        known = ", ".join(sorted(timing_names()))
        raise NearbankError(f"{path}: timing.{unknown[0]}: no standard has such a time; known: {known}")
