"""Models by name or path: the bundled checkpoint, a checkpoint of `nearbank train`, or a Hugging Face directory
or name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nearbank.errors import NearbankError
from nearbank.kernels import set_threads
from nearbank.kernels.threads import usable_cores
from nearbank.models.checkpoint import DEFAULT_NAME, load_checkpoint
from nearbank.models.generate import steps
from nearbank.models.gptq import fit_weights
from nearbank.models.hf import load_directory
from nearbank.models.hub import find_directory
from nearbank.models.kv import kv_scheme
from nearbank.models.kv_fit import load_fit
from nearbank.models.model import Model
from nearbank.models.tensors import Precision
from nearbank.models.trained import checkpoint_model

__all__ = ["checkpoint_model", "limit_threads", "load_model"]

QUANTISERS = ("nearest", "gptq")
WARM_UP = (0, 0)  # token numbers that every vocabulary has


def load_model(
    source: str | Path = DEFAULT_NAME,
    backend: str = "auto",
    kv: str | None = None,
    threads: int | None = None,
    weights: str | None = None,
    inputs: str | None = None,
    head: str | None = None,
    quantiser: str = "nearest",
    calibration: str | None = None,
    kv_fit: Path | None = None,
) -> Model:
    """The model called `source` (bundled), in the checkpoint file `source`, or in the directory
    or on the Hugging Face hub under the name `source`.

    backend: of `nearbank.kernels`; kv: format of the KV cache (bf16 unless given); threads: at most so many for the
    kernels. For a Hugging Face directory and a full-precision checkpoint: weights, the format that block matrices are
    rounded to (fp32 unless given); inputs, "int8" or "fp32" activations (by the weights unless given); head, the LM
    head's format (fp32 for fp32 weights, else bf16). Checkpoints that were trained with rounded weights have their
    formats already, and with rounded attention that of their cache too. quantiser: "nearest" rounds every weight by
    itself, "gptq" (`nearbank.models.gptq`) by what matrices do to the text `calibration`. kv_fit: a file that
    `nearbank.models.kv_fit.save_fit` wrote, for a KV cache whose channels are fitted.
    Raises `NearbankError` for anything unknown.
    """
    kv_scheme(kv or "bf16")
    limit_threads(threads)
    check_quantiser(quantiser, weights, calibration)
    chosen = weights or "fp32"
    if quantiser == "gptq":
        exact = load_model(source, backend, kv, None, "fp32", "fp32", head or "bf16")
        return _warmed(fit_weights(exact, calibration or "", chosen, inputs), kv_fit)
    precision = Precision(chosen, inputs, head or ("fp32" if chosen == "fp32" else "bf16"))
    found = find_directory(source)
    if found is not None:
        return _warmed(load_directory(found.directory, precision, kv or "bf16", backend, found.name), kv_fit)
    given = precision if (weights, inputs, head) != (None, None, None) else None
    return _warmed(checkpoint_model(load_checkpoint(source), backend, kv, given), kv_fit)


def check_quantiser(quantiser: str, weights: str | None, calibration: str | None) -> None:
    """Raise `NearbankError` for an unknown quantiser, and for GPTQ without a format or a text."""
    if quantiser not in QUANTISERS:
        raise NearbankError(f"unknown quantiser '{quantiser}'; known: {', '.join(QUANTISERS)}")
    if quantiser == "gptq" and weights is None:
        raise NearbankError("GPTQ rounds to an integer format; say which as weights, such as int4")
    if quantiser == "gptq" and calibration is None:
        raise NearbankError("GPTQ is fitted to a calibration text; give one")


def _warmed(given: Model, kv_fit: Path | None) -> Model:
    """The model, with its channels' fit, after a prompt and a token, so that compiling kernels is in no measured time.
    Caches that have yet to be fitted wait."""
    if kv_fit is not None and not given.kv_needs_fit:
        raise NearbankError(f"KV cache '{given.kv}' has nothing fitted; choose one that ends in -2d or -wkv, or no fit")
    model = given if kv_fit is None else replace(given, kv_fit=load_fit(kv_fit, given))
    compiles = model.backend != "numpy" and not (model.kv_needs_fit and kv_fit is None)
    if compiles and model.shape.context >= len(WARM_UP) + 1:
        for _ in steps(model, [np.array(WARM_UP)], 2):
            pass
    return model


def limit_threads(threads: int | None) -> None:
    """Let the CPU kernels use at most so many threads; None leaves them alone."""
    if threads is None:
        return
    most = len(usable_cores())
    if not 1 <= threads <= most:
        raise NearbankError(f"threads is {threads}; expected 1 to {most}")
    set_threads(threads)
