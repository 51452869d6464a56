"""What each part of WKVQuant does to the KV cache of a trained model, at 4 and 2 bits, with paired standard errors:

    python benchmarks/kv_ablation.py TEXT [--models build/quality] [--weights int4-gptq] [--caches int4 int4-wkv …]
    python benchmarks/kv_ablation.py TEXT --choosing --windows 256 --lr 0.02    to compare settings; keeps nothing

Every cache is scored on the same windows of the validation split, side by side and each from an empty cache, and
compared window by window: with the exact cache under the same weights, and with plain rounding per token. Learned
channels see the training split alone. The arithmetic is torch's (`nearbank.models.wkv_fit.torch_logits`), which tests
hold against the runtime's. Writes docs/quality/kv-ablation.json and prints it as a table; weights all of whose
rows are there, learned alike, are passed over.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_models import CONTROL, RESULTS
from torch.nn import functional

from nearbank.models.kv import ChannelFit, kv_scheme
from nearbank.models.kv_metric import with_feedback
from nearbank.models.load import load_model
from nearbank.models.model import Model
from nearbank.models.wkv_fit import Learning, learn_channels, torch_logits

FED = "+feedback"  # after a past-only or a fitted cache: errors of rounding fed back, which is not WKVQuant's
PARTS = ("int4", "int4-past", "int4-past+feedback", "int4-wkv", "int4-wkv+feedback")
CACHES = {"int4-gptq": PARTS, "int4": PARTS, "fp32": ("int4", "int4-past", "int2", "int2-past")}
HEADINGS = "| weights | KV | above the exact cache | above plain rounding | share of plain |\n|---|---|---:|---:|---:|"


def rounded_model(checkpoint: Path, weights: str, train: str) -> Model:
    """The full-precision model with its weights rounded, "-gptq" by GPTQ, and an exact cache."""
    name, _, quantiser = weights.partition("-")
    options = {"quantiser": "gptq", "calibration": train} if quantiser == "gptq" else {}
    return load_model(checkpoint, "numpy", "fp32", None, name, "fp32", "fp32", **options)


def windows_of(model: Model, text: str, most: int) -> torch.Tensor:
    """Whole windows [n, context + 1] that share the token between them; most: 0 for all."""
    tokens, length = model.encode(text), model.shape.context
    starts = range(0, len(tokens) - length, length)
    rows = np.stack([tokens[i : i + length + 1] for i in starts])
    return torch.from_numpy(rows[: most or None])


def settings_of(arguments: argparse.Namespace) -> Learning:
    """How channels are learned; what is not given is as it comes."""
    names = [field.name for field in fields(Learning)]
    return replace(Learning(), **{k: v for k, v in vars(arguments).items() if k in names and v is not None})


def held_out(text: str, choosing: bool) -> tuple[str, str]:
    """What is learned from, and what is scored: the validation split, or a piece of the training split to choose
    settings by, which nothing is learned from."""
    cut = len(text) * 90 // 100
    last = cut * 90 // 100
    return (text[:last], text[last:cut]) if choosing else (text[:cut], text[cut:])


@torch.no_grad()
def losses(model: Model, windows: torch.Tensor) -> np.ndarray:
    """Nats per token of each window."""
    logits = torch_logits(model, windows[:, :-1])
    return functional.cross_entropy(logits.mT, windows[:, 1:], reduction="none").mean(1).double().numpy()


def mean_and_error(differences: np.ndarray) -> tuple[float, float]:
    """The mean over windows and its standard error."""
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def with_channels(model: Model, train: str, kv: str, learning: Learning) -> Model:
    """The model with this cache, its channels learned if they are fitted."""
    return learn_channels(model, train, kv, learning) if kv_scheme(kv).needs_fit else replace(model, kv=kv)


def fitted(model: Model) -> Model:
    """The model as it is, or with a fit that leaves channels alone: past-only rounding of unfitted channels."""
    if model.kv_fit is not None:
        return model
    zero = np.zeros((model.shape.layers, model.shape.kv_heads, model.shape.head_dim), np.float32)
    return replace(model, kv=model.kv.replace("-past", "-wkv"), kv_fit=ChannelFit(zero, zero + 1, zero, zero + 1))


def rows(
    model: Model, caches: Sequence[str], train: str, windows: torch.Tensor, learning: Learning
) -> Iterator[dict[str, Any]]:
    """One row per cache, each against the exact one and against plain rounding at the same bits."""
    exact, plain = losses(model, windows), np.zeros(0)
    channels = lru_cache(partial(with_channels, model, train, learning=learning))
    for kv in caches:
        held = channels(kv.removesuffix(FED))
        found = losses(with_feedback(fitted(held), train) if kv.endswith(FED) else held, windows)
        plain = found if kv_scheme(held.kv).method == "plain" else plain
        above, error = mean_and_error(found - exact)
        gain, gain_error = mean_and_error(found - plain)
        yield {
            "kv": kv, "windows": len(windows), "nats": float(found.mean()), "above_exact": above,
            "above_exact_error": error, "above_plain": gain, "above_plain_error": gain_error,
            "share_of_plain": above / float((plain - exact).mean()),
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    above = f"{row['above_exact']:+.5f} ± {row['above_exact_error']:.5f}"
    gain = f"{row['above_plain']:+.5f} ± {row['above_plain_error']:.5f}"
    return f"| {row['weights']} | {row['kv']} | {above} | {gain} | {row['share_of_plain']:.2f} |"


def keep(results: Path, row: dict[str, Any]) -> None:
    """Put a row into the file of results, in place of an earlier one of the same name."""
    kept = [one for one in _kept(results) if any(one[key] != row[key] for key in ("weights", "kv", "model"))]
    results.write_text(json.dumps([*kept, row], indent=2) + "\n", encoding="utf-8")


def known(results: Path, wanted: dict[str, Any]) -> bool:
    """True if there is a row with all that is wanted."""
    return any(all(row[key] == value for key, value in wanted.items()) for row in _kept(results))


def _kept(results: Path) -> list[dict[str, Any]]:
    return json.loads(results.read_text(encoding="utf-8")) if results.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--models", type=Path, default=Path("build/quality"))
    parser.add_argument("--out", type=Path, default=RESULTS / "kv-ablation.json")
    parser.add_argument("--caches", nargs="*", help="a plain one before those compared with it")
    parser.add_argument("--weights", nargs="*", choices=CACHES, default=list(CACHES), help="-gptq: by GPTQ")
    parser.add_argument("--model", default=CONTROL, help="which of the models")
    parser.add_argument("--scored", type=int, default=0, help="so many windows from the start; all when 0")
    parser.add_argument("--choosing", action="store_true", help="score a piece of the training split instead")
    parser.add_argument("--steps", type=int, help="of learning, per layer")
    parser.add_argument("--windows", type=int, help="of calibration text")
    parser.add_argument("--lr", type=float, help="of learning")
    arguments = parser.parse_args()
    train, scored = held_out(arguments.text.read_text(encoding="utf-8"), arguments.choosing)
    checkpoint = arguments.models / arguments.model / f"{arguments.model}.safetensors"
    how = settings_of(arguments)
    print(HEADINGS)
    for weights in arguments.weights:
        caches, same = arguments.caches or CACHES[weights], {"model": arguments.model, "learning": asdict(how)}
        if not arguments.choosing and all(
            known(arguments.out, {"weights": weights, "kv": kv, **same}) for kv in caches
        ):
            continue
        model = rounded_model(checkpoint, weights, train)
        windows = windows_of(model, scored, arguments.scored)
        for row in rows(model, caches, train, windows, how):
            print(line({"weights": weights, **row}), flush=True)
            if not arguments.choosing:
                keep(arguments.out, {"weights": weights, **row, **same})


if __name__ == "__main__":
    main()
