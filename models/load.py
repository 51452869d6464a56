"""Models by name or path: the bundled checkpoint, a checkpoint of `nearbank train`, or a Hugging Face directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from nearbank.errors import NearbankError
from nearbank.kernels import PackedMatrix, set_threads
from nearbank.kernels.backends import resolve
from nearbank.kernels.threads import usable_cores
from nearbank.models.checkpoint import DEFAULT_NAME, Checkpoint, load_checkpoint, stored_codes
from nearbank.models.config import Matrix
from nearbank.models.generate import steps
from nearbank.models.gpt import load_gpt
from nearbank.models.hf import load_directory
from nearbank.models.kv import kv_scheme
from nearbank.models.model import Model
from nearbank.models.tensors import Precision, Tensor, Tensors
from nearbank.models.tokenizer import CharTokenizer

TABLES = {"wte": "wte.weight", "wpe": "wpe.weight", "head": "lm_head.weight"}  # their names in a checkpoint
WARM_UP = (0, 0)  # token numbers that every vocabulary has


def load_model(
    source: str | Path = DEFAULT_NAME,
    backend: str = "auto",
    kv: str = "bf16",
    threads: int | None = None,
    weights: str | None = None,
    inputs: str | None = None,
    head: str | None = None,
) -> Model:
    """The model called `source` (bundled), in the checkpoint file `source`, or in the directory `source`.

    backend: of `nearbank.kernels`; kv: format of the KV cache; threads: at most so many for the kernels.
    For a Hugging Face directory: weights, the format that block matrices are rounded to (fp32 unless given); inputs,
    "int8" or "fp32" activations (by the weights unless given); head, the LM head's format (fp32 for fp32 weights,
    else bf16). Our own checkpoints have their formats already. Raises `NearbankError` for anything unknown.
    """
    kv_scheme(kv)
    limit_threads(threads)
    if Path(source).is_dir():
        chosen = weights or "fp32"
        precision = Precision(chosen, inputs, head or ("fp32" if chosen == "fp32" else "bf16"))
        return _warmed(load_directory(Path(source), precision, kv, backend))
    if (weights, inputs, head) != (None, None, None):
        raise NearbankError(f"{source}: a trained checkpoint has its own formats; leave out weights, inputs and head")
    return _warmed(checkpoint_model(load_checkpoint(source), backend, kv))


def _warmed(model: Model) -> Model:
    """The model after a prompt and a token, so that compiling kernels is in no measured time. Fitted caches wait."""
    compiles = model.backend != "numpy" and not kv_scheme(model.kv).needs_fit
    if compiles and model.shape.context >= len(WARM_UP) + 1:
        for _ in steps(model, [np.array(WARM_UP)], 2):
            pass
    return model


def checkpoint_model(checkpoint: Checkpoint, backend: str = "auto", kv: str = "bf16") -> Model:
    """A checkpoint in memory as a model."""
    name = resolve(backend)
    network = load_gpt(checkpoint.config.shape, Tensors(_tensors(checkpoint), name))
    tokenizer = CharTokenizer(checkpoint.vocabulary)
    config = checkpoint.config
    card = asdict(checkpoint.origin)
    return Model(network, tokenizer, config.weights, config.activations, kv, name, card)


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Block matrices packed, everything else as float32, by the names of `nearbank.models.gpt`."""
    config = checkpoint.config
    floats = {TABLES.get(n, n): checkpoint.tensors[n].astype(np.float32) for n in config.vector_shapes()}
    blocks = [matrix for layer in range(config.shape.layers) for matrix in config.block_matrices(layer)]
    return {**floats, **{f"{matrix.name}.weight": _packed(checkpoint, matrix) for matrix in blocks}}


def _packed(checkpoint: Checkpoint, matrix: Matrix) -> PackedMatrix:
    quantised = stored_codes(checkpoint.config, checkpoint.tensors, matrix)
    return PackedMatrix.from_codes(checkpoint.config.weights, quantised.codes, quantised.scales)


def limit_threads(threads: int | None) -> None:
    """Let the CPU kernels use at most so many threads; None leaves them alone."""
    if threads is None:
        return
    most = len(usable_cores())
    if not 1 <= threads <= most:
        raise NearbankError(f"threads is {threads}; expected 1 to {most}")
    set_threads(threads)
