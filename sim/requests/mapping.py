"""Addresses to banks, rows and columns, by a pattern of two-letter fields."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearbank.errors import NearbankError
from nearbank.sim.machine import Organization

FIELDS = ("ch", "pc", "ra", "bg", "ba", "ro", "co")
BANK_FIELDS = ("pc", "ra", "bg", "ba")  # in the bank's number, the most significant first


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go: arrays of one length. `bank` is flat within the channel."""

    channel: NDArray[np.int64]
    bank: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    block: NDArray[np.int64]  # the address in units of one column access, within the machine's capacity
    wrapped: int  # how many addresses were beyond the machine's capacity and wrapped around


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Bit position and width of every field of a block address (an address divided by the bytes of one access)."""

    organization: Organization
    shift: int
    position: dict[str, int]
    width: dict[str, int]

    def place(self, addresses: NDArray[np.uint64]) -> Place:
        """Bank, row and column of byte addresses. Addresses beyond the capacity wrap around, as in real decoders."""
        bits = sum(self.width.values())
        blocks = (addresses >> np.uint64(self.shift)).astype(np.uint64)
        wrapped = int(np.count_nonzero(blocks >> np.uint64(bits)))
        inside = (blocks & np.uint64((1 << bits) - 1)).astype(np.int64)
        part = {name: (inside >> self.position[name]) & ((1 << self.width[name]) - 1) for name in FIELDS}
        org = self.organization
        rank = part["pc"] * org.ranks + part["ra"]
        bank = (rank * org.bank_groups + part["bg"]) * org.banks_per_group + part["ba"]
        return Place(part["ch"], bank, part["ro"], part["co"], inside, wrapped)

    def shifts(self) -> NDArray[np.int64]:
        """The same for compiled code: [1 + field, 3].

        First the bits of a byte's address within its block and those of all blocks' numbers; then, for each of FIELDS,
        its first bit in a block's number, its bits, and how far they are moved to the left in the bank's number.
        """
        rows = [(self.position[name], self.width[name], self._below(name)) for name in FIELDS]
        return np.array([(self.shift, sum(self.width.values()), 0), *rows], np.int64)

    def _below(self, name: str) -> int:
        """How many bits of the bank's number are less significant than the field."""
        later = BANK_FIELDS[BANK_FIELDS.index(name) + 1 :] if name in BANK_FIELDS else ()
        return sum(self.width[other] for other in later)


def address_map(pattern: str, organization: Organization) -> AddressMap:
    """The map of a pattern such as "rochrababgco" or "RoBaRaCoCh"; most significant field first."""
    sizes = _sizes(organization)
    width = {name: _bits(name, size) for name, size in sizes.items()}
    position, at = {}, 0
    for name in reversed(_fields(pattern, width)):
        position[name] = at
        at += width[name]
    rest = {name: 0 for name in FIELDS if name not in position}
    return AddressMap(organization, _bits("column bytes", organization.column_bytes), position | rest, width)


def _sizes(organization: Organization) -> dict[str, int]:
    return {
        "ch": organization.channels,
        "pc": organization.pseudo_channels,
        "ra": organization.ranks,
        "bg": organization.bank_groups,
        "ba": organization.banks_per_group,
        "ro": organization.rows,
        "co": organization.columns,
    }


def _bits(name: str, size: int) -> int:
    if size & (size - 1):
        raise NearbankError(f"address mapping needs powers of two; {name} is {size}")
    return size.bit_length() - 1


def _fields(pattern: str, width: dict[str, int]) -> list[str]:
    """The fields of a pattern, most significant first; bank groups follow banks and pseudo-channels ranks."""
    found = [pattern[i : i + 2].lower() for i in range(0, len(pattern), 2)]
    unknown = [name for name in found if name not in FIELDS]
    if unknown or len(set(found)) != len(found):
        raise NearbankError(f"address mapping {pattern!r}: expected each of {', '.join(FIELDS)} at most once")
    for part, whole in (("bg", "ba"), ("pc", "ra")):
        if part not in found and whole in found:
            found.insert(found.index(whole) + 1, part)
    missing = [name for name in FIELDS if name not in found and width[name]]
    if missing:
        raise NearbankError(f"address mapping {pattern!r}: {', '.join(missing)} missing; the machine has more than one")
    return found
