"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BUNDLED = "shakespeare-ternary"

Prompt = Annotated[str, typer.Option(help="Text to continue, in the model's characters.")]
Tokens = Annotated[int, typer.Option(help="Tokens to generate.")]
Seed = Annotated[int, typer.Option(help="Seed of the sampling.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is more surprising.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the K likeliest tokens only.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this much probability.")]
Backend = Annotated[str, typer.Option(help="Kernels to run with: auto, numba, numpy, cupy or numba-cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores when absent.")]
Weights = Annotated[str | None, typer.Option(help="Store the block matrices in this format instead (see `formats`).")]
Kv = Annotated[str | None, typer.Option(help="Keep the KV cache so instead: int8, int4-past, int4-kivi, …")]
KvFit = Annotated[
    Path | None,
    typer.Option(help="With --kv int4-wkv and the like: the fit, as nearbank.models.kv_fit.save_fit writes it."),
]
Mapping = Annotated[
    str,
    typer.Option(help="pim-gpt: as published; auto: the quickest that is found; auto-by-use: without refresh, too."),
]
Out = Annotated[Path, typer.Option(help="Folder for the report, its figures and the trace.")]
Workers = Annotated[
    int | None, typer.Option(help="Local processes; 0: this one. When absent a process per core, if Dask is there.")
]
Scheduler = Annotated[str | None, typer.Option(help="A Dask scheduler's address, such as tcp://10.0.0.1:8786.")]
