"""Round the trained full-precision model in every way of `WAYS` and score each on the validation split:

    python benchmarks/quality_formats.py TEXT [--models build/quality] [--only W4 ...]

Writes docs/quality/post-training.json; ways already there, of the same control, are kept unless named with --only.
Every way is scored in windows side by side, like the trained models, and compared with its reference window by window,
so that the difference has a standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from quality_models import CONTROL, RESULTS

from nearbank.models.checkpoint import load_checkpoint
from nearbank.models.kv_fit import fit_channels
from nearbank.models.kv_metric import with_feedback
from nearbank.models.load import load_model
from nearbank.models.model import Model
from nearbank.models.quality import measure, weight_bytes
from nearbank.models.wkv_fit import learn_channels

SAME_NATS = 5e-5  # kernels and torch differ by far less, two trainings by more
CALIBRATION_WINDOWS = 8  # of the training split, for channels that are searched; others as their modules have it


@dataclass(frozen=True)
class Way:
    """One way of rounding. weights: "-gptq" by GPTQ; against: the way whose loss is subtracted; fit: for KV caches
    that are fitted."""

    name: str
    weights: str = "fp32"
    inputs: str = "fp32"
    kv: str = "fp32"
    against: str = "FP"
    fit: Callable[[Path, Way, str], Model] | None = None


def rounded(checkpoint: Path, text: str, weights: str, inputs: str = "fp32", kv: str = "fp32") -> Model:
    """The full-precision model, its weights rounded to nearest or by GPTQ on `text`."""
    name, _, quantiser = weights.partition("-")
    how = {"quantiser": quantiser, "calibration": text} if quantiser else {}
    return load_model(checkpoint, kv=kv, weights=name, inputs=inputs, head="fp32", **how)


def searched(checkpoint: Path, way: Way, text: str) -> Model:
    """Channels fitted by a search of each layer's exponents."""
    return fit_channels(rounded(checkpoint, text, way.weights), text, way.kv, CALIBRATION_WINDOWS)


def learned(checkpoint: Path, way: Way, text: str) -> Model:
    """Channels learned by gradient."""
    return _learned(checkpoint, way.weights, way.kv, text)


def fed_back(checkpoint: Path, way: Way, text: str) -> Model:
    """The same channels, and errors of rounding fed back."""
    return with_feedback(_learned(checkpoint, way.weights, way.kv, text), text)


@lru_cache(maxsize=1)
def _learned(checkpoint: Path, weights: str, kv: str, text: str) -> Model:
    return learn_channels(rounded(checkpoint, text, weights), text, kv)


WAYS = (
    Way("FP"),
    Way("W8A8", "int8", "int8", "int8"),
    Way("W4", "int4"),
    Way("W4 GPTQ", "int4-gptq"),
    Way("W3", "int3"),
    Way("W3 GPTQ", "int3-gptq"),
    Way("W4KV4", "int4", kv="int4", against="W4"),
    Way("W4KV4 past-only", "int4", kv="int4-past", against="W4"),
    Way("W4KV4 two-dimensional", "int4", kv="int4-2d", against="W4", fit=searched),
    Way("W4KV4 WKVQuant, searched", "int4", kv="int4-wkv", against="W4", fit=searched),
    Way("W4KV4 KIVI", "int4", kv="int4-kivi", against="W4"),
    Way("W4KV4 on GPTQ", "int4-gptq", kv="int4", against="W4 GPTQ"),
    Way("W4KV4 on GPTQ, WKVQuant, learned", "int4-gptq", kv="int4-wkv", against="W4 GPTQ", fit=learned),
    Way("W4KV4 on GPTQ, WKVQuant, learned, fed back", "int4-gptq", kv="int4-wkv", against="W4 GPTQ", fit=fed_back),
    Way("W4A4", "int4", "int4", "int4", against="W4"),
    Way("KV4", kv="int4"),
    Way("KV4 past-only", kv="int4-past"),
    Way("KV2", kv="int2"),
    Way("KV2 past-only", kv="int2-past"),
    Way("KV2 WKVQuant, searched", kv="int2-wkv", fit=searched),
    Way("KV2 KIVI", kv="int2-kivi"),
    Way("W2", "int2"),
    Way("ternary, not trained", "ternary"),
    Way("binary, not trained", "binary"),
)


def model_of(way: Way, checkpoint: Path, text: str) -> Model:
    """The full-precision model, rounded."""
    if way.fit is not None:
        return way.fit(checkpoint, way, text)
    return rounded(checkpoint, text, way.weights, way.inputs, way.kv)


def losses(model: Model, text: str) -> np.ndarray:
    """Nats per character of each window, the last one shorter; windows share the character between them."""
    length = model.shape.context
    parts = [text[i : i + length + 1] for i in range(0, len(text) - 1, length)]
    found = [measure(model, part, stride=min(length, len(part))) for part in parts]
    weights = np.array([quality.tokens for quality in found])
    return np.array([quality.nats_per_token for quality in found]) * weights / weights.mean()


@dataclass(frozen=True)
class Scored:
    """One way's losses per window, and what its model stores."""

    losses: np.ndarray
    block_weight_bytes: int
    kv_bytes_per_token: int
    seconds: float


def score(way: Way, checkpoint: Path, text: str, cut: int) -> Scored:
    """Fit on the text before `cut`, if the way is fitted, and score what comes after."""
    start = perf_counter()
    model = model_of(way, checkpoint, text[:cut])
    head_bytes = 4 * model.shape.vocabulary * model.shape.width  # fp32 throughout
    stored = (weight_bytes(model) - head_bytes, model.kv_bytes_per_token())
    return Scored(losses(model, text[cut:]), *stored, perf_counter() - start)


def row(way: Way, scored: Scored, reference: Scored) -> dict[str, Any]:
    """What the page needs to know."""
    difference = scored.losses - reference.losses
    return {
        **{key: value for key, value in vars(way).items() if key != "fit"},
        "nats_per_character": float(scored.losses.mean()),
        "above_reference_nats": float(difference.mean()),
        "standard_error_nats": float(difference.std(ddof=1) / np.sqrt(len(difference))),
        "block_weight_bytes": scored.block_weight_bytes,
        "kv_bytes_per_token": scored.kv_bytes_per_token,
        "seconds": round(scored.seconds, 1),
    }


def earlier(results: Path, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Rows by name that an earlier run made of this control; none if it was of another."""
    rows = {r["name"]: r for r in json.loads(results.read_text(encoding="utf-8"))} if results.exists() else {}
    loss = load_checkpoint(checkpoint).origin.val_loss_nats
    same = "FP" in rows and abs(rows["FP"]["nats_per_character"] - loss) < SAME_NATS
    return rows if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--models", type=Path, default=Path("build/quality"))
    parser.add_argument("--only", nargs="*", default=None, help="names of ways; those not yet measured when absent")
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    checkpoint = arguments.models / CONTROL / f"{CONTROL}.safetensors"
    results, by_name = RESULTS / "post-training.json", {way.name: way for way in WAYS}
    rows = earlier(results, checkpoint)
    known: dict[str, Scored] = {}
    for way in WAYS:
        if (way.name in rows) if arguments.only is None else (way.name not in arguments.only):
            continue
        for needed in (by_name[way.against], way):
            if needed.name not in known:
                known[needed.name] = score(needed, checkpoint, text, len(text) * 90 // 100)
        rows[way.name] = row(way, known[way.name], known[way.against])
        ordered = [rows[name] for name in by_name if name in rows]
        results.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
        print(f"{way.name}: {rows[way.name]['nats_per_character']:.4f}", flush=True)


if __name__ == "__main__":
    main()
