"""`nearbank prove`: a model writes through its mapped programs, beside the kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nearbank.cli.options import BUNDLED, Prompt, Tokens
from nearbank.cli.output import Json, console, print_json, stages

if TYPE_CHECKING:
    from nearbank.proof import Approximation, Proof
    from nearbank.proof.grid import Row

PROOF_HEADINGS = (
    "Weights", "KV", "Tokens", "Logits", "Off kernels (max)", "Off plain (max, mean)", "Argmax as plain",
    "MAC commands", "Weight bytes", "KV bytes", "Seconds",
)  # fmt: skip
ERROR_HEADINGS = ("Weights", "KV", "Approximated", "Largest logit", "Max error", "Mean error", "Same argmax")


def prove(
    model: Annotated[
        str, typer.Argument(help="A bundled model, a checkpoint file, or a Hugging Face directory.")
    ] = BUNDLED,
    weights: Annotated[
        str | None, typer.Option(help="Weight formats, comma-separated: ternary, bf16, int8, binary, …")
    ] = None,
    kv: Annotated[str, typer.Option(help="KV caches, comma-separated: bf16, int8, int4-past, int4-kivi, …")] = "bf16",
    machine: Annotated[str, typer.Option(help="A machine's name or YAML file (see `machines`).")] = "pim-gpt-ternary",
    prompt: Prompt = "ROMEO:\n",
    tokens: Tokens = 64,
    asic: Annotated[str, typer.Option(help="The ASIC's functions: exact, or pim-gpt (its approximations).")] = "exact",
    positions: Annotated[int, typer.Option(help="Measure the approximations at so many positions, too.")] = 0,
    as_json: Json = False,
) -> None:
    """Write text through the mapped programs, the packed bytes in the banks, and compare it with the kernels'."""
    from nearbank.proof.grid import Grid, prove_grid

    chosen = Grid(model, (None,) if weights is None else tuple(weights.split(",")), tuple(kv.split(",")), machine)
    with stages() as stage:
        rows = list(prove_grid(chosen, prompt, tokens, asic, positions, stage))
    if as_json:
        print_json({"prompt": prompt, "rows": [row.as_dict() for row in rows]})
    else:
        _show(rows)


def _show(rows: Sequence[Row]) -> None:
    from rich.table import Table

    screen = console()
    for row in rows:
        proof = row.proof
        screen.print(f"{proof.weights} weights, {proof.kv} cache, through the banks of {proof.machine}:", style="bold")
        screen.print(proof.text, markup=False)
        if not proof.tokens_equal:
            screen.print(f"the kernels: {proof.kernel_text}", markup=False)
    table = Table(*PROOF_HEADINGS)
    for row in rows:
        table.add_row(*_proof_cells(row.proof))
    screen.print(table)
    errors = Table(*ERROR_HEADINGS)
    for row in rows:
        if row.approximation:
            for cells in _error_cells(row.approximation):
                errors.add_row(*cells)
    if errors.row_count:
        screen.print("The ASIC's approximations against exact functions:", style="bold")
        screen.print(errors)


def _proof_cells(p: Proof) -> tuple[str, ...]:
    off, plain = p.against_kernels, p.against_plain
    return (
        p.weights,
        p.kv,
        f"{len(p.tokens)}: {'equal' if p.tokens_equal else f'differ at {len(p.kernel_tokens)}'}",
        "bit-equal" if p.logits_bit_equal else "differ",
        f"{off.max_abs:.1e}",
        f"{plain.max_abs:.3f}, {plain.mean_abs:.4f}",
        f"{plain.same_argmax} of {plain.positions}",
        f"{p.macs:,}",
        f"{p.weight_bytes:,}",
        f"{p.kv_bytes:,}",
        f"{p.seconds:.1f}",
    )


def _error_cells(a: Approximation) -> Iterator[tuple[str, ...]]:
    for what, d in {"all three": a.against_exact, **a.each}.items():
        sizes = (f"{a.largest_logit:.2f}", f"{d.max_abs:.4f}", f"{d.mean_abs:.5f}")
        yield a.weights, a.kv, what, *sizes, f"{d.same_argmax} of {d.positions}"
