"""Reading traces: what is written is read again, and what is broken is named in one line."""

import bz2
import gzip
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.sim.machine import load_machine
from nearbank.sim.policy import POLICIES
from nearbank.sim.readers import (
    read_commands,
    read_dramsim3,
    read_ramulator,
    replay_file,
    write_dramsim3,
    write_ramulator,
)
from nearbank.sim.readers.replay import with_policy
from nearbank.sim.requests import Trace

GEMV = (
    "AiM WR_GB 4 0 0x80000000\nAiM WR_BIAS 0 0x80000000\nAiM MAC_ABK 4 0x80000000 7\nAiM RD_MAC 0 0x80000000\nAiM EOC\n"
)


def file(folder: Path, text: str | bytes, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def some_trace() -> Trace:
    rng = np.random.default_rng(0)
    addresses = rng.integers(0, 1 << 20, 500).astype(np.uint64) * np.uint64(64)
    return Trace(addresses, rng.random(500) < 0.5, np.sort(rng.integers(0, 1000, 500)))


def test_dramsim3_traces_come_back_as_written(tmp_path: Path) -> None:
    trace = some_trace()
    write_dramsim3(tmp_path / "t", trace)
    again = read_dramsim3(tmp_path / "t")
    assert np.array_equal(again.addresses, trace.addresses)
    assert np.array_equal(again.writes, trace.writes)
    assert np.array_equal(again.arrivals, trace.arrivals)


def test_ramulator_traces_come_back_as_written(tmp_path: Path) -> None:
    trace = some_trace()
    write_ramulator(tmp_path / "t", trace)
    again = read_ramulator(tmp_path / "t", load_machine("ddr4"), POLICIES["ramulator"])
    assert np.array_equal(again.addresses, trace.addresses)
    assert np.array_equal(again.writes, trace.writes)
    assert not again.arrivals.any()


def test_ramulator_vectors_are_addresses(tmp_path: Path) -> None:
    """Channel, rank, bank group, bank, row, column of the DDR4 machine, row highest and column lowest."""
    path = file(tmp_path, "R 0,0,1,2,300,4\nW 0,0,3,0,0,127\n")
    trace = read_ramulator(path, load_machine("ddr4"), POLICIES["ramulator"])
    assert [hex(int(a)) for a in trace.addresses] == [
        hex((300 << 11 | 2 << 9 | 1 << 7 | 4) * 64),
        hex((3 << 7 | 127) * 64),
    ]
    assert trace.writes.tolist() == [False, True]


@pytest.mark.parametrize(
    "change", [bytes, gzip.compress, bz2.compress, lzma.compress, lambda raw: raw.replace(b"\n", b"\r\n")]
)
@pytest.mark.parametrize(
    ("text", "machine", "kind", "requests"),
    [
        (GEMV, "gddr6-aim-peer", "aim", 5),
        ("# comment\n\n0x40 READ 0\n80 WRITE 3\n", "ddr4", "dramsim3", 2),
        ("LD 0x40\nST 128\n", "gddr6", "ramulator", 2),
    ],
)
def test_formats_are_told_apart_plain_compressed_and_with_dos_ends(
    change: Callable[[bytes], bytes], text: str, machine: str, kind: str, requests: int, tmp_path: Path
) -> None:
    result = replay_file(file(tmp_path, change(text.encode())), machine)
    assert (result.format, result.requests) == (kind, requests)
    assert result.cycles > 0
    assert sum(result.commands.values()) > 0


def test_aim_traces_may_have_commas_and_long_names(tmp_path: Path) -> None:
    commas = "#,AiM,[opcode]\n" + GEMV.replace(" ", ",").replace("MAC_ABK", "ISR_MAC_ABK")
    plain = replay_file(file(tmp_path, GEMV), "gddr6-aim-peer")
    assert replay_file(file(tmp_path, commas, "other.csv"), "gddr6-aim-peer").commands == plain.commands


def test_every_aim_instruction_plays(tmp_path: Path) -> None:
    lines = [
        "W MEM 0 2 8", "R MEM 0 2 8", "W GPR 4", "R GPR 4", "W CFR 2 1", "R CFR 2",
        "AiM WR_SBK 0 0xC0000000 0 0", "AiM RD_SBK 0 0x80000000 0 0", "AiM WR_ABK 0 0x80000000 3",
        "AiM WR_GB 2 2 0xF0000000", "AiM WR_BIAS 4 0xF0000000", "AiM MAC_ABK 2 0xF0000000 0",
        "AiM MAC_SBK 2 0xF0000000 5 1", "AiM EWMUL 2 0xF0000000 0", "AiM AF 0xF0000000", "AiM RD_MAC 8 0xF0000000",
        "AiM RD_AF 12 0xF0000000", "AiM EWADD 4 8 12", "AiM COPY_BKGB 2 0xF0000000 0 0",
        "AiM COPY_GBBK 2 0xF0000000 9 0", "AiM SYNC", "AiM EOC",
    ]  # fmt: skip
    result = replay_file(file(tmp_path, "\n".join(lines)), "gddr6-aim-peer")
    assert result.requests == len(lines)
    array = {"WR", "RD", "WRBK", "MACAB", "MACSB", "EWMUL", "AF", "RDCP", "WRCP"}
    assert array | {"WRGB", "WRBIAS", "RDMAC", "RDAF"} <= set(result.commands)


def test_the_policy_can_be_chosen(tmp_path: Path) -> None:
    path = file(tmp_path, "".join(f"0x{64 * i:X} READ 0\n" for i in range(2000)))
    closed = replay_file(path, "ddr4", "dramsim3", policy=["ramulator", "row_policy=closed", "refresh=none"])
    assert closed.commands["RDA"] == closed.commands["ACT"] == 2000
    assert closed.row_hits == 0
    assert "REFab" not in closed.commands
    spread = replay_file(path, "ddr4", "dramsim3", policy=["mapping=robacobg"])
    assert spread.cycles < closed.cycles


def test_a_short_trace_is_counted_to_its_last_command_where_that_is_asked(tmp_path: Path) -> None:
    path = file(tmp_path, "LD 0x12345680\nST 0x4cbd56c0\nLD 0x35d46f00\n")
    accepted, drained = replay_file(path, "ddr4"), replay_file(path, "ddr4", until="drained")
    assert (accepted.until, accepted.cycles) == ("accepted", 2)
    assert drained.commands == {"ACT": 3, "RD": 2, "WR": 1}
    with pytest.raises(NearbankError, match="until 'done': expected one of accepted, answered, drained"):
        replay_file(path, "ddr4", until="done")
    with pytest.raises(NearbankError, match="aim traces end with their last instruction"):
        replay_file(file(tmp_path, "AiM EOC\n"), "gddr6-aim-peer", until="drained")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("row_policy=shut", "row_policy=shut.*'open', 'closed' or 'timeout'"),
        ("rows=open", "unknown key; known: queues"),
        ("fcfs", "unknown policy 'fcfs'; known: ramulator, dramsim3"),
        ("read_queue=0", "read_queue=0.*greater than 0"),
        ("write_low=0.9", r"write_low=0.9: write_low 0.9 is above write_high 0.8"),
        ("bank_queue=many", "bank_queue=many.*integer"),
        ("refresh=often", "expected one of none, all_bank, per_bank"),
        ("refresh=per_bank", "ddr4 has no tREFIpb"),
    ],
)
def test_policies_that_do_not_exist_are_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match=message) as caught:
        replay_file(file(tmp_path, "0x40 READ 0\n"), "ddr4", policy=[change])
    assert "\n" not in str(caught.value)


def test_values_that_belong_together_are_taken_together() -> None:
    changes = ["write_low=0.9", "dramsim3", "write_low=0.85", "write_high=0.95"]
    _, policy = with_policy(load_machine("ddr4"), POLICIES["ramulator"], changes)
    assert policy == POLICIES["dramsim3"].model_copy(update={"write_low": 0.85, "write_high": 0.95})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,0,ACT,0,1\n", "line 1: 5 columns"),
        ("1,0,HOP,0,1,0\n", "line 1: unknown command 'HOP'"),
        ("1,9,ACT,0,1,0\n", "line 1: channel '9' is out of range"),
        ("1,0,ACT,0,1,0\n2,0,RD,99,1,0\n", "line 2: bank '99'"),
        ("x,0,ACT,0,1,0\n", "line 1: cycle 'x'"),
    ],
)
def test_broken_command_files_are_refused(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match=message):
        read_commands(file(tmp_path, line), load_machine("ddr4"))


BROKEN = [
    ("aim", GEMV.replace("AiM EOC\n", ""), "EOC"),
    ("aim", GEMV + "AiM SYNC\n", "line 6"),
    ("aim", "AiM FLY 1\nAiM EOC\n", "line 1.*FLY"),
    ("aim", "AiM MAC_ABK 4 0x80000000\nAiM EOC\n", "line 1.*2 numbers.*3"),
    ("aim", "AiM MAC_ABK 4 0x80000000 99999999\nAiM EOC\n", "line 1.*row"),
    ("aim", "AiM MAC_ABK x 0x80000000 1\nAiM EOC\n", "line 1.*count"),
    ("aim", "AiM MAC_ABK 4 0x0 1\nAiM EOC\n", "line 1.*mask"),
    ("aim", "AiM MAC_SBK 1 0x80000000 16 1\nAiM EOC\n", "line 1.*bank"),
    ("aim", "W MEM 32 0 0\nAiM EOC\n", "line 1.*channel"),
    ("aim", "W DISK 1\nAiM EOC\n", "line 1.*DISK"),
    ("aim", "AiM\n", "line 1"),
    ("dramsim3", "0x40 READ\n", "line 1.*2 words"),
    ("dramsim3", "0x40 READ 5\n0x40 READ 4\n", "line 2.*before"),
    ("dramsim3", "0x40 FETCH 5\n", "line 1.*FETCH"),
    ("dramsim3", "zz READ 5\n", "line 1.*address"),
    ("dramsim3", f"0x{'f' * 40} READ 5\n", "line 1.*out of range"),
    ("dramsim3", "0x40 READ -5\n", "line 1.*cycle"),
    ("dramsim3", "0x40 READ 1000000000001\n", "line 1.*cycle.*out of range"),
    ("dramsim3", "0x40 READ 1_000\n", "line 1.*not a number"),
    ("dramsim3", "", "no request"),
    ("ramulator", "LD\n", "line 1"),
    ("ramulator", "LD 0x40\nXX 0x40\n", "line 2"),
    ("ramulator", "R 0,0,0\n", "line 1.*3 numbers"),
    ("ramulator", "R 0,0,9,0,0,0\n", "line 1.*bg"),
]


@pytest.mark.parametrize(("kind", "text", "message"), BROKEN)
def test_broken_traces_are_named_in_one_line(kind: str, text: str, message: str, tmp_path: Path) -> None:
    machine = "gddr6-aim-peer" if kind == "aim" else "ddr4"
    with pytest.raises(NearbankError, match=message) as caught:
        replay_file(file(tmp_path, text), machine, kind)
    assert "\n" not in str(caught.value)
    assert "trace.txt" in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        gzip.compress(GEMV.encode() * 100)[:60],
        b"\x1f\x8bnonsense",
        bz2.compress(GEMV.encode())[:-9],
        lzma.compress(GEMV.encode() * 100)[:-9],
        b"BZhnonsense",
        b"\xfd7zXZ\x00nonsense",
        b"\x28\xb5\x2f\xfdzstd",
        b"\x00" * 100,
        b"\xff\xfe" * 100,
        b"x" * (1 << 17),
        b"",
        b"\n" * 5,
        b"hello world, this is prose\n",
    ],
    ids=[
        "cut gzip",
        "false gzip",
        "cut bzip2",
        "cut xz",
        "false bzip2",
        "false xz",
        "zstd",
        "zeros",
        "bytes",
        "endless line",
        "empty",
        "blank",
        "prose",
    ],
)
def test_foreign_files_are_refused_in_one_line(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(NearbankError) as caught:
        replay_file(file(tmp_path, raw), "ddr4")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_where_a_cut_file_ends_is_said(tmp_path: Path) -> None:
    """The lines before the cut are read; the error counts them."""
    packed = gzip.compress(b"".join(b"0x%x READ %d\n" % (i * i * 64, i) for i in range(50_000)))
    with pytest.raises(NearbankError, match=r"trace.txt, after line [1-9]\d{3,}: not readable to its end"):
        replay_file(file(tmp_path, packed[: len(packed) // 2]), "ddr4", "dramsim3")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe, text = tmp_path / "pipe", "LD 0x40\nST 128\n"
    os.mkfifo(pipe)
    with pytest.raises(NearbankError, match="a pipe can be read but once; say which format"):
        replay_file(pipe, "ddr4")
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    piped = replay_file(pipe, "ddr4", "ramulator")
    writer.join()
    plain = replay_file(file(tmp_path, text), "ddr4", "ramulator")
    assert (piped.requests, piped.cycles) == (2, plain.cycles)


def test_wrong_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match="no such file"):
        replay_file(tmp_path / "absent", "ddr4")
    with pytest.raises(NearbankError, match="unknown trace format"):
        replay_file(file(tmp_path, GEMV), "ddr4", "vcd")
    with pytest.raises(NearbankError, match="no ACT16"):
        replay_file(file(tmp_path, GEMV), "ddr4")


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match=r"line 4.*more than 3"):
        read_dramsim3(file(tmp_path, "0x40 READ 0\n" * 9), most=3)
