"""Ordinary reads and writes on a machine: addresses in, cycles, commands and row hits out.

The policies (`sim.policy`) are played by compiled schedulers, `shared` and `per_bank`, over the machine's own timing
rules. Traffic of programs is the engine's business; this module knows requests alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.policy import POLICIES, Policy
from nearbank.sim.requests import per_bank_lines, shared_queues
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.arrivals import fill
from nearbank.sim.requests.clocks import new_channels
from nearbank.sim.requests.mapping import AddressMap, address_map
from nearbank.sim.requests.per_bank import run_per_bank
from nearbank.sim.requests.shared import run_shared
from nearbank.sim.requests.state import COMMANDS
from nearbank.sim.requests.timing import MOST_BANKS
from nearbank.sim.standard import Scope, delay_cycles
from nearbank.sim.standards import standard_named

Until = Literal["accepted", "answered", "drained"]
Ints = NDArray[np.int64]
_REFRESH = {"none": 0, "all_bank": 1, "per_bank": 2}


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order: byte addresses, whether each writes, and the first cycle each may come (all 0: at once)."""

    addresses: NDArray[np.uint64]
    writes: NDArray[np.bool_]
    arrivals: NDArray[np.int64]

    @classmethod
    def at_once(cls, addresses: NDArray[np.uint64], writes: NDArray[np.bool_] | None = None) -> Trace:
        """Requests that come as fast as they are taken; reads unless `writes` says otherwise."""
        none = np.zeros(len(addresses), np.bool_)
        return cls(addresses, none if writes is None else writes, np.zeros(len(addresses), np.int64))


@dataclass(frozen=True, slots=True)
class Commands:
    """Issued commands, one row each, in order of issue per channel."""

    cycle: NDArray[np.int64]
    channel: NDArray[np.int64]
    name: list[str]
    bank: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What serving a trace took.

    A request is a row hit when the row was open as its turn came, a conflict when another one was, else a miss.
    Latency is from acceptance to the end of the data. `wrapped` addresses were beyond the machine's capacity.
    """

    cycles: int
    time_ps: int
    requests: int
    commands: dict[str, int]
    row_hits: int
    row_misses: int
    row_conflicts: int
    reads_done: int
    writes_done: int
    read_latency_cycles: float | None
    wrapped: int
    issued: Commands | None = field(default=None, repr=False)


def serve(
    machine: Machine,
    trace: Trace,
    policy: Policy | None = None,
    *,
    until: Until = "drained",
    record: int = 0,
) -> RequestResult:
    """Serve a trace: one request a cycle at most, in order, waiting for room in its channel's queue.

    `until` "accepted" stops when the last request has been taken (as Ramulator counts), "answered" when the last
    answer is there (as DRAMsim3 counts; the last writes may still be queued), "drained" when everything is in memory.
    `record` keeps that many issued commands. The policy is the machine's own unless given.
    """
    policy = policy or machine.controller or POLICIES["ramulator"]
    requests, wrapped = placed(trace, address_map(policy.mapping, machine.organization))
    log = np.zeros((max(record, 0) + 1, fields.LOG_WIDTH), np.int64)
    log[0, fields.LOG_PLACES] = len(log) - 1
    run = _run_shared if policy.queues == "shared" else _run_per_bank
    counters, cycles = run(machine, policy, requests, log, until)
    return _result(machine, trace, wrapped, counters, cycles, log)


def placed(trace: Trace, mapping: AddressMap) -> tuple[Ints, int]:
    """The requests as the compiled schedulers read them, one row each, and how many addresses wrapped around."""
    requests = np.empty((len(trace.addresses), fields.REQUEST_WIDTH), np.int64)
    addresses = np.ascontiguousarray(trace.addresses, np.uint64).view(np.int64)
    writes, arrivals = np.ascontiguousarray(trace.writes, np.bool_), np.ascontiguousarray(trace.arrivals, np.int64)
    return requests, fill(requests, addresses, writes, arrivals, mapping.shifts())


def _run_shared(machine: Machine, policy: Policy, requests: Ints, log: Ints, until: Until) -> tuple[Ints, int]:
    _check_sizes(shared_queues.LONGEST_QUEUE, read_queue=policy.read_queue, write_queue=policy.write_queue)
    setup = _common_setup(machine, policy) | {
        "drain_above": int(policy.write_high * policy.write_queue),
        "drain_below": -int(-policy.write_low * policy.write_queue // 1),
        "keep_hits": int(policy.keep_hits),
        "row_cap": policy.row_cap if policy.row_policy == "closed" else 0,
    }
    numbers = [setup[name] for name in shared_queues.SETUP]
    table, memory = _channels(machine, policy, numbers, shared_queues.SHARED_SIZE)
    memory[:, shared_queues.CHANNEL] = np.arange(len(memory))
    run_shared(table, memory, requests, log, np.zeros(len(memory), np.int64), until != "accepted")
    counters = memory[:, : fields.COUNTERS]
    last = fields.LAST_ACCEPTED if until == "accepted" else fields.LAST_DONE
    return counters, int(counters[:, last].max(initial=0))


def _run_per_bank(machine: Machine, policy: Policy, requests: Ints, log: Ints, until: Until) -> tuple[Ints, int]:
    _check_sizes(per_bank_lines.LONGEST_QUEUE, read_queue=policy.read_queue, write_queue=policy.write_queue)
    _check_sizes(per_bank_lines.LONGEST_LINE, bank_queue=policy.bank_queue)
    if standard_named(machine.standard).any_edge:
        raise NearbankError(f"policy: queues per_bank do not know the half clocks of {machine.standard}; use shared")
    org, closed = machine.organization, policy.row_policy == "closed"
    setup = _common_setup(machine, policy) | {
        "line_size": policy.bank_queue,
        "write_idle": policy.write_idle,
        "hit_cap": policy.row_hit_cap,
        "groups": org.bank_groups,
        "banks_per_group": org.banks_per_group,
        "closed": int(closed),
        "activate": fields.ACT,
        "close": fields.PRE,
        "read": fields.RDA if closed else fields.RD,
        "write": fields.WRA if closed else fields.WR,
    }
    if machine.refresh.policy == "all_bank":
        setup["refresh_interval"] //= setup["units"]  # the units take turns
    else:
        setup["units"] = org.banks
    numbers = [setup[name] for name in per_bank_lines.SETUP]
    table, memory = _channels(machine, policy, numbers, per_bank_lines.PER_BANK_SIZE)
    memory[:, per_bank_lines.CHANNEL] = np.arange(len(memory))
    run_per_bank(table, memory, requests, log, np.zeros(len(memory), np.int64), until == "drained")
    counters = memory[:, : fields.COUNTERS]
    last = fields.LAST_ACCEPTED if until == "accepted" else fields.LAST_DONE
    return counters, int(counters[:, last].max(initial=-1)) + 1


def _channels(machine: Machine, policy: Policy, setup: list[int], size: int) -> tuple[Ints, Ints]:
    """Tables and memory of all channels, rows closed and queues empty."""
    unused = () if policy.row_policy == "closed" else ("RDA", "WRA")
    table, memory = new_channels(machine, standard_named(machine.standard), setup, size, MOST_BANKS, unused)
    memory[:, fields.BANKS_AT : fields.AFTER_BANKS : fields.BANK_WIDTH] = -1  # the open rows
    return table, memory


def _check_sizes(most: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size > most:
            raise NearbankError(f"policy: {name} is {size}; at most {most} are supported")


def _common_setup(machine: Machine, policy: Policy) -> dict[str, int]:
    """The numbers both schedulers need."""
    org = machine.organization
    kind = machine.refresh.policy
    interval = {"none": 0, "all_bank": "tREFI", "per_bank": "tREFIpb"}[kind]
    unit = _refresh_unit(machine)
    return {
        "banks": org.banks,
        "read_size": policy.read_queue,
        "write_size": policy.write_queue,
        "two_buses": int(bool(standard_named(machine.standard).row_bus)),
        "half_clocks": int(bool(standard_named(machine.standard).any_edge)),
        "refresh": _REFRESH[kind],
        "refresh_interval": machine.cycles(interval) if isinstance(interval, str) else 0,
        "units": org.banks // unit,
        "unit_banks": unit,
        "read_latency": _latency(machine, "RD"),
        "write_latency": _latency(machine, "WR"),
        "row_timeout": policy.row_timeout if policy.row_policy == "timeout" else 0,
    }


def _refresh_unit(machine: Machine) -> int:
    """How many banks one all-bank refresh reaches."""
    org, standard = machine.organization, standard_named(machine.standard)
    reach = standard.command(standard.refresh).reach
    rank = org.bank_groups * org.banks_per_group
    return {Scope.RANK: rank, Scope.PSEUDO_CHANNEL: rank * org.ranks}.get(reach, org.banks)


def _latency(machine: Machine, command: str) -> int:
    cycles = {name: machine.cycles(name) for name in machine.timing}
    return delay_cycles(standard_named(machine.standard).command(command).latency, cycles)


def _result(
    machine: Machine,
    trace: Trace,
    wrapped: int,
    counters: Ints,
    cycles: int,
    log: Ints,
) -> RequestResult:
    total = counters.sum(axis=0)
    reads = int(total[fields.READS_DONE])
    return RequestResult(
        cycles=cycles,
        time_ps=cycles * machine.tck_ps,
        requests=len(trace.addresses),
        commands={name: int(total[i]) for i, name in enumerate(COMMANDS) if total[i]},
        row_hits=int(total[fields.HITS]),
        row_misses=int(total[fields.MISSES]),
        row_conflicts=int(total[fields.CONFLICTS]),
        reads_done=reads,
        writes_done=int(total[fields.WRITES_DONE]),
        read_latency_cycles=int(total[fields.READ_CYCLES]) / reads if reads else None,
        wrapped=wrapped,
        issued=issued_commands(log, COMMANDS) if len(log) > 1 else None,
    )


def issued_commands(log: Ints, names: Sequence[str]) -> Commands:
    """The command log of a compiled run; `names` are the commands by number."""
    kept = min(len(log) - 1, int(log[0, fields.LOG_COUNT]))
    cycle, channel, command, bank, row, column = np.ascontiguousarray(log[1 : kept + 1].T)
    return Commands(cycle, channel, [names[i] for i in command], bank, row, column)
