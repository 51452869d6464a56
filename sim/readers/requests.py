"""Reading request traces: DRAMsim3's ("0x1F40 READ 12") and Ramulator's ("LD 0x1F40" or "R 0,0,1,2,300,4").

A trace is read in one pass into 17 bytes a request, and refused beyond the limit given.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.policy import Policy
from nearbank.sim.readers.text import bad_line, integer, lines
from nearbank.sim.requests.controller import Trace
from nearbank.sim.requests.mapping import AddressMap, address_map

MOST_REQUESTS = 2 * 10**7  # 3 GB while they are served
_MOST_ADDRESS = 2**63 - 1
_MOST_CYCLE = 10**12  # a quarter of an hour of DDR4, with 10⁸ refreshes to play
_DRAMSIM3_TYPES = {"READ": False, "WRITE": True, "P_MEM_RD": False, "P_MEM_WR": True, "P_FETCH": False, "BOFF": False}
_DRAMSIM3_LINE = "an address, READ or WRITE and a cycle, such as '0x1F40 READ 12'"
_RAMULATOR_LINE = "LD or ST and an address, such as 'LD 0x1F40', or R or W and a vector such as 'R 0,0,1,2,300,4'"

_Request = tuple[int, bool, int]


def read_dramsim3(path: Path, most: int = MOST_REQUESTS) -> Trace:
    """A DRAMsim3 trace: address, READ or WRITE, and the first cycle the request may come, in order."""
    last = 0

    def parse(number: int, words: list[str]) -> _Request:
        nonlocal last
        if len(words) != 3:
            raise bad_line(path, number, f"{len(words)} words", _DRAMSIM3_LINE)
        write = _DRAMSIM3_TYPES.get(words[1].upper())
        if write is None:
            raise bad_line(path, number, f"unknown request type {words[1][:40]!r}", _DRAMSIM3_LINE)
        address = integer(path, number, _hex(words[0]), "address", _MOST_ADDRESS, words[0])
        cycle = integer(path, number, words[2], "cycle", _MOST_CYCLE)
        if cycle < last:
            raise bad_line(path, number, f"cycle {cycle} comes before the one above, {last}", "cycles in order")
        last = cycle
        return address, write, cycle

    return _read(path, parse, most, _DRAMSIM3_LINE)


def _hex(word: str) -> str:
    """DRAMsim3 reads addresses as hexadecimal, with or without 0x."""
    return word if word[:2] in ("0x", "0X") else f"0x{word}"


def read_ramulator(path: Path, machine: Machine, policy: Policy, most: int = MOST_REQUESTS) -> Trace:
    """A Ramulator load-store trace (LD/ST address) or read-write trace (R/W vector from channel to column)."""
    where = address_map(policy.mapping, machine.organization)

    def parse(number: int, words: list[str]) -> _Request:
        if len(words) != 2 or words[0] not in ("LD", "ST", "R", "W"):
            raise bad_line(path, number, f"{' '.join(words)[:40]!r}", _RAMULATOR_LINE)
        if words[0] in ("LD", "ST"):
            return integer(path, number, words[1], "address", _MOST_ADDRESS), words[0] == "ST", 0
        return _address_of(path, number, words[1], where), words[0] == "W", 0

    return _read(path, parse, most, _RAMULATOR_LINE)


def _address_of(path: Path, number: int, vector: str, where: AddressMap) -> int:
    """The address of a vector of channel, pseudo-channel or rank, bank group, bank, row, column (in order)."""
    fields = [
        name for name in ("ch", "pc", "ra", "bg", "ba", "ro", "co") if where.width[name] or name not in ("pc", "ra")
    ]
    values = vector.split(",")
    if len(values) == len(fields) + 1 and "ra" not in fields:
        fields.insert(1, "ra")  # traces name the rank even if there is but one
    if len(values) != len(fields):
        raise bad_line(path, number, f"{len(values)} numbers", f"{len(fields)}: {', '.join(fields)}")
    block = 0
    for name, text in zip(fields, values, strict=True):
        block |= integer(path, number, text, name, (1 << where.width[name]) - 1) << where.position[name]
    return block << where.shift


def _read(path: Path, parse: Callable[[int, list[str]], _Request], most: int, expected: str) -> Trace:
    """All requests of a file; blank lines and those that start with # are skipped."""
    addresses, writes, cycles = array("Q"), array("B"), array("q")
    for number, line in lines(path):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(addresses) >= most:
            raise bad_line(path, number, f"more than {most} requests", "a trace that fits in memory; split it")
        address, write, cycle = parse(number, words)
        addresses.append(address)
        writes.append(write)
        cycles.append(cycle)
    if not addresses:
        raise NearbankError(f"{path}: holds no request; expected lines with {expected}")
    return Trace(np.frombuffer(addresses, np.uint64), np.frombuffer(writes, np.bool_), np.frombuffer(cycles, np.int64))


def write_dramsim3(path: Path, trace: Trace) -> None:
    """Write a trace as DRAMsim3 reads it."""
    with path.open("w", encoding="ascii") as file:
        for address, write, cycle in zip(trace.addresses, trace.writes, trace.arrivals, strict=True):
            file.write(f"0x{int(address):X} {'WRITE' if write else 'READ'} {int(cycle)}\n")


def write_ramulator(path: Path, trace: Trace) -> None:
    """Write a trace as Ramulator's load-store front end reads it; the cycles have no place in it."""
    with path.open("w", encoding="ascii") as file:
        for address, write in zip(trace.addresses, trace.writes, strict=True):
            file.write(f"{'ST' if write else 'LD'} 0x{int(address):X}\n")
