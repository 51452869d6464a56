"""A small GPT through the mapped programs gives what the same arithmetic gives without any memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.mapping.shapes import gpt, steps

from nearbank.formats import Quantised, format_named, from_bf16, to_bf16
from nearbank.mapping import MappingOptions, plan
from nearbank.mapping.cached_attention import Rounded, round_token
from nearbank.mapping.decoder import GptWeights, MappedDecoder, Norm, gelu, quantise_vector
from nearbank.sim.machine import load_machine
from nearbank.trace import ModelDescription

PROMPT = [3, 11, 7, 0, 48, 2, 9]
CHOSEN = [5, 30, 1]


def weights_for(model: ModelDescription, weights: str, head: str) -> GptWeights:
    rng = np.random.default_rng(7)

    def norm() -> Norm:
        gain, bias = rng.normal(1, 0.1, model.width), rng.normal(0, 0.1, model.width)
        return Norm(gain.astype(np.float32), bias.astype(np.float32))

    def matrix(n: int, k: int, fmt: str) -> Quantised:
        return format_named(fmt).quantise(rng.normal(0, k**-0.5, (n, k)).astype(np.float32))

    matrices = {
        m.name.rsplit(".", 1)[-1]: [
            matrix(m.n, m.k, weights if m.per_layer else head) for _ in range(model.layers if m.per_layer else 1)
        ]
        for m in model.matrices
    }
    return GptWeights(
        tokens=rng.normal(size=(model.vocabulary, model.width)).astype(np.float32),
        positions=rng.normal(0, 0.1, (model.context, model.width)).astype(np.float32),
        norms=[(norm(), norm()) for _ in range(model.layers)],
        final_norm=norm(),
        matrices=matrices,
        biases={"fc1": [rng.normal(0, 0.1, model.hidden).astype(np.float32) for _ in range(model.layers)]},
    )


def rounded_to_bf16(values: np.ndarray) -> np.ndarray:
    return from_bf16(to_bf16(values.astype(np.float32))).astype(np.float64)


class Plain:
    """The same decoder in plain NumPy: rounded where the machine rounds."""

    def __init__(self, model: ModelDescription, weights: GptWeights, fmt: str, head: str, kv: str) -> None:
        self.model, self.w, self.fmt, self.head, self.kv = model, weights, fmt, head, kv
        self.past: list[list[tuple[Rounded, Rounded]]] = [[] for _ in range(model.layers)]

    def times(self, label: str, layer: int, x: np.ndarray) -> np.ndarray:
        fmt = format_named(self.head if label == "lm_head" else self.fmt)
        dense = fmt.dequantise(self.w.matrices[label][layer]).astype(np.float64)
        if fmt.is_float:
            y = dense @ from_bf16(to_bf16(x.astype(np.float32)))
        else:
            codes, scale = quantise_vector(x.astype(np.float32))
            y = dense @ codes * scale
        return y + self.w.biases[label][layer] if label in self.w.biases else y

    def rounded(self, values: np.ndarray) -> Rounded:
        r = round_token(format_named(self.kv), values)
        codes = from_bf16(r.codes) if self.kv == "bf16" else r.codes
        return Rounded(codes.astype(np.float64), r.scales, r.offsets)

    def attend(self, layer: int, qkv: np.ndarray) -> np.ndarray:
        d = self.model.head_dim
        q, k, v = (part.reshape(-1, d) for part in np.split(qkv, 3))
        self.past[layer].append((self.rounded(k), self.rounded(v)))
        q = rounded_to_bf16(q * d**-0.5)
        return np.concatenate([self.head_of(layer, head, q[head]) for head in range(self.model.heads)])

    def head_of(self, layer: int, h: int, q: np.ndarray) -> np.ndarray:
        keys, values = zip(*self.past[layer], strict=True)
        scores = np.array([k.codes[h] @ q * k.scales[h] + q.sum() * k.offsets[h] for k in keys])
        p = np.exp(scores - scores.max())
        scaled = rounded_to_bf16(p * [v.scales[h] for v in values])
        total = sum(w * v.codes[h] for w, v in zip(scaled, values, strict=True))
        return (total + p @ [v.offsets[h] for v in values]) / p.sum()

    def token(self, token: int, position: int) -> np.ndarray:
        x = self.w.tokens[token] + self.w.positions[position]
        for layer, (first, second) in enumerate(self.w.norms):
            x = x + self.times("proj", layer, self.attend(layer, self.times("qkv", layer, first(x))))
            x = x + self.times("fc2", layer, gelu(self.times("fc1", layer, second(x)).astype(np.float32)))
        return self.times("lm_head", 0, self.w.final_norm(x))


@pytest.mark.parametrize(
    ("machine", "weights", "kv", "tolerance"),
    [
        ("pim-gpt", "bf16", "bf16", 0.05),
        ("pim-gpt-ternary", "bf16", "bf16", 0.005),
        ("pim-gpt-ternary", "int8", "int8", 0.005),
        ("pim-gpt-ternary", "ternary", "bf16", 0.005),
        ("pim-gpt-ternary", "ternary-tensor", "int8", 0.005),
        ("pim-gpt-ternary", "binary", "int4", 0.005),
        ("pim-gpt-ternary", "int4-g64", "int2", 0.005),
    ],
)
def test_a_prompt_and_three_tokens_equal_the_plain_decoder(
    machine: str, weights: str, kv: str, tolerance: float
) -> None:
    model = replace_context(gpt("tiny", layers=2, width=64, heads=4, vocabulary=50), 32)
    placed = plan(model, load_machine(machine), MappingOptions(weights=weights, kv=kv))
    w = weights_for(model, weights, "bf16")
    decoder, plain = MappedDecoder(placed, w), Plain(model, w, weights, "bf16", kv)
    position = 0
    for step, tokens in zip(steps(model, len(PROMPT), 1 + len(CHOSEN)), [PROMPT, *([t] for t in CHOSEN)], strict=True):
        logits = decoder.run(step, tokens)
        for token in tokens:
            expected = plain.token(token, position)
            position += 1
        assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


def replace_context(model: ModelDescription, context: int) -> ModelDescription:
    return model.model_copy(update={"context": context})


def test_a_wrong_weight_changes_the_logits() -> None:
    model = replace_context(gpt("tiny", layers=1, width=64, heads=4, vocabulary=50), 32)
    placed = plan(model, load_machine("pim-gpt-ternary"), MappingOptions(weights="ternary"))
    w = weights_for(model, "ternary", "bf16")
    spoiled = {**w.matrices, "fc2": [Quantised(2 - q.codes, q.scales) for q in w.matrices["fc2"]]}
    step = next(steps(model, 2, 1))
    good = MappedDecoder(placed, w).run(step, [1, 2])
    bad = MappedDecoder(placed, replace(w, matrices=spoiled)).run(step, [1, 2])
    assert np.abs(good - bad).max() > 0.1
