"""`nearbank quality`: what a precision costs in quality, next to the bytes it stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearbank.cli.options import Backend, KvFit
from nearbank.cli.output import Json, console, print_json, progress
from nearbank.errors import NearbankError

if TYPE_CHECKING:
    from nearbank.models.overlap import PairQuality
    from nearbank.models.quality import Quality

FORMATS = ("Model", "Weights", "Inputs", "KV")
BYTES = ("Weight MB", "KV B/token")
HEADINGS = (*FORMATS, "Nats/token", "Perplexity", "Bits/character", *BYTES)
PAIR_HEADINGS = (*FORMATS, "ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU", "Tokens", *BYTES)


def quality(
    model: Annotated[str, typer.Argument(help="A bundled model, a checkpoint file, a Hugging Face directory or name.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to score (decoders).")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="JSON lines with source and target: ROUGE and BLEU (encoder-decoders).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weight formats, comma-separated (see `formats`).")] = None,
    kv: Annotated[
        str | None, typer.Option(help="KV caches, comma-separated: bf16 (the default), int8, int4-past, int4-wkv, …")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text that fitted KV caches are fitted to.")] = None,
    kv_fit: KvFit = None,
    characters: Annotated[int | None, typer.Option(help="Score only so many characters from the start.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens per pass; the model's context when absent.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens a pass moves on by; half a window when absent.")] = None,
    tokens: Annotated[int, typer.Option(help="With --pairs: tokens of an output at most.")] = 128,
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Score a text, or pairs of texts, with every pair of weight format and KV cache, next to the bytes stored."""
    chosen: list[str | None] = [None] if weights is None else list(weights.split(","))
    caches: list[str | None] = [None] if kv is None else list(kv.split(","))
    if pairs is not None and text is None:
        if kv_fit is not None:
            raise NearbankError("--kv-fit: encoder-decoders have no fitted KV caches; leave it out")
        _score_pairs(model, pairs, chosen, caches, tokens, backend, as_json)
        return
    if text is None or pairs is not None:
        raise NearbankError("quality: give --text (a decoder) or --pairs (an encoder-decoder), one of them")
    from nearbank.models.quality import compare, read_text

    scored = read_text(text, characters)
    fitted = read_text(calibration) if calibration else None
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
                kv_fit=kv_fit,
            )
        )
    if as_json:
        print_json({"text": text, "rows": [row.as_dict() for row in rows]})
    else:
        _show(rows)


def _score_pairs(
    model: str,
    path: Path,
    weights: Sequence[str | None],
    kv: Sequence[str | None],
    tokens: int,
    backend: str,
    as_json: bool,
) -> None:
    from nearbank.models.overlap import compare_pairs, read_pairs

    found = read_pairs(path)
    with progress("writing", len(found)) as advance:
        made = compare_pairs(
            model, found, weights, kv, backend=backend, tokens=tokens, progress=lambda done, _: advance(done)
        )
        rows = list(made)
    if as_json:
        print_json({"pairs": path, "rows": [row.as_dict() for row in rows]})
    else:
        _show_pairs(rows)


def _show(rows: Sequence[Quality]) -> None:
    numbers = ((f"{r.nats_per_token:.4f}", f"{r.perplexity:.3f}", f"{r.bits_per_character:.4f}") for r in rows)
    _print(HEADINGS, rows, numbers)


def _show_pairs(rows: Sequence[PairQuality]) -> None:
    scores = ((r.scores.rouge1, r.scores.rouge2, r.scores.rougeL, r.scores.bleu) for r in rows)
    numbers = ((*(f"{x:.2f}" for x in four), str(r.tokens)) for four, r in zip(scores, rows, strict=True))
    _print(PAIR_HEADINGS, rows, numbers)


def _print(headings: Sequence[str], rows: Sequence[Quality | PairQuality], numbers: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*headings)
    for r, middle in zip(rows, numbers, strict=True):
        sizes = (f"{r.weight_bytes / 1e6:.3f}", str(r.kv_bytes_per_token))
        table.add_row(r.model, r.weights, r.inputs, r.kv, *middle, *sizes)
    console().print(table)
