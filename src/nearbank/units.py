"""Exact quantities: text such as "12 ns" in, whole numbers of one base unit out.

Base units are small enough for every constant of the field to be a whole number: picoseconds, femtojoules,
nanowatts, millivolts, microamperes, bytes, hertz, bits per second, square micrometres. A text without a unit, with a
unit of another quantity, or finer than the base unit is refused, so nothing is ever rounded silently.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from nearbank.errors import NearbankError


@dataclass(frozen=True)
class Quantity:
    """A physical quantity: its base unit and how many base units each accepted unit holds."""

    name: str
    base: str
    per_unit: dict[str, int]

    def parse(self, text: object) -> int:
        """Whole base units in `text`; `NearbankError` if it has no unit, a foreign one, or is not exact."""
        number, unit = _split(text, self)
        if unit not in self.per_unit:
            raise NearbankError(f"{text!r}: unknown unit {unit!r} for {self.name}; known: {self._known()}")
        exact = number * self.per_unit[unit]
        if exact != exact.to_integral_value():
            raise NearbankError(f"{text!r} is not a whole number of {self.base}; round it to {self.base}")
        return int(exact)

    def format(self, value: int) -> str:
        """The shortest exact text of `value` base units; `parse` gives the value back."""
        fitting = [u for u, n in self.per_unit.items() if value % n == 0]
        unit = max(fitting, key=lambda u: self.per_unit[u])
        return f"{value // self.per_unit[unit]} {unit}"

    def _known(self) -> str:
        return ", ".join(self.per_unit)


def _split(text: object, quantity: Quantity) -> tuple[Decimal, str]:
    if not isinstance(text, str):
        raise NearbankError(f"{text!r} has no unit; write {quantity.name} as text such as '12 {quantity.base}'")
    parts = text.split()
    if len(parts) != 2:
        raise NearbankError(f"{text!r}: expected a number, a space and a unit, such as '12 {quantity.base}'")
    try:
        number = Decimal(parts[0])
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise NearbankError(f"{text!r}: {parts[0]!r} is not a number; write it like '12 {quantity.base}'")
    return number, parts[1]


TIME = Quantity("time", "ps", {"ps": 1, "ns": 10**3, "us": 10**6, "µs": 10**6, "ms": 10**9, "s": 10**12})
ENERGY = Quantity("energy", "fJ", {"fJ": 1, "pJ": 10**3, "nJ": 10**6, "uJ": 10**9, "mJ": 10**12, "J": 10**15})
POWER = Quantity("power", "nW", {"nW": 1, "uW": 10**3, "µW": 10**3, "mW": 10**6, "W": 10**9})
VOLTAGE = Quantity("voltage", "mV", {"mV": 1, "V": 10**3})
CURRENT = Quantity("current", "uA", {"uA": 1, "µA": 1, "mA": 10**3, "A": 10**6})
SIZE = Quantity("size", "B", {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9})
FREQUENCY = Quantity("frequency", "Hz", {"Hz": 1, "kHz": 10**3, "MHz": 10**6, "GHz": 10**9})
BIT_RATE = Quantity("bit rate", "b/s", {"b/s": 1, "Mb/s": 10**6, "Gb/s": 10**9, "GB/s": 8 * 10**9, "TB/s": 8 * 10**12})
AREA = Quantity("area", "um2", {"um2": 1, "mm2": 10**6})

QUANTITIES = (TIME, ENERGY, POWER, VOLTAGE, CURRENT, SIZE, FREQUENCY, BIT_RATE, AREA)


def quantity_of(text: object) -> Quantity:
    """The quantity whose unit `text` carries; `NearbankError` when no quantity knows the unit."""
    unit = _split(text, TIME)[1]
    for quantity in QUANTITIES:
        if unit in quantity.per_unit:
            return quantity
    known = ", ".join(u for q in QUANTITIES for u in q.per_unit)
    raise NearbankError(f"{text!r}: unknown unit {unit!r}; known: {known}")


def ceil_div(a: int, b: int) -> int:
    """⌈a / b⌉ in whole numbers."""
    return -(-a // b)
