"""Reading AiM instruction traces (ISR), as CENT and the AiM simulator write them, and playing them.

Instructions stand one a line, with words parted by spaces or commas; `#` starts a comment. In a channel mask the most
significant of 32 bits is channel 0. Values of general registers and of the configuration cost no memory time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.readers.text import bad_line, integer, lines
from nearbank.sim.requests import aim_state as aim
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.aim import run_aim
from nearbank.sim.requests.clocks import Ints, new_channels
from nearbank.sim.requests.controller import Commands, issued_commands
from nearbank.sim.requests.timing import SETUP_SIZE
from nearbank.sim.standard import Scope, delay_cycles
from nearbank.sim.standards import standard_named

MOST_INSTRUCTIONS = 2 * 10**7
_MASK_BITS = 32
_AF_ROW = 1 << 29  # the AiM simulator keeps the tables of activation functions in rows from here on
_MOST = 2**31 - 1

# Words after the instruction's name, and the command it becomes.
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "WR_GB": ("WRGB", ("count", "gpr", "mask")),
    "WR_BIAS": ("WRBIAS", ("gpr", "mask")),
    "MAC_ABK": ("MACAB", ("count", "mask", "row")),
    "MAC_SBK": ("MACSB", ("count", "mask", "bank", "row")),
    "RD_MAC": ("RDMAC", ("gpr", "mask")),
    "RD_AF": ("RDAF", ("gpr", "mask")),
    "AF": ("AF", ("mask",)),
    "EWMUL": ("EWMUL", ("count", "mask", "row")),
    "EWADD": ("", ("count", "gpr", "gpr")),
    "COPY_BKGB": ("RDCP", ("count", "mask", "bank", "row")),
    "COPY_GBBK": ("WRCP", ("count", "mask", "bank", "row")),
    "WR_ABK": ("WRBK", ("gpr", "mask", "row")),
    "WR_SBK": ("WR", ("gpr", "mask", "bank", "row")),
    "RD_SBK": ("RD", ("gpr", "mask", "bank", "row")),
    "SYNC": ("SYNC", ()),
    "EOC": ("SYNC", ()),
}
_REGIONS = {"MEM": ("channel", "bank", "row"), "GPR": ("gpr",), "CFR": ("gpr", "data")}


@dataclass(frozen=True, slots=True)
class AimResult:
    """What playing a trace took. A row hit is a column access whose row needed no command before it."""

    cycles: int
    time_ps: int
    instructions: int
    commands: dict[str, int]
    row_hits: int
    issued: Commands | None = field(default=None, repr=False)


def read_aim(path: Path, machine: Machine, most: int = MOST_INSTRUCTIONS) -> NDArray[np.int64]:
    """Instructions as rows of command, count, channels as bits, bank and row; `NearbankError` names a bad line."""
    reader = _Reader(path, machine)
    rows = array("q")
    ended = False
    for number, words in _instructions(path):
        if ended:
            raise bad_line(path, number, "an instruction after EOC", "EOC on the last line")
        if len(rows) >= 5 * most:
            raise bad_line(path, number, f"more than {most} instructions", "a trace that fits in memory; split it")
        rows.extend(reader.row(number, words))
        ended = words[:2] in (["AiM", "EOC"], ["AiM", "ISR_EOC"])
    if not ended:
        raise NearbankError(f"{path}: ends without 'AiM EOC'; expected it on the last line, so the file may be cut")
    return np.frombuffer(rows, np.int64).reshape(-1, 5)


def _instructions(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines(path):
        words = line.split("#", 1)[0].replace(",", " ").split()
        if words:
            yield number, words


@dataclass(slots=True)
class _Reader:
    """Turns words into rows; remembers the one configuration register that places a command (the AF table)."""

    path: Path
    machine: Machine
    function: int = 0

    def row(self, number: int, words: list[str]) -> tuple[int, int, int, int, int]:
        if words[0] == "AiM" and len(words) > 1:
            return self._aim(number, words[1].removeprefix("ISR_"), words[2:])
        if words[0] in ("R", "W") and len(words) > 1:
            return self._access(number, words[0], words[1], words[2:])
        raise bad_line(self.path, number, f"{' '.join(words)[:40]!r}", "AiM, R or W and an instruction")

    def _aim(self, number: int, name: str, words: list[str]) -> tuple[int, int, int, int, int]:
        if name not in _FIELDS:
            raise bad_line(self.path, number, f"unknown instruction {name[:40]!r}", f"one of {', '.join(_FIELDS)}")
        command, names = _FIELDS[name]
        values = self._values(number, name, names, words)
        if command == "SYNC":
            return aim.SYNC, 1, (1 << self.machine.organization.channels) - 1, -1, -1
        if not command:
            return aim.NOTHING, 0, 0, -1, -1
        row = _AF_ROW + self.function if name == "AF" else values.get("row", -1)
        channels = self._channels(number, values["mask"])
        last = values.get("row", 0) + (values.get("count", 1) - 1) // self.machine.organization.columns
        if last >= self.machine.organization.rows:
            raise bad_line(
                self.path, number, f"{name} ends in row {last}", f"rows below {self.machine.organization.rows}"
            )
        return aim.COMMANDS.index(command), values.get("count", 1), channels, values.get("bank", -1), row

    def _access(self, number: int, kind: str, region: str, words: list[str]) -> tuple[int, int, int, int, int]:
        if region not in _REGIONS:
            raise bad_line(self.path, number, f"unknown region {region[:40]!r}", "MEM, GPR or CFR")
        names = _REGIONS[region][: 1 if region == "CFR" and kind == "R" else None]
        values = self._values(number, f"{kind} {region}", names, words)
        if region == "CFR" and values["gpr"] == 2 and kind == "W":
            self.function = values["data"]
        if region != "MEM":
            return aim.NOTHING, 0, 0, -1, -1
        return (
            aim.COMMANDS.index("RD" if kind == "R" else "WR"),
            1,
            1 << values["channel"],
            values["bank"],
            values["row"],
        )

    def _values(self, number: int, name: str, names: tuple[str, ...], words: list[str]) -> dict[str, int]:
        if len(words) != len(names):
            expected = f"{len(names)}: {', '.join(names)}" if names else "none"
            raise bad_line(self.path, number, f"{name} with {len(words)} numbers", expected)
        pairs = zip(names, words, strict=True)
        return {key: integer(self.path, number, word, key, self._most(key)) for key, word in pairs}

    def _most(self, key: str) -> int:
        org = self.machine.organization
        limits = {"channel": org.channels, "bank": org.banks, "row": org.rows, "mask": 1 << _MASK_BITS}
        return limits.get(key, org.rows * org.columns + 1 if key == "count" else _MOST) - 1

    def _channels(self, number: int, mask: int) -> int:
        """Channel bits with channel 0 lowest, from a mask with channel 0 highest."""
        channels = int(f"{mask:032b}"[::-1], 2)
        if not channels or channels >> self.machine.organization.channels:
            most = self.machine.organization.channels
            raise bad_line(self.path, number, f"channel mask {mask:#x}", f"some of the machine's {most} channels")
        return channels


def play_aim(machine: Machine, program: NDArray[np.int64], record: int = 0) -> AimResult:
    """Play instructions on a machine with the AiM commands; `record` keeps that many issued commands."""
    table, memory = _channels(machine)
    _check_commands(machine, program)
    host, log = np.zeros(aim.HOST_SIZE, np.int64), np.zeros((max(record, 0) + 1, fields.LOG_WIDTH), np.int64)
    log[0, fields.LOG_PLACES] = len(log) - 1
    if not run_aim(table, memory, np.ascontiguousarray(program), host, log):
        raise NearbankError(f"machine {machine.name}: instruction {int(host[aim.AT])} never gets done")
    counts = memory[:, : len(aim.COMMANDS)].sum(axis=0)
    return AimResult(
        cycles=int(host[aim.CYCLE]),
        time_ps=int(host[aim.CYCLE]) * machine.tck_ps,
        instructions=len(program),
        commands={name: int(counts[i]) for i, name in enumerate(aim.COMMANDS) if counts[i]},
        row_hits=int(memory[:, aim.ROW_HITS].sum()),
        issued=issued_commands(log, aim.COMMANDS) if record else None,
    )


def _check_commands(machine: Machine, program: NDArray[np.int64]) -> None:
    """Refuse instructions whose command the machine's standard does not have."""
    names = {spec.name for spec in standard_named(machine.standard).commands}
    used = {int(number) for number in np.unique(program[:, aim.COMMAND]) if number < len(aim.COMMANDS)}
    lacking = sorted(aim.COMMANDS[number] for number in used if aim.COMMANDS[number] not in names)
    if lacking:
        raise NearbankError(
            f"machine {machine.name}: standard {machine.standard} has no {lacking[0]}; the trace uses it"
        )


def _channels(machine: Machine) -> tuple[Ints, Ints]:
    """Tables, and every channel's memory: rows closed, queues empty."""
    org, standard = machine.organization, standard_named(machine.standard)
    names = {spec.name for spec in standard.commands}
    lacking = [name for name in ("ACT16", "MACAB", "WRGB", "RDMAC") if name not in names]
    if lacking:
        raise NearbankError(f"machine {machine.name}: standard {standard.name} has no {lacking[0]}; AiM traces need it")
    if org.channels > aim.MOST_CHANNELS or org.banks > aim.MOST_BANKS:
        most = f"{aim.MOST_CHANNELS} channels of {aim.MOST_BANKS} banks"
        raise NearbankError(f"machine {machine.name}: AiM traces work with at most {most}")
    table, memory = new_channels(machine, standard, _setup(machine), aim.AIM_MEMORY, aim.MOST_BANKS, (), aim.COMMANDS)
    memory[:, aim.OPEN_ROWS : aim.OPEN_ROWS + aim.MOST_BANKS] = -1
    return table, memory


def _setup(machine: Machine) -> Ints:
    """Latencies and habits: those of the AiM simulator on its own machine, honest ones elsewhere."""
    standard = standard_named(machine.standard)
    cycles = {name: machine.cycles(name) for name in machine.timing}
    peer = standard.name == "gddr6-aim-peer"
    numbers = {
        "banks": machine.organization.banks,
        "refresh_interval": 0 if machine.refresh.policy == "none" else machine.cycles("tREFI"),
        "forwards": int(peer),
        "partly_open": int(peer),
        "columns": 0 if peer else machine.organization.columns,
        "uses_modes": int("tMODCH" in machine.timing and "TMOD" in {c.name for c in standard.commands}),
    }
    setup = np.zeros(SETUP_SIZE, np.int64)
    setup[: len(aim.SETUP)] = [numbers[name] for name in aim.SETUP]
    for spec in standard.commands:
        if spec.name in aim.COMMANDS:
            number = aim.COMMANDS.index(spec.name)
            setup[aim.LATENCY + number] = max(delay_cycles(spec.latency, cycles), 1)
            setup[aim.BELOW + number] = 1 if _channel_only(standard.rules, spec.name) else numbers["banks"]
    return setup


def _channel_only(rules: object, name: str) -> bool:
    """Whether no rule about the command counts below the channel."""
    local = (Scope.BANK, Scope.BANK_GROUP, Scope.FOUR_BANKS)
    return not any(r.scope in local and name in (*r.earlier, *r.later) for r in rules)  # type: ignore[attr-defined]
