"""The command line: what it prints, and that wrong input is one line and status 2."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import nearbank
from nearbank.cli.app import run
from nearbank.cli.train import train
from nearbank.models.training.options import TrainOptions
from nearbank.sim.checker import Flat


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("replay", "missing.parquet"), "missing.parquet: no such trace"),
        (("replay",), "give a trace file, or --model"),
        (("replay", "--model", "gpt5", "--prompt", "1"), "gpt3-xl"),
        (("replay", "--model", "gpt3-xl", "--prompt", "0"), "1 or more"),
        (("replay", "--model", "gpt3-xl", "--prompt", "-3"), "1 or more"),
        (("replay", "--model", "gpt3-xl", "--tokens", "-3"), "1 or more"),
        (("replay", "--model", "gpt3-xl", "--batch", "0"), "1 or more"),
        (("replay", "--model", "gpt3-xl", "--reuse", "100"), "use reuse=64 or less"),
        (("replay", "--model", "gpt3-xl", "--tokens", "99999999999"), "context of 2048"),
        (("replay", "--model", "gpt3-xl", "--prompt", "5000"), "context of 2048"),
        (("replay", "--model", "gpt3-xl", "--machine", "pim-gtp"), "unknown machine 'pim-gtp'; known: "),
        (("replay", "--model", "gpt3-xl", "--weights", "int5"), "unknown format 'int5'; known: "),
        (("replay", "--model", "gpt3-xl", "--weights", "int3"), "MAC units have no format 'int3'; they have: bf16"),
        (("replay", "--model", "gpt3-xl", "--kv", "int3"), "unknown KV cache 'int3'; known: "),
        (("replay", "--model", "gpt3-xl", "--tokens", "many"), "Invalid value for '--tokens'"),
        (("validate", "nothing.parquet"), "no such trace"),
        (("validate", "nothing.yaml"), "unknown machine 'nothing.yaml'"),
        (("machines", "pim-gtp"), "unknown machine 'pim-gtp'"),
        (("demo", "--tokens", "0"), "1 or more"),
        (("demo", "--tokens", "100000"), "context of"),
        (("demo", "--prompt", ""), "prompt is empty"),
        (("demo", "--prompt", "naïve"), "'ï'"),
        (("demo", "--temperature", "-1"), "temperature is -1"),
        (("demo", "--backend", "gpu"), "backend"),
        (("trace", "--model", "llama-9"), "llama-9"),
        (("trace", "--model", "gpt3-xl", "--prompt", "ROMEO:"), "takes a number of tokens"),
        (("trace", "--model", "gpt3-xl", "--prompt", "1", "--beams", "0"), "beams is 0"),
        (("trace", "--beams", "2", "--temperature", "1"), "2 beams with temperature 1"),
        (("quality", "shakespeare-ternary"), "give --text (a decoder) or --pairs"),
        (("replay", "--model", "gpt3-xl", "--commands", "c.csv", "--window", "9:3"), "expected FIRST:LAST in cycles"),
        (("replay", "--model", "gpt3-xl", "--window", "0:3"), "--window belongs to --commands"),
        (("nonsense",), "No such command 'nonsense'"),
        (("replay", "--frob"), "No such option: --frob"),
        (("trace", "--sketch"), "trace --help'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert captured.err.startswith("nearbank: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("model", [("--prompt", "ROMEO:"), ("--model", "bart-base", "--prompt", "9")])
def test_beams_are_in_the_trace(model: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from nearbank.trace import open_trace

    path = tmp_path / "run.parquet"
    output(capsys, "trace", *model, "--tokens", "4", "--beams", "3", "--out", str(path), "--json")
    trace = open_trace(path)
    assert trace.header.beams == 3
    sequences = [{o.sequence for _, o in step.rows() if o.op == "score"} for step in trace.steps()]
    assert sequences == [{0}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}]


def test_the_commands_of_a_window_are_read_back_and_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """From the first cycle on the checker finds nothing; a later window is that part of the same commands."""
    from nearbank.sim.checker import check
    from nearbank.sim.machine import load_machine
    from nearbank.sim.readers import read_commands

    machine = load_machine("pim-gpt")

    def window(first: int, last: int) -> dict[int, list[Flat]]:
        path = tmp_path / f"{first}.csv"
        run_of_gpt2 = ("replay", "--model", "gpt2-small", "--prompt", "1", "--tokens", "1", "--json")
        output(capsys, *run_of_gpt2, "--commands", str(path), "--window", f"{first}:{last}")
        return read_commands(path, machine)

    channels = window(0, 9000)
    assert len(channels) == machine.organization.channels
    assert all(commands[-1].cycle > 5000 for commands in channels.values())
    assert [str(found) for commands in channels.values() if (found := check(machine, commands))] == []
    inside = {ch: [c for c in commands if 4000 <= c.cycle < 6000] for ch, commands in channels.items()}
    assert window(4000, 6000) == inside


def test_the_commands_of_a_request_trace_are_read_back_and_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from nearbank.sim.checker import check
    from nearbank.sim.machine import load_machine
    from nearbank.sim.readers import read_commands

    trace, path = tmp_path / "loads.trace", tmp_path / "issued.csv"
    trace.write_text("".join(f"LD {(i * 7919) % 4096 * 64}\n" for i in range(500)))
    shown = output(capsys, "replay", str(trace), "--machine", "ddr4", "--commands", str(path), "--json")
    channels = read_commands(path, load_machine("ddr4"))
    assert sum(map(len, channels.values())) == sum(shown["commands"].values())  # type: ignore[attr-defined]
    assert check(load_machine("ddr4"), channels[0]) is None


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        "demo",
        "trace",
        "replay",
        "map",
        "design",
        "study",
        "prove",
        "validate",
        "reproduce",
        "machines",
        "formats",
        "import",
        "quality",
        "train",
        "bench",
        "doctor",
    ]
    assert run(("--help",)) == 0
    listing = capsys.readouterr().out
    for command in commands:
        assert command in listing
        assert run((command, "--help")) == 0


def test_the_defaults_that_the_help_of_train_shows_are_those_of_a_run() -> None:
    used = {field.name: str(field.default) for field in fields(TrainOptions)}
    options = {
        name: hint.__metadata__[0]
        for name, hint in get_type_hints(train, include_extras=True).items()
        if hasattr(hint, "__metadata__")
    }
    shown = {name: option.show_default for name, option in options.items() if isinstance(option.show_default, str)}
    assert shown == {name: used[name] for name in shown}
    assert options.keys() - shown.keys() == {"text", "out", "teacher", "as_json"}


def test_a_trace_is_not_written_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("trace", "--model", "gpt2-small", "--prompt", "1", "--tokens", "1", "--out", str(tmp_path))) == 2
    assert f"{tmp_path}: is a folder; expected a file to write" in capsys.readouterr().err
    assert list(tmp_path.parent.glob(f"{tmp_path.name}.*")) == []


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("--version",)) == 0
    assert capsys.readouterr().out == f"nearbank {nearbank.__version__}\n"


def test_listings_are_json_objects(capsys: pytest.CaptureFixture[str]) -> None:
    names = [m["name"] for m in output(capsys, "machines", "--json")["machines"]]  # type: ignore[index,union-attr]
    assert {"pim-gpt", "gddr6-aim"} <= set(names)
    formats = output(capsys, "formats", "--json")["formats"]
    ternary = next(f for f in formats if f["format"] == "ternary")  # type: ignore[union-attr]
    assert 2 <= ternary["bits_per_value"] < 2.1
    findings = output(capsys, "doctor", "--json")["findings"]
    assert all(f["works"] for f in findings if f["what"] in ("numpy", "numba", "nearbank"))  # type: ignore[union-attr]


def test_one_machine_shows_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "machines", "pim-gpt", "--json")
    assert shown["timing"]["tRCD"]["value"] == "12 ns"  # type: ignore[index]
    assert shown["timing"]["tRCD"]["verified"] is False  # type: ignore[index]


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "nearbank", "formats", "--json"], stdout=stream, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
