"""What of a program is checked once its code stands: channels, addresses over all loop counters, meetings."""

from __future__ import annotations

import numpy as np

from nearbank.errors import NearbankError
from nearbank.sim import vm
from nearbank.sim.code import Piece
from nearbank.sim.layout import Ints
from nearbank.sim.locate import locate
from nearbank.sim.program import Program
from nearbank.sim.rules import RuleBook


def least_sizes(book: RuleBook) -> Ints:
    """Banks, rows and columns that every command may address; a write to the global buffer may reach other columns."""
    organization, buffer = book.machine.organization, book.machine.global_buffer
    columns = buffer.bytes // organization.column_bytes if buffer else organization.columns
    return np.array([book.banks, organization.rows, min(columns, organization.columns)])


def check_channels(book: RuleBook, program: Program, number: int) -> None:
    """Every channel is there, and is in one stream at most."""
    channels, count = program.streams[number].channels, book.machine.organization.channels
    earlier = {c for s in program.streams[:number] for c in s.channels}
    for channel in channels:
        if not 0 <= channel < count or channel in earlier or channels.count(channel) > 1:
            raise NearbankError(
                f"program {program.name}, stream {number}: channel {channel}; "
                f"expected each of 0 to {count - 1} at most once"
            )
    if not channels:
        raise NearbankError(f"program {program.name}, stream {number}: no channels")


def check_addresses(book: RuleBook, least: Ints, program: Program, number: int, pieces: list[Piece]) -> None:
    """The last of the stream's pieces so far: all its addresses exist."""
    rows = pieces[-1].rows
    if rows[:, vm.LOW : vm.HIGH].min() >= 0 and (rows[:, vm.HIGH : vm.STRETCH].max(axis=0) < least).all():
        return
    organization = book.machine.organization
    sizes = (("bank", book.banks), ("row", organization.rows), ("column", organization.columns))
    for k, (what, size) in enumerate(sizes):
        low, high = rows[:, vm.LOW + k], rows[:, vm.HIGH + k]
        limits = _sizes(book, what, size, rows)
        bad = np.flatnonzero((low < 0) | (high >= limits))
        if len(bad):
            at = int(bad[0])
            value = low[at] if low[at] < 0 else high[at]
            name = list(book.specs)[rows[at, vm.A]]
            place = locate(program, number, at + sum(len(p.rows) for p in pieces[:-1]))
            raise NearbankError(
                f"program {program.name}, stream {number}, node {place}: {name} {what} {value}; "
                f"the machine has {what}s 0 to {limits[at] - 1}"
            )


def _sizes(book: RuleBook, what: str, size: int, rows: Ints) -> Ints:
    """How many of `what` there are for each row; a write to the global buffer has the buffer's columns."""
    sizes = np.full(len(rows), size, dtype=np.int64)
    buffer = book.machine.global_buffer
    names = list(book.specs)
    if what == "column" and buffer is not None and "WRGB" in names:
        sizes[rows[:, vm.A] == names.index("WRGB")] = buffer.bytes // book.machine.organization.column_bytes
    return sizes


def check_meetings(program: Program, parts: list[Ints]) -> None:
    """All streams hold the same meetings, in the same loops."""
    if len(parts) == 1:
        return
    skeletons = [_skeleton(rows) for rows in parts]
    for number, skeleton in enumerate(skeletons[1:], start=1):
        if not np.array_equal(skeleton, skeletons[0]):
            raise NearbankError(
                f"program {program.name}, stream {number}: its starts, waits and marks differ from stream 0's; "
                "the two would wait for each other for ever"
            )


def _skeleton(rows: Ints) -> Ints:
    meetings: Ints = rows[:, [vm.OP, vm.DEPTH, vm.A, vm.B, vm.C]][rows[:, vm.MEETS] == 1]
    meetings[meetings[:, 0] == vm.END, 3:] = 0  # how long the bodies are is each stream's own matter
    return meetings
