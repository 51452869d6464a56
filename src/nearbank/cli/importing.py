"""`nearbank import`: a torch profiler's trace becomes a nearbank trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nearbank.cli.output import Json, print_json


def import_profile(
    profile: Annotated[Path, typer.Argument(help="A torch profiler (Kineto) trace, recorded with shapes.")],
    out: Annotated[Path, typer.Option(help="The trace file to write.")] = Path("trace.parquet"),
    name: Annotated[str | None, typer.Option(help="The model's name in the trace.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="KV heads, where keys are repeated before attention.")] = None,
    sequences: Annotated[int, typer.Option(help="Sequences in the batch.")] = 1,
    as_json: Json = False,
) -> None:
    """Turn a torch profiler trace with shapes into a trace; what no rule knows is listed, not dropped."""
    from nearbank.models.kineto import import_kineto, unknown_lines

    found = import_kineto(profile, out, name, kv_heads, sequences)
    unknown = list(unknown_lines(found))
    if as_json:
        print_json({"trace": out, "passes": found.passes, "prompt_tokens": found.prompt_tokens, "unknown": unknown})
        return
    print(f"{out}: {found.passes} passes, a prompt of {found.prompt_tokens} tokens")
    for line in unknown:
        print(f"left out: {line}")
