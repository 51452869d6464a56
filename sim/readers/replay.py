"""Replaying a trace file on a machine, whatever the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.policy import POLICIES, Policy, policy_named, policy_with
from nearbank.sim.readers.aim import AimResult, play_aim, read_aim
from nearbank.sim.readers.commands import write_commands
from nearbank.sim.readers.requests import read_dramsim3, read_ramulator
from nearbank.sim.readers.text import lines
from nearbank.sim.requests.controller import RequestResult, Until, serve

FORMATS = ("aim", "dramsim3", "ramulator")
MOST_COMMANDS = 2 * 10**7
_SNIFF_LINES = 1000
_UNTIL: dict[str, Until] = {"dramsim3": "answered", "ramulator": "accepted"}  # as those simulators count


@dataclass(frozen=True, slots=True)
class Replay:
    """What a trace file took on a machine; `commands` counts issued commands by name, absent values are None.

    `cycles`, `commands` and rows count `until` the last request was accepted, answered, or drained into the memory.
    """

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
    until: Until | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def replay_file(
    path: str | Path,
    machine: str | Machine,
    format: str | None = None,  # noqa: A002
    *,
    policy: Sequence[str] = (),
    until: str | None = None,
    commands: str | Path | None = None,
) -> Replay:
    """Replay a trace of AiM instructions or of DRAMsim3's or Ramulator's requests.

    Packed files are fine, and pipes too where `format` is given.

    The front end is the format's own: AiM's host unit; one request a cycle until the last answer (DRAMsim3) or until
    the last request is taken (Ramulator), unless `until` says accepted, answered or drained. The policy is the
    machine's `controller`, else that simulator's; `policy` changes it: names of policies and "key=value" of `Policy`,
    and "refresh=…" of the machine. The issued commands go to the file `commands`, as CSV.
    """
    path = Path(path)
    device = load_machine(machine) if isinstance(machine, str) else machine
    if path.is_dir() or not path.exists():
        raise NearbankError(f"{path}: no such file; expected a trace ({', '.join(FORMATS)})")
    if format is None and not path.is_file():
        raise NearbankError(f"{path}: a pipe can be read but once; say which format it has ({', '.join(FORMATS)})")
    kind = format or sniff(path)
    if kind not in FORMATS:
        raise NearbankError(f"unknown trace format {kind!r}; known: {', '.join(FORMATS)}")
    device, rules = with_policy(device, device.controller or POLICIES.get(kind), policy)
    end = _until(kind, until)
    play = _aim_player(path, device) if rules is None else _request_player(path, kind, device, rules, end)
    result = play(0)
    if commands is not None:
        _write(Path(commands), play, sum(result.commands.values()))
    if isinstance(result, AimResult):
        return _of_aim(path, device, result)
    return _of_requests(path, kind, device, result, end)


def _until(kind: str, until: str | None) -> Until:
    if until is None:
        return _UNTIL.get(kind, "answered")
    if kind not in _UNTIL:
        raise NearbankError(f"until {until!r}: {kind} traces end with their last instruction; leave it out")
    if until not in get_args(Until):
        raise NearbankError(f"until {until!r}: expected one of {', '.join(get_args(Until))}")
    return until  # type: ignore[return-value]


_Result = AimResult | RequestResult
_Player = Callable[[int], _Result]  # plays the trace and records so many commands


def _aim_player(path: Path, machine: Machine) -> _Player:
    program = read_aim(path, machine)
    return lambda record: play_aim(machine, program, record)


def _request_player(path: Path, kind: str, machine: Machine, policy: Policy, until: Until) -> _Player:
    trace = read_dramsim3(path) if kind == "dramsim3" else read_ramulator(path, machine, policy)
    return lambda record: serve(machine, trace, policy, until=until, record=record)


def _write(path: Path, play: _Player, count: int) -> None:
    """Play again, now with a record of the right size."""
    if count > MOST_COMMANDS:
        raise NearbankError(f"{path}: {count} commands; at most {MOST_COMMANDS} are written, so split the trace")
    issued = play(count).issued
    assert issued is not None
    write_commands(path, issued)


def with_policy(machine: Machine, policy: Policy | None, changes: Sequence[str]) -> tuple[Machine, Policy | None]:
    """Machine and policy with changes such as "dramsim3", "row_policy=closed" and "refresh=none".

    Values are laid over the last policy named. Without a policy (AiM's host unit has its own) only the refresh can be
    changed.
    """
    values: dict[str, str] = {}
    for change in changes:
        key, equals, value = (part.strip() for part in change.partition("="))
        if key == "refresh":
            machine = _with_refresh(machine, value)
        elif policy is None:
            raise NearbankError(f"policy {change!r}: AiM traces have their own order; only refresh=… can be changed")
        elif equals:
            values[key] = value
        else:
            policy, values = policy_named(key), {}
    return machine, policy_with(policy, values) if policy is not None and values else policy


def _with_refresh(machine: Machine, kind: str) -> Machine:
    """The machine with another refresh policy, as far as it has the times for it."""
    needs = {"none": (), "all_bank": ("tREFI", "tRFC"), "per_bank": ("tREFIpb",)}
    if kind not in needs:
        raise NearbankError(f"policy refresh={kind}: expected one of {', '.join(needs)}")
    lacking = [name for name in needs[kind] if name not in machine.timing]
    if lacking:
        raise NearbankError(f"policy refresh={kind}: machine {machine.name} has no {lacking[0]}")
    refresh = machine.refresh.model_copy(update={"policy": kind})
    return machine.model_copy(update={"refresh": refresh})


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


def _of_aim(path: Path, machine: Machine, result: AimResult) -> Replay:
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


def _of_requests(path: Path, kind: str, machine: Machine, result: RequestResult, until: Until) -> Replay:
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
        until=until,
    )
