"""What a MAC unit beside a bank does and costs, worked out from its description: lanes, adder tree, accumulator.

A unit has a name: the format of its weights alone ("ternary"), or a pair of weights and activations ("int8/bf16"). It
takes weights from an open column, multiplies them with buffered activations, adds the products in a tree and the tree's
result to an accumulator. It is limited by its lanes or by the column, and a serial unit takes the bits of an activation
one after another. What is worked out here is *derived*: published energies of arithmetic, scaled between two processes,
times the cost of routing in a DRAM process. How a machine file states a unit is in `sim.machine`; what a run costs is
in `sim.energy`.

A unit of integers may also scale: at the end of a group it takes the group's zero times the sum of its activations off
the sum, multiplies what is left with the group's scale and adds it to a float accumulator. So partial sums stay in the
bank. The sum of activations is that of the buffer, one for all banks of a channel.

Not known and therefore left out: leakage, clocking, registers (that of a column of scales, too), the buffer's adder
tree for sums of activations, and the decoder of base-3 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log, log2
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nearbank import units
from nearbank.errors import NearbankError
from nearbank.formats import FORMATS, Format
from nearbank.units import ceil_div

# Energies in fJ. 45 nm: Horowitz, ISSCC 2014; 7 nm: Jouppi et al., ISCA 2021; neither checked against the text.
_ENERGY_FJ: Mapping[str, Mapping[int, int]] = {
    "add int8": {45: 30, 7: 7},
    "multiply int8": {45: 200, 7: 70},
    "add fp16": {45: 400, 7: 160},
    "multiply fp16": {45: 1100, 7: 340},
}
_ADD_FP32_OVER_FP16 = 0.9 / 0.4  # both at 45 nm
# Areas in um2 at 45 nm: Horowitz, as printed with those energies; not checked either.
_AREA_UM2 = {"add int8": 36, "multiply int8": 282, "add fp16": 1360, "multiply fp16": 1640, "add fp32": 4184}

# Bits of a weight's magnitude: as many rows of a multiplier's array does a product take.
_WEIGHT_BITS = {"int8": 8, "int4": 4, "int2": 2, "ternary": 1, "ternary-b3": 1, "binary": 1}
# Significands with their hidden bit; a multiplier's energy and area go with the product of its operands'.
_SIGNIFICAND = {"fp16": 11, "bf16": 8}
ScaleFormat = Literal["bf16", "fp16", "fp32"]
_SCALE_SIGNIFICAND: Mapping[str, int] = {**_SIGNIFICAND, "fp32": 24}
SCALE_BYTES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
# Formats that vectors may have in the global buffer, packed as they are, and their bits.
ACTIVATION_BITS: Mapping[str, int] = {"bf16": 16, "fp16": 16, "int8": 8, "ternary": 2, "binary": 1}

Positive = Annotated[int, Field(gt=0, le=2**20)]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UnitDesign(_Described):
    """A MAC unit for one weight format, or one pair of weights and activations.

    `lanes` weights are multiplied at once; without it as many as a column holds. Integer weights meet activations of
    `activation_bits` (those of the pair; else 8), of which `bits_per_step` are taken at once: all when left out, 1 in
    a bit-serial unit. `scales`: the format of the scales that it multiplies a group's sum with, if it does.
    """

    lanes: Positive | None = None
    activation_bits: Annotated[int, Field(ge=1, le=16)] | None = None
    bits_per_step: Annotated[int, Field(ge=1, le=16)] | None = None
    accumulator_bits: Annotated[int, Field(ge=8, le=64)] = 32
    scales: ScaleFormat | None = None


class Process(_Described):
    """The process that energies and areas are scaled to.

    `routing` is what wires cost more in a DRAM process. `calibrated_to` names a format of the machine whose published
    energy is trusted: all derived energies are scaled so that the model gives that one.
    """

    node_nm: Annotated[int, Field(ge=7, le=45)]
    source: str
    routing: Annotated[float, Field(ge=1, le=10)] = 1.5
    calibrated_to: str | None = None
    verified: bool = False


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """A unit in numbers. `steps` clocks take a column in `groups` of `lanes`, each in `serial` clocks.

    `tree_bits` is the width of the adder tree's result; `exact_inputs` how many products the accumulator is sure to
    hold (None: it is a float). Energy is per multiply-accumulate, and per group that a unit with scales ends (None: it
    has none); area per unit, scaling included. All derived.
    """

    values: int
    lanes: int
    groups: int
    serial: int
    tree_bits: int | None
    exact_inputs: int | None
    energy_per_mac_fj: int
    area_um2: int
    energy_per_scale_fj: int | None = None

    @property
    def steps(self) -> int:
        return self.groups * self.serial

    @property
    def limit(self) -> str:
        """What keeps the unit from more weights per clock."""
        if self.groups > 1:
            return "lanes"
        return "activation bits" if self.serial > 1 else "column"


def unit_formats(name: str) -> tuple[str, str]:
    """The weights' and the activations' format of a unit; "" for the latter where the unit has no pair.

    `NearbankError` for formats that do not exist or that vectors cannot have.
    """
    weights, _, activations = name.partition("/")
    if weights not in FORMATS:
        raise NearbankError(f"mac_unit: unknown format {weights!r}; known: {', '.join(FORMATS)}")
    if "/" in name and activations not in ACTIVATION_BITS:
        raise NearbankError(
            f"mac_unit: {name}: {activations!r} cannot hold activations; expected one of: {', '.join(ACTIVATION_BITS)}"
        )
    return weights, activations


def unit_costs(
    fmt: Format, design: UnitDesign, column_bytes: int, process: Process, scale: float = 1.0, activations: str = ""
) -> UnitCosts:
    """The unit in numbers; `scale` multiplies the energy. `NearbankError` says what cannot be built.

    `activations`: the other half of the pair; "" for a unit of whatever its design says.
    """
    values = int(8 * column_bytes / fmt.code_bits)
    most = min(design.lanes or values, values)
    lanes = max(n for n in range(1, most + 1) if values % n == 0)  # a column is taken in equal groups
    groups = values // lanes
    work = _work(fmt, activations, design, lanes)
    scaling = _scaling_work(fmt, design) if design.scales else {}
    factor = process.routing * scale
    area_um2 = _area_um2(work.hardware) + _area_um2(scaling)
    return UnitCosts(
        values=values,
        lanes=lanes,
        groups=groups,
        serial=work.serial,
        tree_bits=work.tree_bits,
        exact_inputs=work.exact_inputs,
        energy_per_mac_fj=round(_energy_fj(work.operations, process.node_nm) * factor),
        area_um2=round(area_um2 * (process.node_nm / 45) ** 2 * process.routing),
        energy_per_scale_fj=round(_energy_fj(scaling, process.node_nm) * factor) if scaling else None,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """`operations` per multiply-accumulate and `hardware` per unit, by name of an operation with a published cost."""

    operations: Mapping[str, float]
    hardware: Mapping[str, float]
    serial: int = 1
    tree_bits: int | None = None
    exact_inputs: int | None = None


def _work(fmt: Format, activations: str, design: UnitDesign, lanes: int) -> _Work:
    if fmt.name not in known_formats():
        raise NearbankError(f"mac_unit: no unit for {fmt.name} is known; known: {', '.join(known_formats())}")
    floating = activations or (fmt.name if fmt.is_float else "")
    if floating in _SIGNIFICAND:
        return _float_work(fmt, floating, design, lanes)
    if fmt.is_float:
        raise NearbankError(f"mac_unit: {fmt.name}/{activations}: no unit for floating weights and integers is known")
    bits = ACTIVATION_BITS.get(activations, design.activation_bits or 8)
    if design.activation_bits not in (None, bits):
        raise NearbankError(
            f"mac_unit: {fmt.name}/{activations}: activation_bits {design.activation_bits} is not the {bits} of "
            f"{activations}; leave it out"
        )
    return _integer_work(fmt, design.model_copy(update={"activation_bits": bits}), lanes)


def _float_work(fmt: Format, activations: str, design: UnitDesign, lanes: int) -> _Work:
    """Multipliers and adder tree in the activations' 16 bits, the accumulator in fp32.

    A product of floats is that of their significands, one of an integer weight takes as many rows as its magnitude
    has bits. Exponents, normalisation and alignment are thought to shrink alike: an assumption.
    """
    if design.bits_per_step or design.activation_bits:
        raise NearbankError(f"mac_unit: {fmt.name}/{activations}: only integer activations are taken bit by bit")
    if design.scales:
        raise NearbankError(f"mac_unit: {fmt.name}/{activations}: only units of integers scale; leave out scales")
    significand = _SIGNIFICAND[activations]
    multiply = significand * (significand if fmt.is_float else _WEIGHT_BITS[fmt.name]) / _SIGNIFICAND["fp16"] ** 2
    each = {"multiply fp16": multiply, "add fp16": (lanes - 1) / lanes, "add fp32": 1 / lanes}
    return _Work(each, {name: count * lanes for name, count in each.items()})


def _integer_work(fmt: Format, design: UnitDesign, lanes: int) -> _Work:
    """Products of w x s bits, a tree whose adders widen by a bit a level, an accumulator; all once per serial step.

    An adder costs by its bits, a product by its w rows of s cells of a multiplier's array. That is an upper bound for
    ternary and binary weights, whose one row only passes, negates or drops the activation.
    """
    bits = design.activation_bits or 8
    taken = min(design.bits_per_step or bits, bits)
    serial = ceil_div(bits, taken)
    weight_bits = _WEIGHT_BITS[fmt.name]
    product_bits = taken + weight_bits
    levels = ceil(log2(lanes))
    tree = sum(lanes / 2**level * (product_bits + level - 1) for level in range(1, levels + 1))
    hardware = {"multiply int8": lanes * taken * weight_bits / 64, "add int8": (tree + design.accumulator_bits) / 8}
    spare = design.accumulator_bits - (bits + weight_bits)
    if spare < ceil(log2(lanes)):
        raise NearbankError(
            f"mac_unit: {fmt.name}: an accumulator of {design.accumulator_bits} bits cannot hold the sum of {lanes} "
            f"products of {bits + weight_bits} bits; expected {bits + weight_bits + ceil(log2(lanes))} or more"
        )
    operations = {name: serial * count / lanes for name, count in hardware.items()}
    return _Work(operations, hardware, serial, product_bits + levels, 2**spare)


def _scaling_work(fmt: Format, design: UnitDesign) -> Mapping[str, float]:
    """What the end of a group costs a unit: its zero times the sum of activations, taken off; then the scale.

    The zero's product has a row for each bit of a code, as wide as the accumulator. The sum becomes a float, taken to
    cost a float addition (both align and normalise); times the scale is 24 rows of the scale's significand; one more
    addition.
    """
    assert design.scales
    bits, zero_bits = design.accumulator_bits, _WEIGHT_BITS[fmt.name]
    zeros = {"multiply int8": bits * zero_bits / 64, "add int8": bits / 8} if fmt.stores_zeros else {}
    product = 24 * _SCALE_SIGNIFICAND[design.scales] / _SIGNIFICAND["fp16"] ** 2
    return {**zeros, "multiply fp16": product, "add fp32": 2}


def _energy_fj(operations: Mapping[str, float], node_nm: int) -> float:
    """The energy of so many operations."""
    return sum(count * _operation_fj(name, node_nm) for name, count in operations.items())


def _operation_fj(name: str, node_nm: int) -> float:
    """One operation's energy: a straight line between the two published processes, on logarithmic axes."""
    if name == "add fp32":
        return _ADD_FP32_OVER_FP16 * _operation_fj("add fp16", node_nm)
    known = _ENERGY_FJ[name]
    slope = log(known[45] / known[7]) / log(45 / 7)
    return float(known[45] * (node_nm / 45) ** slope)


def _area_um2(hardware: Mapping[str, float]) -> float:
    return sum(count * _AREA_UM2[name] for name, count in hardware.items())


def known_formats() -> tuple[str, ...]:
    """Weight formats that a unit can be described for."""
    return (*_SIGNIFICAND, *_WEIGHT_BITS)


def with_derived(mac: Mapping[str, Any], column_bytes: int) -> dict[str, Any]:
    """A machine's `mac_unit` section with what follows from each format's `unit` filled in.

    `NearbankError` where the section states something else than what follows.
    """
    formats: dict[str, Any] = dict(mac["formats"])
    described = [name for name, lanes in formats.items() if _has_unit(lanes)]
    if not described:
        return dict(mac)
    if not mac.get("process"):
        raise NearbankError("mac_unit: a format with a unit needs mac_unit.process, such as {node_nm: 28, source: …}")
    process = _read(Process, mac["process"], "mac_unit.process")
    scale = _calibration(formats, process, column_bytes)
    for name in described:
        formats[name] = _derived(name, formats[name], column_bytes, process, scale)
    return {**mac, "formats": formats}


def _has_unit(lanes: object) -> bool:
    return isinstance(lanes, Mapping) and lanes.get("unit") is not None


_Part = TypeVar("_Part", bound=_Described)


def _read(kind: type[_Part], content: object, where: str) -> _Part:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join((where, *(str(part) for part in first["loc"])))
        raise NearbankError(f"{path}: {first['msg']}; known keys: {', '.join(kind.model_fields)}") from error


def _calibration(formats: Mapping[str, Any], process: Process, column_bytes: int) -> float:
    """What the model's energies are multiplied with so that its unit as wide as a column has the trusted one."""
    name = process.calibrated_to
    if name is None:
        return 1.0
    trusted = formats.get(name)
    own = isinstance(trusted, Mapping) and not _has_unit(trusted) and trusted.get("energy_per_mac")
    if name not in FORMATS or not trusted or not own:
        raise NearbankError(
            f"mac_unit.process.calibrated_to: {name!r} is no format with an energy_per_mac of its own; "
            "leave it out, or name one"
        )
    model = unit_costs(FORMATS[name], UnitDesign(), column_bytes, process)
    return units.ENERGY.parse(trusted["energy_per_mac"]["value"]) / model.energy_per_mac_fj


def _derived(name: str, stated: Mapping[str, Any], column_bytes: int, process: Process, scale: float) -> dict[str, Any]:
    weights, activations = unit_formats(name)
    design = _read(UnitDesign, stated["unit"], f"mac_unit.formats.{name}.unit")
    costs = unit_costs(FORMATS[weights], design, column_bytes, process, scale, activations)
    trusted = f", scaled to the published {process.calibrated_to} unit" if process.calibrated_to else ""
    source = _source(process)
    follows: dict[str, Any] = {
        "per_step": costs.lanes,
        "serial": costs.serial,
        "activations": "any" if FORMATS[weights].is_float or activations in _SIGNIFICAND else "integer",
        "energy_per_mac": {"value": f"{costs.energy_per_mac_fj} fJ", "source": source + trusted, "verified": False},
        "area": {"value": f"{costs.area_um2} um2", "source": source, "verified": False},
    }
    if costs.energy_per_scale_fj is not None:
        energy = {"value": f"{costs.energy_per_scale_fj} fJ", "source": source + trusted, "verified": False}
        follows |= {"scales": design.scales, "energy_per_scale": energy}
    for key, value in follows.items():
        if stated.get(key) is not None and stated[key] != value:
            raise NearbankError(
                f"mac_unit.formats.{name}.{key}: {stated[key]!r} is not what follows from its unit, {value!r}; "
                "leave it out, or leave the unit out"
            )
    return {**stated, **follows}


def _source(process: Process) -> str:
    return (
        f"derived: arithmetic at 45 and 7 nm brought to {process.node_nm} nm, x {process.routing:g} for routing "
        "in a DRAM process"
    )
