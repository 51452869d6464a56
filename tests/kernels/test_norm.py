"""Norms before the rounding: right against float64, equal bits on both backends, bad input refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearbank.errors import NearbankError
from nearbank.kernels import PackedMatrix, linear, prepare, quantise_rows
from nearbank.kernels.activations import Norm
from nearbank.kernels.cuda import host, layout, sources
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler
from nearbank.kernels.reference.norm import NORMS, normed


def inputs(rows, cols, vectors, seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, cols)) * rng.lognormal(0, 2, size=(rows, 1)) + 3).astype(np.float32)
    gain, bias = (rng.normal(size=cols).astype(np.float32) if wanted else None for wanted in vectors)
    return x, gain, bias


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cols", [1, 7, 256, 1000])
def test_the_definition_is_a_norm(norm, cols):
    x, gain, bias = inputs(3, cols, (True, True), cols)
    wide = x.astype(np.float64)
    away = wide - (wide.mean(axis=1, keepdims=True) if norm == "layer" else 0)
    right = away / np.sqrt((away**2).mean(axis=1, keepdims=True) + 1e-5) * gain + bias
    # Sums of K/256 + 8 terms and a handful of roundings, and the cancellation of x − mean.
    unit = 2.0**-24 * (cols / 256 + 16) * (1 + np.abs(wide).max() / np.sqrt((away**2).mean(axis=1).min() + 1e-5))
    found = normed(x, norm, gain, bias, np.float32(1e-5))
    np.testing.assert_allclose(found, right, rtol=0, atol=4 * unit * (1 + np.abs(right).max()))


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(NORMS), rows=st.integers(1, 4), cols=st.integers(1, 900), gain=st.booleans(),
    bias=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_backends_round_the_same_norm(norm, rows, cols, gain, bias, seed):
    x, *vectors = inputs(rows, cols, (gain, bias), seed)
    checked = Norm.checked(norm, *vectors, 1e-6, cols)
    mine, twin = (quantise_rows(x, backend, checked) for backend in ("numba", "numpy"))
    for name in ("codes", "scales", "sums"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(twin, name), err_msg=name)
    weights = PackedMatrix.quantise(np.random.default_rng(seed).normal(size=(5, cols)).astype(np.float32), "ternary")
    by_hand = linear(checked.apply(x), prepare(weights, "numpy"))
    for backend in ("numba", "numpy"):
        y = linear(x, prepare(weights, backend), "int8", norm, *vectors, epsilon=1e-6)
        np.testing.assert_array_equal(y, by_hand)


def test_bad_norms_are_refused():
    x = np.ones((2, 4), np.float32)
    matrix = prepare(PackedMatrix.quantise(np.ones((3, 4), np.float32), "ternary"))
    with pytest.raises(NearbankError, match="unknown norm 'batch'"):
        linear(x, matrix, norm="batch")
    with pytest.raises(NearbankError, match=r"'gain' is \[3\]; expected \[4\]"):
        linear(x, matrix, norm="rms", gain=np.ones(3, np.float32))
    with pytest.raises(NearbankError, match="belong to a norm"):
        linear(x, matrix, gain=np.ones(4, np.float32))
    with pytest.raises(NearbankError, match="above 0"):
        linear(x, matrix, norm="rms", epsilon=0)
    x[1] = 1e30  # finite, its square is not
    for backend in ("numba", "numpy"):
        with pytest.raises(NearbankError, match="row 1 is beyond float32 after the norm 'rms'"):
            quantise_rows(x, backend, Norm("rms"))


@pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("cols", [1, 300, 1029])
def test_the_gpu_rounds_the_same_norm(norm, cols):
    number = NORMS.index(norm) + 1
    runtime = EmulatedRuntime(tuple(sources.quantise(n, 0) for n in (1, 2)))
    x, gain, bias = inputs(2, cols, (True, True), cols)
    shape = layout.Shape(1, cols, 8, cols, -(-cols // 32) * 32, 1)
    on_device, *vectors = map(runtime.asarray, (x, gain, bias))
    rows = host.quantise(runtime, on_device, 0, shape, number, *vectors, 1e-5)
    right = quantise_rows(x, "numpy", Norm(norm, gain, bias))
    np.testing.assert_array_equal(np.asarray(rows.codes)[:, :cols], right.codes)
    np.testing.assert_array_equal(np.asarray(rows.scales), right.scales)


@pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")
@pytest.mark.parametrize("norm", NORMS)
def test_squares_beyond_float32_are_nan_on_a_gpu_too(norm):
    x = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    x[1] *= np.float32(1e30)
    assert np.isnan(normed(x, norm, None, None, np.float32(1e-5))).all(axis=1).tolist() == [False, True, False]
    number = NORMS.index(norm) + 1
    runtime = EmulatedRuntime((sources.quantise(number, 0),))
    shape = layout.Shape(1, 300, 8, 300, 320, 1)
    rows = host.quantise(runtime, runtime.asarray(x), 0, shape, number, None, None, 1e-5)
    assert np.isnan(np.asarray(rows.scales)).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
def test_torch_modules_take_a_norm(kind):
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("nearbank.kernels.torch_ops")
    norm, layer = getattr(torch.nn, kind)(32, eps=1e-6), torch.nn.Linear(32, 8)
    torch.nn.init.normal_(norm.weight)
    module = ops.TernaryLinear.from_linear(layer, norm=norm)
    x = torch.randn(2, 5, 32)
    plain = ops.TernaryLinear.from_linear(layer)
    with torch.no_grad():
        step = 2 * norm(x).abs().max() / 127  # a norm that rounds otherwise may move a code by one
        assert (module(x) - plain(norm(x))).abs().max() <= step * 32 * layer.weight.abs().max()
    bias = None if kind == "RMSNorm" else norm.bias.detach()
    rows = x.reshape(-1, 32)
    matrix = prepare(PackedMatrix.quantise(layer.weight.detach().numpy(), "ternary"))
    y = linear(rows, matrix, "int8", {"RMSNorm": "rms", "LayerNorm": "layer"}[kind], norm.weight.detach(), bias, 1e-6)
    torch.testing.assert_close(module(x), (y + layer.bias).reshape(2, 5, 8), rtol=0, atol=0)
    y = torch.compile(module, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(y, module(x), rtol=0, atol=0)
    with pytest.raises(NearbankError, match=r"norm over \[16\]"):
        ops.TernaryLinear.from_linear(layer, norm=torch.nn.RMSNorm(16))
