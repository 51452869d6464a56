"""`nearbank quality`: what a precision costs in quality, next to the bytes it stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearbank.cli.options import Backend
from nearbank.cli.output import Json, console, print_json, progress

if TYPE_CHECKING:
    from nearbank.models.quality import Quality

HEADINGS = ("Model", "Weights", "Inputs", "KV", "Nats/token", "Perplexity", "Bits/character", "Weight MB", "KV B/token")


def quality(
    model: Annotated[str, typer.Argument(help="A bundled model, a checkpoint file, or a Hugging Face directory.")],
    text: Annotated[Path, typer.Option(help="UTF-8 text to score.")],
    weights: Annotated[str | None, typer.Option(help="Weight formats, comma-separated (see `formats`).")] = None,
    kv: Annotated[
        str | None, typer.Option(help="KV caches, comma-separated: bf16 (the default), int8, int4-past, int4-wkv, …")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text that fitted KV caches are fitted to.")] = None,
    characters: Annotated[int | None, typer.Option(help="Score only so many characters from the start.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per pass; the model's context when absent.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens a pass moves on by; half a window when absent.")] = None,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Score a text with every pair of weight format and KV cache: loss, perplexity, bytes stored."""
    from nearbank.models.quality import compare, read_text

    scored = read_text(text, characters)
    fitted = read_text(calibration) if calibration else None
    chosen: list[str | None] = [None] if weights is None else list(weights.split(","))
    caches: list[str | None] = [None] if kv is None else list(kv.split(","))
    with progress("scoring", len(scored)) as advance:
        rows = list(
            compare(
                model,
                scored,
                chosen,
                caches,
                backend=backend,
                window=window,
                stride=stride,
                progress=lambda done, _: advance(done),
                calibration=fitted,
            )
        )
    if as_json:
        print_json({"text": text, "rows": [row.as_dict() for row in rows]})
    else:
        _show(rows)


def _show(rows: Sequence[Quality]) -> None:
    from rich.table import Table

    table = Table(*HEADINGS)
    for r in rows:
        numbers = (f"{r.nats_per_token:.4f}", f"{r.perplexity:.3f}", f"{r.bits_per_character:.4f}")
        sizes = (f"{r.weight_bytes / 1e6:.3f}", str(r.kv_bytes_per_token))
        table.add_row(r.model, r.weights, r.inputs, r.kv, *numbers, *sizes)
    console().print(table)
