"""AiM instruction traces against the AiM simulator: cycles and commands, exactly."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from nearbank.sim.checker import check
from nearbank.sim.machine import load_machine
from nearbank.sim.readers import aim_gemv, play_aim, read_aim, read_commands, replay_file
from nearbank.sim.requests import aim_state

DATA = Path(__file__).parent / "data" / "aim"
SHARED = Path(os.environ.get("NEARBANK_SHARED", Path(__file__).parents[3] / "shared")) / "golden" / "aim"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared golden data (NEARBANK_SHARED)")
PEER_NAMES = {
    "MACAB": "MAC16",
    "WRBIAS": "WRMAC16",
    "RDMAC": "RDMAC16",
    "AF": "AF16",
    "RDAF": "RDAF16",
    "EWMUL": "EWMUL16",
    "WRBK": "WRA16",
}


def formula(inputs: int, outputs: int, channels: int, reuse: int) -> int:
    """The closed form of the same loop nest."""
    per_bank = -(-outputs // (16 * channels))
    groups = -(-per_bank // reuse)
    columns = [-(-min(1024, inputs - start) // 16) for start in range(0, inputs, 1024)]
    return sum(2 * op + per_bank * (2 * op + 103) + groups * 55 for op in columns)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def gemv_rows() -> list[dict[str, int]]:
    with (DATA / "gemv.csv").open() as file:
        return [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("row", gemv_rows(), ids=lambda r: f"{r['k']}x{r['m']}ch{r['channels']}reuse{r['reuse']}")
def test_gemv_takes_the_same_cycles(row: dict[str, int], tmp_path: Path) -> None:
    trace = write(tmp_path / "gemv.txt", aim_gemv(row["k"], row["m"], row["channels"], row["reuse"]))
    got = replay_file(trace, "gddr6-aim-peer")
    assert got.cycles == row["cycles"]
    assert got.requests == row["instructions"]
    names = {
        "ACT16": "ACT16",
        "MAC16": "MACAB",
        "PREA": "PREA",
        "WRGB": "WRGB",
        "WRMAC16": "WRBIAS",
        "RDMAC16": "RDMAC",
    }
    assert {peer: got.commands.get(ours, 0) for peer, ours in names.items()} == {peer: row[peer] for peer in names}


@pytest.mark.parametrize(("inputs", "outputs"), [(100, 700), (1024, 16), (1025, 4000), (5000, 333)])
@pytest.mark.parametrize(("channels", "reuse"), [(1, 1), (5, 3), (32, 2)])
def test_gemv_of_other_shapes_follows_the_formula(
    inputs: int, outputs: int, channels: int, reuse: int, tmp_path: Path
) -> None:
    per_bank = -(-outputs // (16 * channels))
    if per_bank % min(reuse, per_bank):
        reuse = 1
    trace = write(tmp_path / "gemv.txt", aim_gemv(inputs, outputs, channels, reuse))
    assert replay_file(trace, "gddr6-aim-peer").cycles == formula(inputs, outputs, channels, reuse)


def timeline(path: Path) -> list[tuple[int, str, int, int, int, int]]:
    """Channel 0's commands as the peer prints them."""
    machine = load_machine("gddr6-aim-peer")
    issued = play_aim(machine, read_aim(path, machine), record=10**6).issued
    assert issued is not None
    rows = zip(issued.cycle, issued.channel, issued.name, issued.bank, issued.row, issued.column, strict=True)
    return [
        (
            int(cycle),
            PEER_NAMES.get(name, name),
            *(divmod(int(bank), 4) if bank >= 0 else (-1, -1)),
            int(row),
            int(column),
        )
        for cycle, channel, name, bank, row, column in rows
        if channel == 0
    ]


def printed(path: Path) -> list[tuple[int, str, int, int, int, int]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        words = [line.strip().split(",") for line in file]
    return [(int(w[0]), w[1], int(w[2]), int(w[3]), int(w[4]), int(w[5])) for w in words]


@pytest.mark.parametrize("name", ["ewmul", "wrbias_mac_af_rdaf", "wrbias_mac_rdmac_mac", "wrgb_gbbk_bggb"])
def test_every_command_issues_when_the_peer_issues_it(name: str) -> None:
    assert timeline(DATA / f"short_{name}.trace") == printed(DATA / f"short_{name}.ch0.csv.gz")


@needs_shared
@pytest.mark.parametrize("shape", [(3072, 768, 8, 1), (768, 3072, 8, 1), (768, 768, 1, 1), (768, 768, 1, 2)])
def test_gemv_commands_issue_when_the_peer_issues_them(shape: tuple[int, int, int, int], tmp_path: Path) -> None:
    inputs, outputs, channels, reuse = shape
    trace = write(tmp_path / "gemv.txt", aim_gemv(*shape))
    name = f"gemv_K{inputs}_M{outputs}_ch{channels}_reuse{reuse}.ch0.csv"
    assert timeline(trace) == printed(SHARED / "commands" / name)


def test_a_cent_block_is_within_one_percent() -> None:
    """The newest AiM simulator says 37,654 cycles; CENT published 37,957."""
    got = replay_file(DATA / "cent_llama2_7b_tp8_seq128.txt.gz", "gddr6-aim-peer")
    assert got.cycles == pytest.approx(37_654, rel=0.01)
    assert got.cycles == 37_957
    assert got.requests == 10_095


@needs_shared
def test_all_cent_blocks_are_within_one_percent() -> None:
    with (SHARED / "blocks.csv").open() as file:
        blocks = [row for row in csv.DictReader(file) if (SHARED / "cent" / f"{row['trace']}.txt.gz").is_file()]
    assert blocks
    for row in blocks:
        got = replay_file(SHARED / "cent" / f"{row['trace']}.txt.gz", "gddr6-aim-peer")
        assert got.cycles == pytest.approx(int(row["cycles"]), rel=0.01)
        assert got.requests == int(row["instructions"])


def test_honest_timing_costs_more(tmp_path: Path) -> None:
    """The same GEMV with refresh and every rule on."""
    trace = write(tmp_path / "gemv.txt", aim_gemv(4096, 4096, 2, 1))
    honest = replay_file(trace, "gddr6-aim")
    assert honest.commands["REFab"] > 0
    assert honest.commands["MACAB"] == replay_file(trace, "gddr6-aim-peer").commands["MACAB"]


def test_a_cent_block_plays_with_every_rule_on() -> None:
    """The same work; refresh, MAC latency and whole-bank rules make it slower, AiM's shorter row times faster."""
    trace = DATA / "cent_llama2_7b_tp8_seq128.txt.gz"
    peer, honest = replay_file(trace, "gddr6-aim-peer"), replay_file(trace, "cent")
    for name in ("MACAB", "WRBK", "RDMAC", "WRBIAS", "AF", "EWMUL", "RD", "WR"):
        assert honest.commands[name] == peer.commands[name]
    assert honest.commands["REFab"] > 0
    assert 1.1 * peer.cycles < honest.cycles < 1.3 * peer.cycles


@pytest.mark.parametrize(
    "name", ["short_ewmul.trace", "short_wrbias_mac_af_rdaf.trace", "cent_llama2_7b_tp8_seq128.txt.gz"]
)
def test_the_checker_finds_nothing_with_every_rule_on(name: str, tmp_path: Path) -> None:
    machine = load_machine("cent")
    out = tmp_path / "issued.csv"
    count = sum(replay_file(DATA / name, machine, commands=out).commands.values())
    channels = read_commands(out, machine)
    assert sum(map(len, channels.values())) == count
    assert [str(found) for number in (0, 31) if (found := check(machine, channels.get(number, [])))] == []


def test_log_order_is_time_order() -> None:
    machine = load_machine("gddr6-aim-peer")
    result = play_aim(machine, read_aim(DATA / "short_ewmul.trace", machine), record=1000)
    assert result.issued is not None
    assert len(result.issued.cycle) == 1000
    assert np.all(np.diff(result.issued.cycle) >= 0)
    assert set(result.issued.name) <= set(aim_state.COMMANDS)
