"""The `nearbank` command: its sub-commands, and how errors reach the user (one line, a status, no traceback)."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from nearbank import __version__
from nearbank.cli import (
    bench,
    demo,
    design,
    doctor,
    importing,
    inspect,
    mapping,
    prove,
    quality,
    replay,
    reproduce,
    study,
    trace,
    train,
)
from nearbank.cli.output import INTERRUPTED
from nearbank.errors import NearbankError

app = typer.Typer(
    help="Low-bit language models on memory that computes: run, trace, replay, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"nearbank {__version__}")
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""


app.command("demo")(demo.demo)
app.command("trace")(trace.trace)
app.command("replay")(replay.replay)
app.command("map")(mapping.map_model)
app.command("reproduce")(reproduce.reproduce)
app.command("design")(design.design)
app.add_typer(study.study, name="study")
app.command("validate")(inspect.validate)
app.command("machines")(inspect.machines)
app.command("formats")(inspect.formats)
app.command("import")(importing.import_profile)
app.command("prove")(prove.prove)
app.command("quality")(quality.quality)
app.command("train")(train.train)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for wrong input, 130 for Ctrl-C."""
    try:
        result = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except NearbankError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        sys.stdout = None
        return 0
    except OSError as error:
        return _fail(_explain(error), 2)
    except Exception as error:  # usage errors have no public base class that all releases of typer share
        if not hasattr(error, "format_message"):
            raise
        return _usage(error.format_message(), getattr(error, "ctx", None))
    if result == INTERRUPTED:
        return _fail("interrupted; what was already written stays readable", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _explain(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return f"{what}; free some space or choose another --out"
    return what


def _usage(message: str, context: Any) -> int:
    """Wrong usage of a command; without a message the help was shown already."""
    command = getattr(context, "command_path", "nearbank")
    return _fail(f"{message.rstrip('.')}; see '{command} --help'", 2) if message else 2


def _fail(message: str, status: int) -> int:
    print(f"nearbank: {' '.join(message.split())}", file=sys.stderr)
    return status
