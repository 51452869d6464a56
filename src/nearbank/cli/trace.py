"""`nearbank trace`: write the trace of a real run, or of a shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from nearbank.cli.options import BUNDLED, Backend, Kv, KvFit, Seed, Threads, Tokens, TopK, TopP, Weights
from nearbank.cli.output import Json, print_json, progress
from nearbank.errors import NearbankError

DEFAULT_TEMPERATURE = 0.8


def trace(
    model: Annotated[str, typer.Option(help="A checkpoint to run, or a shape to sketch (such as gpt3-xl).")] = BUNDLED,
    prompt: Annotated[str, typer.Option(help="Text for a checkpoint; a number of tokens for a shape.")] = "ROMEO:",
    tokens: Tokens = 128,
    out: Annotated[Path, typer.Option(help="The trace file to write.")] = Path("trace.parquet"),
    weights: Weights = None,
    kv: Kv = None,
    kv_fit: KvFit = None,
    seed: Seed = 1,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; higher is more surprising; 0.8, or 0 with beams, when absent.")
    ] = None,
    top_k: TopK = None,
    top_p: TopP = None,
    beams: Annotated[
        int | None,
        typer.Option(help="Sequences searched side by side; the checkpoint's own number, or 1, when absent."),
    ] = None,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a model (or sketch a shape) and write what it did, one row per operation."""
    from nearbank.workload import is_shape

    if is_shape(model):
        if kv_fit is not None:
            raise NearbankError(f"--kv-fit: {model} is a shape and has no keys or values; leave it out")
        result = _sketch(model, prompt, tokens, weights, kv, 1 if beams is None else beams, out)
    else:
        from nearbank.models import Sampling, load_model

        if weights is not None:
            raise NearbankError(f"--weights: {model} is a checkpoint and runs with its own weights; leave it out")
        loaded = load_model(model, backend=backend, kv=kv, threads=threads, kv_fit=kv_fit)
        search = _search(loaded, beams)
        heat = temperature if temperature is not None else 0.0 if search and search.beams > 1 else DEFAULT_TEMPERATURE
        sampling = Sampling(temperature=heat, top_k=top_k, top_p=top_p, seed=seed)
        result = _record(loaded, prompt, tokens, sampling, search, out)
    _show(result, as_json)


def _search(model: Any, beams: int | None) -> Any:
    """The checkpoint's own search with as many beams as asked for; None where there is neither."""
    from nearbank.models.search import Search

    if beams is None:
        return model.search
    return replace(model.search or Search(), beams=beams)


def _sketch(
    model: str, prompt: str, tokens: int, weights: str | None, kv: str | None, beams: int, out: Path
) -> dict[str, Any]:
    from nearbank.workload import prompt_length, sketch_workload, write_sketch

    load = sketch_workload(model, prompt_length(prompt), tokens, weights or "bf16", kv or "bf16", beams)
    with progress("sketching", tokens) as advance:
        rows = write_sketch(load, out, advance)
    return {"trace": out, "model": model, "origin": "sketched", "tokens": tokens, "rows": rows}


def _record(model: Any, prompt: str, tokens: int, sampling: Any, search: Any, out: Path) -> dict[str, Any]:
    from nearbank.models import record

    with progress("generating", tokens) as advance:
        made = record(model, prompt, tokens, out, sampling, lambda done, _: advance(done), search)
    return {
        "trace": out,
        "model": model.name,
        "origin": "recorded",
        "tokens": tokens,
        "tokens_per_s": made.tokens_per_s,
        "processor_energy_uj": made.energy.processor_uj,
        "gpu_energy_uj": made.energy.gpu_uj,
        "text": made.text,
    }


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items() if value is not None))
