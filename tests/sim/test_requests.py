"""The compiled controllers against plain Python, formulas and themselves."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.sim.checker import check
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.policy import POLICIES, Policy
from nearbank.sim.readers import read_commands, write_commands
from nearbank.sim.requests import Trace, serve
from nearbank.sim.requests.controller import placed
from nearbank.sim.requests.mapping import address_map
from nearbank.sim.requests.per_bank_reference import serve_per_bank_slowly
from nearbank.sim.requests.reference import serve_slowly

PLAIN = ("ddr4", "ddr5", "gddr6", "hbm2", "hbm3", "lpddr5")


def small(name: str, refresh: str = "all_bank", ranks: int | None = None) -> Machine:
    """The named machine with few rows, so that requests meet, and with frequent refreshes."""
    machine = load_machine(name)
    org = machine.organization.model_copy(update={"rows": 4, "columns": 8} | ({"ranks": ranks} if ranks else {}))
    plan = machine.refresh.model_copy(update={"policy": refresh})
    return machine.model_copy(update={"organization": org, "refresh": plan})


@st.composite
def traces(draw: st.DrawFn, machine: Machine) -> Trace:
    count = draw(st.integers(1, 80))
    most = machine.organization.channel_bytes // machine.organization.column_bytes - 1
    near = draw(st.integers(1, 64))
    blocks = draw(st.lists(st.integers(0, min(most, near * 40)), min_size=count, max_size=count))
    writes = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    gaps = draw(st.lists(st.integers(0, draw(st.sampled_from((0, 5, 400)))), min_size=count, max_size=count))
    addresses = np.array(blocks, np.uint64) * np.uint64(machine.organization.column_bytes)
    return Trace(addresses, np.array(writes), np.cumsum(np.array(gaps, np.int64)))


policies = st.builds(
    Policy,
    keep_hits=st.booleans(),
    read_queue=st.integers(1, 12),
    write_queue=st.integers(1, 12),
    row_policy=st.sampled_from(("open", "closed", "timeout")),
    row_cap=st.integers(1, 3),
    row_timeout=st.integers(1, 200),
    mapping=st.sampled_from(("RoBaRaCoCh", "rocorababgpcch", "rorabgbachco")),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compiled_equals_plain_python(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(PLAIN))
    refreshes = ("all_bank", "none") if name in ("ddr4", "ddr5", "gddr6") else ("all_bank", "none", "per_bank")
    ranks = data.draw(st.sampled_from((1, 2))) if name in ("ddr4", "ddr5", "lpddr5") else None
    machine = small(name, data.draw(st.sampled_from(refreshes)), ranks)
    trace, policy = data.draw(traces(machine)), data.draw(policies)
    slow = serve_slowly(machine, trace, policy)
    fast = serve(machine, trace, policy, record=10**5)
    assert fast.issued is not None
    columns = (fast.issued.cycle, fast.issued.name, fast.issued.bank)
    got = [(int(cycle), command, int(bank)) for cycle, command, bank in zip(*columns, strict=True)]
    assert got == [(cycle, command, bank) for cycle, command, bank, _, _ in slow.issued]
    assert (fast.row_hits, fast.row_misses, fast.row_conflicts) == (slow.hits, slow.misses, slow.conflicts)
    assert fast.cycles == slow.last_done


per_bank_policies = st.builds(
    Policy,
    queues=st.just("per_bank"),
    read_queue=st.integers(1, 12),
    write_queue=st.integers(1, 12),
    bank_queue=st.integers(1, 4),
    write_idle=st.integers(1, 8),
    row_hit_cap=st.integers(1, 4),
    row_policy=st.sampled_from(("open", "closed", "timeout")),
    row_timeout=st.integers(1, 200),
    mapping=st.sampled_from(("RoBaRaCoCh", "rocorababgpcch", "rorabgbachco")),
)


@pytest.mark.parametrize("refresh", ["all_bank", "per_bank", "none"])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_compiled_per_bank_equals_plain_python(refresh: str, data: st.DataObject) -> None:
    names = ("hbm2", "lpddr5", "hbm2-dramsim3") + (("ddr4", "gddr6") if refresh != "per_bank" else ())
    name = data.draw(st.sampled_from(names))
    ranks = data.draw(st.sampled_from((1, 2))) if name in ("ddr4", "lpddr5") else None
    machine = small(name, refresh, ranks)
    trace, policy = data.draw(traces(machine)), data.draw(per_bank_policies)
    slow = serve_per_bank_slowly(machine, trace, policy)
    fast = serve(machine, trace, policy, record=10**5)
    assert fast.issued is not None
    columns = (fast.issued.channel, fast.issued.cycle, fast.issued.name, fast.issued.bank)
    got = sorted((int(ch), int(cycle), bank, command) for ch, cycle, command, bank in zip(*columns, strict=True))
    expected = [(ch, cycle, bank, name) for ch, out in enumerate(slow) for cycle, name, bank, _, _ in out.issued]
    assert got == sorted(expected)
    counted = [sum(getattr(out, name) for out in slow) for name in ("hits", "misses", "conflicts")]
    assert [fast.row_hits, fast.row_misses, fast.row_conflicts] == counted
    assert fast.cycles == max(out.last_done for out in slow) + 1


@pytest.mark.parametrize("row_policy", ["open", "closed", "timeout"])
@pytest.mark.parametrize(("name", "queues"), [(n, q) for n in PLAIN for q in ("shared", "per_bank")])
def test_the_checker_finds_nothing_in_what_is_issued(name: str, queues: str, row_policy: str, tmp_path: Path) -> None:
    """Written as text, read again, and held against the table of rules by code that shares nothing with ours."""
    if queues == "per_bank" and name == "hbm3":
        pytest.skip("per-bank queues do not know half clocks")
    machine, rng = load_machine(name), np.random.default_rng(5)
    blocks = rng.integers(0, 1 << 13, 400).astype(np.uint64) * np.uint64(machine.organization.column_bytes)
    trace = Trace(blocks, rng.random(400) < 0.3, np.cumsum(rng.choice([0, 0, 200], 400)))
    result = serve(machine, trace, Policy(queues=queues, row_policy=row_policy, row_timeout=50), record=10**5)
    assert result.issued is not None
    write_commands(tmp_path / "issued.csv", result.issued)
    channels = read_commands(tmp_path / "issued.csv", machine)
    assert sum(map(len, channels.values())) == sum(result.commands.values())
    assert result.commands["REFab"] > 0
    assert [str(found) for commands in channels.values() if (found := check(machine, commands))] == []


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("queues", ["shared", "per_bank"])
def test_every_request_is_served_once(name: str, queues: str) -> None:
    machine = load_machine(name)
    if queues == "per_bank" and name == "hbm3":
        pytest.skip("per-bank queues do not know half clocks")
    rng = np.random.default_rng(5)
    blocks = rng.permutation(1 << 16)[:4000].astype(np.uint64) * np.uint64(machine.organization.column_bytes)
    writes = rng.random(4000) < 0.3
    result = serve(machine, Trace.at_once(blocks, writes), Policy(queues=queues))
    assert result.reads_done == int((~writes).sum())
    assert result.writes_done == int(writes.sum())
    assert result.commands["RD"] == result.reads_done
    assert result.commands["WR"] == result.writes_done
    assert result.row_hits + result.row_misses + result.row_conflicts == 4000


def test_streaming_bandwidth_is_the_rules_own() -> None:
    """Reads that alternate between bank groups run at tCCDS, those of one row at tCCDL, less what refresh takes."""
    machine = load_machine("ddr4")
    count = 60_000
    alternating = serve(machine, _stream(machine, count), Policy(mapping="robacobg"))
    one_row = serve(machine, Trace.at_once(np.zeros(count, np.uint64)), Policy())
    share = 1 - (machine.cycles("tRFC") + machine.cycles("tRP")) / machine.cycles("tREFI")
    assert alternating.cycles == pytest.approx(count * machine.cycles("tCCDS") / share, rel=0.01)
    assert one_row.cycles == pytest.approx(count * machine.cycles("tCCDL") / share, rel=0.01)


def _stream(machine: Machine, count: int) -> Trace:
    return Trace.at_once(np.arange(count, dtype=np.uint64) * np.uint64(machine.organization.column_bytes))


def test_random_rows_run_at_the_activation_window() -> None:
    """With a row for every read, four reads take tFAW in DDR4-2400."""
    machine = load_machine("ddr4")
    machine = machine.model_copy(update={"refresh": machine.refresh.model_copy(update={"policy": "none"})})
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 1 << 24, 40_000).astype(np.uint64) * np.uint64(64)
    result = serve(machine, Trace.at_once(rows), Policy(read_queue=256))
    assert result.cycles / 40_000 == pytest.approx(machine.cycles("tFAW") / 4, rel=0.01)


def test_a_single_read_takes_activation_latency_and_burst() -> None:
    machine = load_machine("ddr4")
    result = serve(machine, Trace.at_once(np.array([64], np.uint64)))
    expected = 1 + machine.cycles("tRCD") + machine.cycles("tCL") + machine.cycles("tBL")
    assert result.cycles == expected
    assert result.read_latency_cycles == expected


def test_channels_share_one_front_end() -> None:
    """Twice the channels, twice the speed, until one request a cycle is the limit."""
    machine = load_machine("hbm2-dramsim3")
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 1 << 22, 20_000).astype(np.uint64) * np.uint64(64)
    for policy in (POLICIES["dramsim3"].model_copy(update={"mapping": "rorabgbachco"}), Policy(mapping="rorabgbachco")):
        result = serve(machine, Trace.at_once(rows), policy)
        assert 20_000 <= result.cycles < 24_000


def test_closed_rows_never_conflict() -> None:
    machine = load_machine("gddr6")
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 1 << 20, 3000).astype(np.uint64) * np.uint64(32)
    result = serve(machine, Trace.at_once(rows), Policy(row_policy="closed"))
    assert result.row_conflicts == 0
    assert result.commands["RDA"] > 0


def test_wrapped_addresses_are_counted() -> None:
    machine = load_machine("hbm2")
    top = machine.organization.total_bytes
    result = serve(machine, Trace.at_once(np.array([0, top, top + 32], np.uint64)))
    assert result.wrapped == 2


@pytest.mark.parametrize("mapping", ["roba", "rorobaraco", "xxyy", "robacoz", "co"])
def test_bad_mappings_are_refused(mapping: str) -> None:
    with pytest.raises(NearbankError, match="address mapping"):
        serve(load_machine("ddr4"), Trace.at_once(np.zeros(1, np.uint64)), Policy(mapping=mapping))


def test_missing_timing_is_named() -> None:
    machine = load_machine("ddr4")
    timing = {k: v for k, v in machine.timing.items() if k != "tFAW"}
    with pytest.raises(NearbankError, match="tFAW"):
        serve(machine.model_copy(update={"timing": timing}), Trace.at_once(np.zeros(1, np.uint64)))


def test_results_are_values() -> None:
    result = serve(load_machine("ddr4"), Trace.at_once(np.zeros(1, np.uint64)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.cycles = 1  # type: ignore[misc]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from((*PLAIN, "hbm2-dramsim3")),
    st.permutations(("ch", "pc", "ra", "bg", "ba", "ro", "co")),
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
)
def test_compiled_places_equal_those_of_numpy(name: str, pattern: list[str], addresses: list[int]) -> None:
    mapping = address_map("".join(pattern), load_machine(name).organization)
    trace = Trace.at_once(np.array(addresses, np.uint64), np.array(addresses, np.uint64) % 2 == 1)
    got, wrapped = placed(trace, mapping)
    place = mapping.place(trace.addresses)
    columns = (place.channel, place.bank, place.row, place.column, place.block, trace.writes, trace.arrivals)
    assert got[:, :7].tolist() == np.stack(columns, axis=1).astype(np.int64).tolist()
    assert wrapped == place.wrapped
