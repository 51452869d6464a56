"""Replaying a trace file on a machine, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.policy import POLICIES
from nearbank.sim.readers.aim import play_aim, read_aim
from nearbank.sim.readers.requests import read_dramsim3, read_ramulator
from nearbank.sim.readers.text import lines
from nearbank.sim.requests.controller import RequestResult, Until, serve

FORMATS = ("aim", "dramsim3", "ramulator")
_SNIFF_LINES = 1000


@dataclass(frozen=True, slots=True)
class Replay:
    """What a trace file took on a machine; `commands` counts issued commands by name, absent values are None."""

    file: str
    format: str
    machine: str
    cycles: int
    time_ns: float
    requests: int
    commands: dict[str, int]
    row_hits: int
    row_misses: int | None = None
    row_conflicts: int | None = None
    read_latency_cycles: float | None = None
    wrapped_addresses: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def replay_file(path: str | Path, machine: str | Machine, format: str | None = None) -> Replay:  # noqa: A002
    """Replay a trace of AiM instructions or of DRAMsim3's or Ramulator's requests; gzip files are fine.

    The front end is the format's own: AiM's host unit; one request a cycle until the last answer (DRAMsim3) or until
    the last request is taken (Ramulator). The policy is the machine's `controller`, else that simulator's.
    """
    path = Path(path)
    device = load_machine(machine) if isinstance(machine, str) else machine
    if not path.is_file():
        raise NearbankError(f"{path}: no such file; expected a trace ({', '.join(FORMATS)})")
    kind = format or sniff(path)
    if kind not in FORMATS:
        raise NearbankError(f"unknown trace format {kind!r}; known: {', '.join(FORMATS)}")
    if kind == "aim":
        return _aim(path, device)
    policy = device.controller or POLICIES[kind]
    until: Until = "answered" if kind == "dramsim3" else "accepted"
    trace = read_dramsim3(path) if kind == "dramsim3" else read_ramulator(path, device, policy)
    return _requests(path, kind, device, serve(device, trace, policy, until=until))


def sniff(path: Path) -> str:
    """The format of a file, from its first line with content."""
    for number, line in lines(path):
        words = line.split("#", 1)[0].replace(",", " ").split()
        if words:
            return _format_of(path, number, words)
        if number >= _SNIFF_LINES:
            break
    raise NearbankError(f"{path}: holds no instruction or request; expected a trace ({', '.join(FORMATS)})")


def _format_of(path: Path, number: int, words: list[str]) -> str:
    if words[0] == "AiM" or (words[0] in ("R", "W") and len(words) > 1 and words[1] in ("MEM", "GPR", "CFR")):
        return "aim"
    if words[0] in ("LD", "ST", "R", "W"):
        return "ramulator"
    if len(words) == 3 and (words[1].isalpha() or words[1].startswith("P_")):
        return "dramsim3"
    raise NearbankError(f"{path}, line {number}: not a known trace; expected {', '.join(FORMATS)}, or say which")


def _aim(path: Path, machine: Machine) -> Replay:
    result = play_aim(machine, read_aim(path, machine))
    return Replay(
        file=str(path),
        format="aim",
        machine=machine.name,
        cycles=result.cycles,
        time_ns=result.time_ps / 1000,
        requests=result.instructions,
        commands=result.commands,
        row_hits=result.row_hits,
    )


def _requests(path: Path, kind: str, machine: Machine, result: RequestResult) -> Replay:
    return Replay(
        file=str(path),
        format=kind,
        machine=machine.name,
        cycles=result.cycles,
        time_ns=result.time_ps / 1000,
        requests=result.requests,
        commands=result.commands,
        row_hits=result.row_hits,
        row_misses=result.row_misses,
        row_conflicts=result.row_conflicts,
        read_latency_cycles=result.read_latency_cycles,
        wrapped_addresses=result.wrapped,
    )
