"""Decoding on a device, its kernels run by the emulation: tokens and logits are those of the NumPy backend."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tests.models.random_gpt import random_tensors

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.kernels import Matrix, PackedMatrix
from nearbank.kernels.cuda import host, sources
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler
from nearbank.models import device as device_module
from nearbank.models import tensors as tensors_module
from nearbank.models.decoder import HostDecoder, decoder_of
from nearbank.models.device import decoder_for
from nearbank.models.device_steps import DeviceSteps, timed
from nearbank.models.generate import generate, steps
from nearbank.models.gpt import load_gpt
from nearbank.models.llama import load_llama
from nearbank.models.model import Model
from nearbank.models.sampling import Sampling
from nearbank.models.shape import Shape, gpt_shape
from nearbank.models.sketch import sketch
from nearbank.models.tensors import Precision, Tensors
from nearbank.trace import fold_layers

pytestmark = pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")

GPT = gpt_shape("random", layers=2, width=128, heads=2, vocabulary=40, context=32)
LLAMA = Shape("random", "llama", 2, 128, 2, 1, 64, 96, 40, 32, activation="silu")
BITNET = replace(LLAMA, family="bitnet", activation="relu2")
CONFIG = {"rope_theta": 10000.0, "rms_norm_eps": 1e-5}
KERNELS = (
    *sources.decoding_kernels(),
    *(sources.quantise(norm, 0) for norm in (0, 1, 2)),
    *(sources.gemv_one(bits, 3 * norm, False) for bits in (2, 8) for norm in (0, 1, 2)),
    *(sources.gemv_stream(bits, 1) for bits in (2, 8)),
    *(sources.gemv_rows(bits, 1, tiling) for bits in (2, 8) for tiling in sources.GEMV_TILINGS),
    *(sources.floats_by_floats(0), sources.floats_by_floats(2)),
    *(sources.append_rows(name, 0) for name in ("bf16", "int4")),
    *(sources.attend(name, 64) for name in ("bf16", "int4")),
    *(kernel(name) for kernel in (sources.exact_scores, sources.exact_pages) for name in ("bf16", "int4")),
    sources.EXACT_TOTAL,
)
PROMPT = [3, 1, 4, 1, 5]


class Device(EmulatedRuntime):
    """The emulation, with matrices prepared for it as the backend "cupy" would."""

    def prepared(self, packed: PackedMatrix, _backend: str) -> Matrix:
        make = host.upload_floats if packed.format.is_float else host.upload
        return Matrix(packed.format, packed.shape, "cupy", make(self, packed))


@cache
def llama_tensors(family: str) -> dict[str, np.ndarray]:
    random, shape = np.random.default_rng(1), LLAMA
    sizes = {"model.embed_tokens.weight": (shape.vocabulary, shape.width)}
    matrices = {
        "self_attn.q_proj": (shape.q_width, shape.width),
        "self_attn.k_proj": (shape.kv_width, shape.width),
        "self_attn.v_proj": (shape.kv_width, shape.width),
        "self_attn.o_proj": (shape.width, shape.q_width),
        "mlp.gate_proj": (shape.hidden, shape.width),
        "mlp.up_proj": (shape.hidden, shape.width),
        "mlp.down_proj": (shape.width, shape.hidden),
    }
    norms = {"input_layernorm": shape.width, "post_attention_layernorm": shape.width}
    if family == "bitnet":
        norms |= {"self_attn.attn_sub_norm": shape.q_width, "mlp.ffn_sub_norm": shape.hidden}
    layers = [f"model.layers.{i}." for i in range(shape.layers)]
    sizes |= {f"{at}{name}.weight": size for at in layers for name, size in matrices.items()}
    made = {name: random.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    ones = {f"{at}{name}.weight": size for at in layers for name, size in norms.items()}
    ones["model.norm.weight"] = shape.width
    return made | {name: random.normal(1, 0.1, size).astype(np.float32) for name, size in ones.items()}


def loaded(shape: Shape, weights: str, kv: str, backend: str) -> Model:
    precision = Precision(weights)
    if shape.family == "gpt":
        network = load_gpt(shape, Tensors(random_tensors(shape), backend, precision))
    else:
        network = load_llama(shape, CONFIG, Tensors(llama_tensors(shape.family), backend, precision))
    return Model(network, None, weights, precision.activations, kv, backend)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(KERNELS)


def both(device: Device, shape: Shape, weights: str, kv: str) -> tuple[Model, Model]:
    """The model on NumPy, and for the device."""
    plain = loaded(shape, weights, kv, "numpy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors_module, "prepare", device.prepared)
        return plain, loaded(shape, weights, kv, "cupy")


CASES = [
    pytest.param(GPT, "ternary", "bf16", id="gpt-ternary"),
    pytest.param(GPT, "fp32", "int4", id="gpt-fp32"),
    pytest.param(LLAMA, "int8", "int4", id="llama-int8"),
    pytest.param(BITNET, "ternary", "int4", id="bitnet-ternary"),
]


@pytest.mark.parametrize(("shape", "weights", "kv"), CASES)
def test_exact_decoding_is_the_numpy_backends(device: Device, shape: Shape, weights: str, kv: str) -> None:
    plain, there = both(device, shape, weights, kv)
    decoder = decoder_for(there, 16, exact=True, runtime=device)
    wanted = generate(plain, PROMPT, 8)
    assert tuple(decoder.generate(PROMPT, 8)) == wanted.tokens
    tokens = [*PROMPT, *wanted.tokens[:-1]]
    exact = plain.logits(tokens)[-1]
    tolerance = 0 if shape.family == "gpt" else 1e-5 * np.abs(exact).max()
    assert np.abs(device.asnumpy(decoder.logits)[0] - exact).max() <= tolerance


@pytest.mark.parametrize(("shape", "weights", "kv"), CASES)
def test_fast_decoding_has_the_logits(device: Device, shape: Shape, weights: str, kv: str) -> None:
    """Attention of two bfloat16 per value, norms in float32: a code may fall to either side of an edge."""
    plain, there = both(device, shape, weights, kv)
    decoder = decoder_for(there, 16, runtime=device)
    tokens = [*PROMPT, *decoder.generate(PROMPT, 6)[:-1]]
    exact = plain.logits(tokens)[-1]
    assert np.abs(device.asnumpy(decoder.logits)[0] - exact).max() <= 0.03 * np.abs(exact).max()


def test_a_seed_draws_the_same_tokens(device: Device) -> None:
    plain, there = both(device, GPT, "ternary", "bf16")
    sampling = Sampling(temperature=0.9, top_k=20, seed=7)
    decoder = decoder_for(there, 16, exact=True, runtime=device)
    assert tuple(decoder.generate(PROMPT, 8, sampling)) == generate(plain, PROMPT, 8, sampling).tokens
    assert tuple(decoder.generate(PROMPT, 8)) == generate(plain, PROMPT, 8).tokens


def test_a_step_names_its_operations(device: Device) -> None:
    _, there = both(device, GPT, "ternary", "bf16")
    decoder = decoder_for(there, 16, exact=True, runtime=device)
    decoder.prefill(PROMPT)
    decoder.choose()
    seen: list[str] = []
    decoder.step(note=seen.append)
    inside = ["attn.qkv", "attn.rope", "attn.kv", "attn.context", "attn.proj", "attn.residual", "mlp.fc1", "mlp.gelu",
              "mlp.fc2", "mlp.residual"]  # fmt: skip
    assert seen == ["wte", *inside * GPT.layers, "ln_f", "lm_head", "", "sample"]


def test_ties_go_to_the_lower_token(device: Device) -> None:
    _, there = both(device, GPT, "ternary", "bf16")
    decoder = decoder_for(there, 16, runtime=device)
    for values, wanted in (([0, 5, 5, 1], 1), ([-2, -3, -1, -1], 2), ([-np.inf] * 4, 0)):
        logits = np.full((1, 40), -np.inf, np.float32)
        logits[0, :4] = values
        decoder.logits[...] = logits
        decoder.choose()
        assert int(decoder._one.tokens[0]) == wanted == int(np.argmax(logits[0]))


def test_what_a_device_cannot_decode_is_refused(device: Device) -> None:
    plain, there = both(device, GPT, "ternary", "bf16")
    with pytest.raises(NearbankError, match="prepared for 'numpy'"):
        decoder_for(plain, 16, runtime=device)
    with pytest.raises(NearbankError, match="capacity of 33"):
        decoder_for(there, 33, runtime=device)
    with pytest.raises(NearbankError, match="KV cache int4-past"):
        decoder_for(replace(there, kv="int4-past"), 16, runtime=device)
    with pytest.raises(NearbankError, match="exact=True"):
        decoder_for(replace(there, kv="fp32"), 16, runtime=device)
    with pytest.raises(NearbankError, match=r"5 \+ 13 tokens"):
        decoder_for(there, 16, runtime=device).generate(PROMPT, 13)
    windowed = replace(there.network, shape=replace(GPT, windows=(4,)))
    with pytest.raises(NearbankError, match="sliding windows"):
        decoder_for(replace(there, network=windowed), 16, runtime=device)
    assert format_named("bf16").is_float


@pytest.fixture
def at_hand(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device that a generation on "cupy" finds."""
    monkeypatch.setattr(device_module, "current_runtime", lambda: device)
    return device


DRAWN = Sampling(temperature=0.9, top_k=20, seed=7)


@pytest.mark.parametrize(
    ("shape", "weights", "kv", "sampling"),
    [pytest.param(*case.values, DRAWN, id=f"drawn-{case.id}") for case in CASES]
    + [pytest.param(*CASES[0].values, Sampling(), id="greedy")],
)
def test_generating_on_cupy_stays_on_the_device(
    at_hand: Device, shape: Shape, weights: str, kv: str, sampling: Sampling
) -> None:
    _, there = both(at_hand, shape, weights, kv)
    assert isinstance(decoder_of(there, [np.array(PROMPT)], [np.array(PROMPT)], 6), DeviceSteps)
    wanted = decoder_for(there, 16, runtime=at_hand).generate(PROMPT, 6, sampling)
    assert generate(there, PROMPT, 6, sampling).tokens == tuple(wanted)


@pytest.mark.parametrize(("shape", "weights", "kv"), CASES)
def test_a_record_on_the_device_is_the_sketch_with_times(at_hand: Device, shape: Shape, weights: str, kv: str) -> None:
    _, there = both(at_hand, shape, weights, kv)
    head = there.network.head
    formats = {"weights": weights, "inputs": there.inputs, "kv": kv}
    sketched = sketch(shape, 5, 4, **formats, head=head.matrix.format.name, head_inputs=head.inputs)
    results = list(steps(there, [np.array(PROMPT)], 4, record=True))
    for step, result in zip(sketched, results, strict=True):
        assert step.blocks == fold_layers([(layer, operation) for layer, operation, _ in result.rows])
        measured = {o.name for _, o, time in result.rows if time is not None}
        unmeasured = {o.name for _, o, time in result.rows if time is None}
        assert {"ln_1", "ln_2", "attn.score", "attn.softmax"} <= unmeasured
        assert not measured & unmeasured
        assert measured >= {"wte", "attn.kv", "attn.context", "attn.proj", "mlp.residual", "ln_f", "lm_head", "sample"}
        assert 0 < sum(time or 0 for _, _, time in result.rows) <= result.time_ns
    assert [result.tokens[0] for result in results] == list(generate(there, PROMPT, 4).tokens)


def test_what_the_device_does_not_decode_runs_pass_by_pass(at_hand: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "cache", lambda self, capacity: None)  # a cache on "cupy" would need a GPU
    _, there = both(at_hand, GPT, "ternary", "bf16")
    prompt = np.array(PROMPT)
    assert isinstance(decoder_of(there, [prompt, prompt], [prompt, prompt], 4), HostDecoder)
    assert isinstance(decoder_of(replace(there, kv="fp32", backend="numpy"), [prompt], [prompt], 4), HostDecoder)
    windowed = replace(there, network=replace(there.network, shape=replace(GPT, windows=(4,))))
    assert isinstance(decoder_of(windowed, [prompt], [prompt], 8), HostDecoder)


def test_a_pass_without_a_kernel_for_an_operation_is_found() -> None:
    step = next(sketch(GPT, 1, 1))
    with pytest.raises(AssertionError, match=r"attn\.qkv has no kernel among \['wte'\]"):
        list(timed(step, [("wte", 5)]))
