"""Issued commands as text: a CSV line a command, to look at, to feed to other tools and to check (`sim.checker`).

The columns are cycle, channel, command, bank (flat in the channel), row and column; what a command has none of stays
empty. Lines of one channel are in order of issue.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from nearbank.errors import NearbankError
from nearbank.sim.checker import Flat
from nearbank.sim.engine import Issued
from nearbank.sim.layout import uses_bank
from nearbank.sim.machine import Machine
from nearbank.sim.readers.text import bad_line, integer, lines
from nearbank.sim.requests.controller import Commands
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.standard import Effect, Row
from nearbank.sim.standards import standard_named

COLUMNS = ("cycle", "channel", "command", "bank", "row", "column")
_MOST_CYCLE, _MOST_PLACE = 2**60, 2**31 - 1  # rows and columns of the AiM simulator may be beyond the machine's
_CHUNK = 1 << 17  # commands turned into text at a time


def write_commands(path: Path, issued: Commands) -> None:
    """Write issued commands as CSV; `NearbankError` when the file cannot be written."""
    try:
        with path.open("w", encoding="ascii", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(COLUMNS)
            for start in range(0, len(issued.name), _CHUNK):
                out.writerows(_rows(issued, slice(start, start + _CHUNK)))
    except OSError as error:
        raise NearbankError(f"{path}: cannot be written ({error.strerror}); expected a place for a CSV file") from error


def write_issued(path: Path, machine: Machine, issued: Iterable[Issued]) -> int:
    """Write what `Player.stream` lists as CSV, as it comes; returns the lines. `NearbankError` as `write_commands`."""
    book, count = rulebook(machine), 0
    parts = {name: _places(book, name) for name in book.specs}
    try:
        with path.open("w", encoding="ascii", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(COLUMNS)
            for i in issued:
                bank, row, column = parts[i.command]
                places = (i.bank if bank else "", i.row if row else "", i.column if column else "")
                out.writerow((i.cycle, i.channel, i.command, *places))
                count += 1
    except OSError as error:
        raise NearbankError(f"{path}: cannot be written ({error.strerror}); expected a place for a CSV file") from error
    return count


def _places(book: RuleBook, name: str) -> tuple[bool, bool, bool]:
    """Whether a command has a bank, a row and a column."""
    spec = book.specs[name]
    accesses = spec.row is Row.OPEN
    return uses_bank(book, name), accesses or spec.effect is Effect.OPENS, accesses or name == "WRGB"


def _rows(issued: Commands, part: slice) -> Iterator[tuple[int | str, ...]]:
    """Lines of some of the commands; -1 stands for a place that a command has none of."""
    places = [
        ["" if v < 0 else v for v in column[part].tolist()] for column in (issued.bank, issued.row, issued.column)
    ]
    return zip(issued.cycle[part].tolist(), issued.channel[part].tolist(), issued.name[part], *places, strict=True)


def read_commands(path: Path, machine: Machine) -> dict[int, list[Flat]]:
    """The commands of such a file by channel, as the checker takes them; `NearbankError` names a bad line."""
    org, known = machine.organization, {spec.name for spec in standard_named(machine.standard).commands}
    most = (org.banks - 1, _MOST_PLACE, _MOST_PLACE)
    channels: dict[int, list[Flat]] = {}
    for number, line in lines(path):
        words = line.split(",")
        if number == 1 and tuple(words) == COLUMNS:
            continue
        if len(words) != len(COLUMNS):
            raise bad_line(path, number, f"{len(words)} columns", f"{len(COLUMNS)}: {', '.join(COLUMNS)}")
        if words[2] not in known:
            raise bad_line(path, number, f"unknown command {words[2][:40]!r}", f"one of {', '.join(sorted(known))}")
        cycle = integer(path, number, words[0], "cycle", _MOST_CYCLE)
        channel = integer(path, number, words[1], "channel", org.channels - 1)
        places = zip(("bank", "row", "column"), words[3:], most, strict=True)
        bank, row, column = (integer(path, number, word, what, top) if word else 0 for what, word, top in places)
        channels.setdefault(channel, []).append(Flat(cycle, words[2], bank, row, column))
    return channels
