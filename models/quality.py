"""What a precision costs in quality: the loss on a text in a sliding window, next to the bytes stored.

`measure` scores one model, `compare` a list of formats. Rows are plain values: a table, a plot or a data frame
(`pandas.DataFrame(row.as_dict() for row in rows)`) follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.models.execution import Floats, Pass, Tokens
from nearbank.models.kv import kv_scheme
from nearbank.models.kv_fit import fit_channels
from nearbank.models.load import check_quantiser, load_model
from nearbank.models.model import Model

Progress = Callable[[int, int], None]  # (tokens scored, tokens to score)


@dataclass(frozen=True)
class Quality:
    """The loss of one model on one text, and what it stores.

    tokens, characters: how much was scored (the first token has nothing before it and is not). weight_bytes: block
    matrices and LM head as packed; kv_bytes_per_token: all layers.
    """

    model: str
    weights: str
    inputs: str
    kv: str
    tokens: int
    characters: int
    nats_per_token: float
    weight_bytes: int
    kv_bytes_per_token: int
    window: int
    stride: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_character(self) -> float:
        """The text's loss in bits, divided by its characters."""
        return self.nats_per_token * self.tokens / self.characters / math.log(2)

    def as_dict(self) -> dict[str, Any]:
        """All fields, and perplexity and bits per character, for a data frame or JSON."""
        return {**asdict(self), "perplexity": self.perplexity, "bits_per_character": self.bits_per_character}


def read_text(path: Path, characters: int | None = None) -> str:
    """A UTF-8 text, its first `characters` at most. Raises `NearbankError` when it is empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NearbankError(f"{path}: not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
    except OSError as error:
        raise NearbankError(f"{path}: cannot read the text ({error.strerror}); give a UTF-8 text file") from None
    if len(text) < 2:
        raise NearbankError(f"{path}: the text has {len(text)} characters; expected at least 2")
    return text[:characters]


def measure(
    model: Model, text: str, window: int | None = None, stride: int | None = None, progress: Progress | None = None
) -> Quality:
    """Score every token of `text` but the first once, in passes of at most `window` tokens (the context's length).

    Each pass moves on by `stride` tokens (half the window unless given), so a scored token has at least
    window − stride tokens before it; stride = window is fastest and gives the least context.
    """
    tokens = model.encode(text)
    length = min(window or model.shape.context, model.shape.context)
    step = max(1, length // 2) if stride is None else stride
    _check_windows(model, len(tokens), window, length, step)
    start, total = perf_counter(), 0.0
    for begin, first, end in spans(len(tokens), length, step):
        total += _loss(model, tokens[begin:end], first - begin)
        if progress is not None:
            progress(end - 1, len(tokens) - 1)
    scored = len(tokens) - 1
    characters = len(text) - len(model.decode([int(tokens[0])]))
    return Quality(
        model.name,
        model.weights,
        model.inputs,
        model.kv_name,
        scored,
        characters,
        total / scored,
        weight_bytes(model),
        kv_bytes_per_token(model),
        length,
        step,
        perf_counter() - start,
    )


def compare(
    source: str | Path,
    text: str,
    weights: Sequence[str | None] = (None,),
    kv: Sequence[str | None] = (None,),
    inputs: str | None = None,
    backend: str = "auto",
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
    calibration: str | None = None,
    kv_fit: Path | None = None,
) -> Iterator[Quality]:
    """`measure` for every pair of a weight format and a KV cache (None: as the checkpoint has it; bf16 if it has none).

    A weight format with "-gptq" after it is reached by GPTQ ("int4-gptq", "int4-g64-gptq"). calibration: the text that
    GPTQ and fitted KV caches ("int4-wkv") are fitted to; kv_fit: a fit on file instead, for those caches. Names are
    checked before the first model is loaded.
    """
    fitted = [name for name in kv if kv_scheme(name or "bf16").needs_fit]
    if fitted and calibration is None and kv_fit is None:
        raise NearbankError(f"KV cache '{fitted[0]}' is fitted to a calibration text; give one")
    if kv_fit is not None and not fitted:
        raise NearbankError(
            f"{kv_fit}: no KV cache here is fitted; choose one that ends in -2d or -wkv, or give no fit"
        )
    for weight in weights:
        form, quantiser = _weight_scheme(weight)
        format_named(form or "fp32")
        check_quantiser(quantiser, form, calibration)
    for weight in weights:
        form, quantiser = _weight_scheme(weight)
        for name in kv:
            fit = kv_fit if name in fitted else None
            model = load_model(source, backend, name, None, form, inputs, None, quantiser, calibration, fit)
            if model.kv_needs_fit and fit is None:
                model = fit_channels(model, calibration or "", model.kv)
            row = measure(model, text, window, stride, progress)
            yield row if quantiser == "nearest" else replace(row, weights=f"{row.weights}-{quantiser}")


def _weight_scheme(name: str | None) -> tuple[str | None, str]:
    """(format, quantiser) of "int4" or "int4-gptq"."""
    if name is not None and name.endswith("-gptq"):
        return name.removesuffix("-gptq"), "gptq"
    return name, "nearest"


def spans(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end): a pass takes tokens begin … end − 2 in and predicts first … end − 1."""
    first = 1
    for begin in range(0, tokens, stride):
        end = min(begin + window + 1, tokens)
        if end > first:
            yield begin, first, end
            first = end


def _loss(model: Model, tokens: Tokens, first: int) -> float:
    """Sum of −log p, in nats, of tokens[first:], each after all before it."""
    inputs = tokens[:-1]
    run = Pass(inputs, [len(inputs)], [model.cache(len(inputs))])
    logits = model.network.forward(run, every=True)[first - 1 :]
    return float(_negative_log(logits, tokens[first:]).sum())


def _negative_log(logits: Floats, targets: Tokens) -> np.ndarray:
    """−log softmax(logits [T, V])[targets [T]] in double precision."""
    exact = logits.astype(np.float64)
    peak = exact.max(axis=1)
    mass = np.log(np.exp(exact - peak[:, None]).sum(axis=1))
    losses: np.ndarray = mass + peak - exact[np.arange(len(targets)), targets]
    return losses


def _check_windows(model: Model, tokens: int, window: int | None, length: int, stride: int) -> None:
    if tokens < 2:
        raise NearbankError(f"the text is {tokens} tokens for {model.name}; expected at least 2")
    if window is not None and not 1 <= window <= model.shape.context:
        raise NearbankError(f"window is {window}; {model.name} takes 1 to {model.shape.context}")
    if not 1 <= stride <= length:
        raise NearbankError(f"stride is {stride}; expected 1 to the window of {length}")


def weight_bytes(model: Model) -> int:
    """Bytes of the block matrices and the LM head in their formats."""
    described, block, head = model.description(), format_named(model.weights), model.network.head.matrix.format
    sizes = ((x, head if x.name == "lm_head" else block) for x in described.matrices)
    return sum(fmt.bytes_for(x.n, x.k) * described.copies(x) for x, fmt in sizes)


def kv_bytes_per_token(model: Model) -> int:
    """Bytes that one more token adds to the KV cache, all layers."""
    return model.kv_bytes_per_token()
