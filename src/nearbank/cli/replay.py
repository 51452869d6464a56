"""`nearbank replay`: what a recorded or sketched run costs on a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearbank.cli.options import Kv, Mapping, Weights
from nearbank.cli.output import Json, console, output_folder, print_json, progress
from nearbank.errors import NearbankError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nearbank.replay import Replay
    from nearbank.report import Report
    from nearbank.workload import Workload


PROFILE_BINS = 512


def replay(
    file: Annotated[
        Path | None, typer.Argument(help="A trace file; - for standard input, with --format. Leave out with --model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A shape by name, such as gpt3-xl, instead of a file.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Prompt tokens of --model.")] = None,
    tokens: Annotated[int | None, typer.Option(help="New tokens of --model.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts of --model that are written to at once.")] = None,
    reuse: Annotated[
        int | None, typer.Option(help="Tokens that share an open row; left out: as many as are quickest.")
    ] = None,
    machine: Annotated[str, typer.Option(help="A machine's name or YAML file (see `machines`).")] = "pim-gpt",
    weights: Weights = None,
    kv: Kv = None,
    mapping: Mapping = "pim-gpt",
    file_format: Annotated[
        str | None, typer.Option("--format", help="Other tools' files: aim, dramsim3, ramulator.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Of --format: dramsim3, ramulator, KEY=VALUE such as row_policy=closed, refresh=none."),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Of --format: count until the last request is accepted (ramulator), answered (dramsim3) or drained."
        ),
    ] = None,
    commands: Annotated[Path | None, typer.Option(help="Write the issued commands here, as CSV.")] = None,
    window: Annotated[
        str | None, typer.Option(help="Of --commands: the cycles FIRST:LAST of a mapped run; 0:200000 if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write a report with its figures into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Replay a trace, a shape's workload or another simulator's trace file on a machine: time, energy, row hits."""
    if file == Path("-"):
        file = Path("/dev/stdin")
    if file is not None and (file_format is not None or _is_foreign(file)):
        _refuse({"--out": out, "--window": window}, "belongs to this package's own traces")
        _replay_foreign(file, machine, file_format, policy or (), until, commands, as_json)
        return
    _refuse({"--policy": policy, "--until": until}, "belongs to other tools' trace files")
    _refuse({"--window": window} if commands is None else {}, "belongs to --commands")
    from nearbank.replay import record_commands

    cycles = _cycles(window or "0:200000")
    load = _workload(file, model, prompt, tokens, batch)
    again = None if reuse is None else _count("--reuse", reuse, 1)
    done = _run(load, machine, weights, kv, mapping, again, bins=0 if out is None else PROFILE_BINS)
    if commands is not None:
        record_commands(done, commands, *cycles)
    _give(load, done, out, as_json)


def _run(
    load: Workload, machine: str, weights: str | None, kv: str | None, mapping: str, reuse: int | None, bins: int
) -> Replay:
    from nearbank.replay import mapping_named, replay

    chosen = mapping_named(mapping)
    with progress(f"replaying {load.model.name} on {machine}", load.tokens) as advance:
        return replay(load, machine, weights=weights, kv=kv, mapping=chosen, reuse=reuse, advance=advance, bins=bins)


def _give(load: Workload, done: Replay, out: Path | None, as_json: bool) -> None:
    if out is not None:
        _report(load, done).save(output_folder(out))
    if as_json:
        print_json(done.row.as_json())
    else:
        _show(done, load)


def _cycles(window: str) -> tuple[int, int]:
    first, _, last = window.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last) < 1 << 60):
        raise NearbankError(f"--window {window!r}: expected FIRST:LAST in cycles, such as 0:200000")
    return int(first), int(last)


def _is_foreign(file: Path) -> bool:
    """True for a file that is not Parquet: another simulator's text."""
    if file.is_fifo():
        return True
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return file.suffix != ".parquet" and stream.read(4) != b"PAR1"


def _replay_foreign(
    file: Path,
    machine: str,
    file_format: str | None,
    policy: Sequence[str],
    until: str | None,
    commands: Path | None,
    as_json: bool,
) -> None:
    from nearbank.sim.readers.replay import replay_file

    result = replay_file(file, machine, file_format, policy=policy, until=until, commands=commands).as_dict()
    if as_json:
        print_json(result)
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items() if value is not None))


def _workload(
    file: Path | None, model: str | None, prompt: int | None, tokens: int | None, batch: int | None
) -> Workload:
    from nearbank.workload import sketch_workload, trace_workload

    if model is None:
        if file is None:
            raise NearbankError("nothing to replay: give a trace file, or --model NAME --prompt N --tokens N")
        counts: dict[str, object] = {"--prompt": prompt, "--tokens": tokens, "--batch": batch}
        _refuse(counts, "belongs to --model; a trace file has its own counts")
        return trace_workload(file)
    _refuse({str(file): file}, "and --model were both given; choose one")
    sizes = _count("--prompt", prompt, 1), _count("--tokens", tokens, 64)
    return sketch_workload(model, *sizes, batch=_count("--batch", batch, 1))


def _count(name: str, given: int | None, default: int) -> int:
    count = default if given is None else given
    if count < 1:
        raise NearbankError(f"{name} {count}: expected 1 or more")
    return count


def _refuse(given: dict[str, object], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise NearbankError(f"{name} {why}")


def _report(load: Workload, done: Replay) -> Report:
    from nearbank.report import Report, Section

    section = Section(f"{load.tokens} tokens", (done.row,), remarks=tuple(done.remarks), drawings=_drawings(done))
    return Report(f"{load.model.name} on {done.row.machine}", (section,), configuration=done.row.details)


def _drawings(done: Replay) -> dict[str, Callable[[Axes], Axes]]:
    """Where cycles and energy went, over time and by place."""
    from nearbank.plot import run
    from nearbank.sim.energy_places import energy_by_place
    from nearbank.sim.power import profile_power
    from nearbank.sim.utilisation import placed, roof

    result, machine = done.result, done.machine
    return {
        "stalls": partial(run.stall_reasons, {done.row.label: result}),
        "stalls_over_time": partial(run.stalls_over_time, result),
        "utilisation_over_time": partial(run.utilisation_over_time, result, machine),
        "power_over_time": partial(run.power_over_time, profile_power(result, machine)),
        "energy_by_place": partial(run.energy_by_place, energy_by_place(result, machine)),
        "roofline": partial(run.roofline, {done.row.label: (placed(result, machine), roof(machine, done.row.weights))}),
    }


def _of(batch: int) -> str:
    return f", {batch} sequences" if batch > 1 else ""


def _show(done: Replay, load: Workload) -> None:
    from nearbank.report.table import table

    screen = console()
    title = f"{load.model.name}: {load.prompt_tokens} prompt tokens, {load.tokens} new" + (
        f", {load.batch} sequences" if load.batch > 1 else ""
    )
    screen.print(table(title, [done.row], None))
    _show_parts("Time", "µs per token", done.row.time_by_part_ns or {}, 1000 * load.all_tokens)
    energies = {name: pj for name, pj in (done.row.energy_by_component_pj or {}).items() if pj is not None}
    _show_parts("Energy", "µJ per token", energies, 10**6 * load.all_tokens)
    _show_remarks(done.remarks)


def _show_parts(what: str, unit: str, parts: object, divisor: int) -> None:
    from rich.table import Table

    from nearbank.report.row import number

    assert isinstance(parts, dict)
    total = sum(parts.values()) or 1
    rows = Table(what, unit, "%")
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        rows.add_row(name, number(value / divisor), f"{100 * value / total:.1f}")
    console().print(rows)


def _show_remarks(remarks: Sequence[str]) -> None:
    for remark in remarks:
        console().print(remark, style="dim")
