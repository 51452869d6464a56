"""The kernels inside torch: same numbers as outside, no copies, compiled graphs, bad input."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels import (
    Channels,
    KVCache,
    PackedMatrix,
    PagePool,
    WindowedKVCache,
    linear,
    prepare,
    quantise_rows,
    supported,
)
from nearbank.kernels.arrays import taken

torch = pytest.importorskip("torch")
ops = pytest.importorskip("nearbank.kernels.torch_ops")


def test_tensors_keep_their_memory():
    x = torch.arange(6.0).reshape(2, 3)
    array, back = taken(x, "x")
    assert np.shares_memory(array, x.numpy())
    assert back(array).data_ptr() == x.data_ptr()


def test_linear_takes_and_returns_tensors():
    weights = np.random.default_rng(0).normal(size=(9, 40)).astype(np.float32)
    matrix = prepare(PackedMatrix.quantise(weights, "ternary"))
    x = torch.randn(5, 40)
    y = linear(x, matrix)
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), linear(x.numpy(), matrix))
    short = x.to(torch.bfloat16)
    np.testing.assert_array_equal(linear(short, matrix).numpy(), linear(short.float(), matrix).numpy())
    assert quantise_rows(x).codes.shape == (5, 40)


@pytest.mark.parametrize("kind", ["TernaryLinear", "BinaryLinear", "QuantizedLinear"])
def test_modules_multiply_what_they_packed(kind):
    layer = torch.nn.Linear(48, 20)
    packed = getattr(ops, kind).from_linear(layer)
    fmt = {"TernaryLinear": "ternary", "BinaryLinear": "binary", "QuantizedLinear": "int4"}[kind]
    matrix = prepare(PackedMatrix.quantise(layer.weight.detach().numpy(), fmt))
    x = torch.randn(2, 3, 48)
    expected = linear(x.reshape(6, 48), matrix).reshape(2, 3, 20) + layer.bias
    torch.testing.assert_close(packed(x), expected, rtol=0, atol=0)
    assert packed(x.half()).dtype == torch.float16
    with pytest.raises(NearbankError, match=r"\[47\] features"):
        packed(torch.randn(1, 47))


def test_copies_own_their_weights_and_nothing_lingers():
    layer = ops.TernaryLinear.from_linear(torch.nn.Linear(32, 8))
    x, twin, before = torch.randn(2, 32), deepcopy(layer), len(ops._matrices)
    expected = layer(x)
    del layer
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    del twin
    assert len(ops._matrices) == before - 2


@pytest.mark.parametrize("fmt", ["ternary", "ternary-b3", "binary-tensor", "int4", "int3-g20", "bf16"])
def test_a_state_dict_holds_the_weights(fmt):
    layers = [ops.QuantizedLinear.from_linear(torch.nn.Linear(47, 8), fmt) for _ in range(2)]
    file, x = io.BytesIO(), torch.randn(3, 47)
    torch.save(layers[0].state_dict(), file)
    file.seek(0)
    layers[1].load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(layers[1](x), layers[0](x), rtol=0, atol=0)
    stored = layers[0].state_dict()
    assert (
        sum(stored[name].nbytes for name in ("packed", "scales", "zeros") if name in stored) == layers[0].packed.nbytes
    )


def test_a_state_dict_of_other_weights_is_refused():
    layer = ops.TernaryLinear.from_linear(torch.nn.Linear(20, 8, bias=False))
    x, own = torch.randn(1, 20), layer.state_dict()
    expected = layer(x)
    code_four = {**own, "packed": own["packed"] | 0xC0}
    not_finite = {**own, "scales": own["scales"] * torch.nan}
    cut = {**own, "packed": own["packed"][:, :-1].contiguous()}
    narrower = ops.TernaryLinear.from_linear(torch.nn.Linear(19, 8, bias=False)).state_dict()  # as many bytes
    wider = ops.QuantizedLinear.from_linear(torch.nn.Linear(20, 8, bias=False), "fp16").state_dict()
    cases = {"expected 0 to 2": code_four, "scales hold NaN": not_finite, "'packed' is uint8": cut}
    cases |= {"are ternary 8 x 19; this layer holds ternary 8 x 20": narrower, "are fp16": wider}
    for message, given in cases.items():
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(given)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "layout", "packed", "scales"'):
        layer.load_state_dict({})
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_a_pickle_holds_only_what_is_the_same_on_every_machine():
    layer, x = ops.BinaryLinear.from_linear(torch.nn.Linear(40, 8)), torch.randn(2, 40)
    stored = pickle.dumps(layer)
    assert b"cpu.tiles" not in stored and b"reference" not in stored
    torch.testing.assert_close(pickle.loads(stored)(x), layer(x), rtol=0, atol=0)


def test_gradients_are_never_lost_silently():
    layer, cache = torch.nn.Linear(16, 8), KVCache(1, 2, 8, 4)
    x = torch.randn(1, 2, 8, requires_grad=True)
    matrix, packed = prepare(PackedMatrix.quantise(layer.weight, "ternary")), ops.TernaryLinear.from_linear(layer)
    for call in (lambda: linear(x.view(1, 16), matrix), lambda: cache.append(0, x, x), lambda: cache.attend(0, x)):
        with pytest.raises(NearbankError, match=r"requires grad.*no_grad"):
            call()
    with torch.no_grad():
        cache.append(0, x, x)
        assert linear(x.view(1, 16), matrix).shape == (1, 8)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        packed(x.view(1, 16)).sum().backward()


def test_operators_obey_torch():
    """torch's own checks: schema, fake kernels, no hidden aliasing, symbolic shapes."""
    layer = ops.TernaryLinear.from_linear(torch.nn.Linear(32, 8, bias=False))
    torch.library.opcheck(ops.linear_op, (torch.randn(3, 32), layer._number, 8))
    cache = ops.QuantizedKVCache(1, 2, 16, 40)
    q, k = torch.randn(3, 4, 16), torch.randn(3, 2, 16)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")  # the rest call it twice and compare
    torch.library.opcheck(ops.append_attend_op, (q, k, k, cache.lengths, cache._number, 0), test_utils=utils)


def test_what_a_module_cannot_take_is_refused():
    layer = torch.nn.Linear(16, 8)
    with pytest.raises(NearbankError, match=r"norm is a BatchNorm1d; expected torch\.nn\.RMSNorm"):
        ops.TernaryLinear.from_linear(layer, norm=torch.nn.BatchNorm1d(16))
    for other in (torch.nn.Conv1d(16, 8, 1), torch.nn.Linear(16, 8, device="meta"), layer.weight):
        with pytest.raises(NearbankError, match=r"layer is a .*; expected a torch\.nn\.Linear with its weights"):
            ops.TernaryLinear.from_linear(other)
    with pytest.raises(NearbankError, match="no module here has number -1"):
        ops.linear_op(torch.ones(1, 16), -1, 8)
    with pytest.raises(NearbankError, match="'x' is a ndarray; expected a tensor"):
        ops.TernaryLinear.from_linear(layer)(np.ones((1, 16), np.float32))


def test_graphs_see_through_the_modules():
    model = torch.nn.Sequential(
        ops.TernaryLinear.from_linear(torch.nn.Linear(32, 16)), torch.nn.ReLU(),
        ops.BinaryLinear.from_linear(torch.nn.Linear(16, 4)),
    )  # fmt: skip
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(7, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)


def test_cache_module_equals_the_cache():
    q, k, v = torch.randn(6, 4, 16), torch.randn(6, 2, 16), torch.randn(6, 2, 16)
    module = ops.QuantizedKVCache(1, 2, 16, 8, "int4")
    cache = KVCache(1, 2, 16, 8, "int4")
    cache.append(0, k, v)
    torch.testing.assert_close(module(0, q, k, v), cache.attend(0, q), rtol=0, atol=0)
    assert module.cache.length(0) == 6


def test_a_compiler_leaves_no_append_out():
    """Not one whose result nobody reads, and not the second of two that are alike."""
    module = ops.QuantizedKVCache(1, 2, 16, 40)
    q, k = torch.randn(3, 4, 16), torch.randn(3, 2, 16)

    def run():
        module(0, q, k, k)
        return module(0, q, k, k) + module(0, q, k, k)

    with torch.no_grad():
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)()
    assert module.cache.length(0) == 9
    cache = KVCache(1, 2, 16, 40, "int4")
    parts = []
    for _ in range(3):
        cache.append(0, k, k)
        parts.append(cache.attend(0, q))
    torch.testing.assert_close(compiled, parts[1] + parts[2], rtol=0, atol=0)


def test_cache_module_keeps_a_window():
    q, k, v = torch.randn(40, 4, 16), torch.randn(40, 2, 16), torch.randn(40, 2, 16)
    module, cache = ops.QuantizedKVCache(1, 2, 16, 40, scheme="kivi"), WindowedKVCache(1, 2, 16, 40, scheme="kivi")
    cache.append(0, k, v)
    torch.testing.assert_close(module(0, q, k, v), cache.attend(0, q), rtol=0, atol=0)
    with pytest.raises(NearbankError, match="belong to a scheme"):
        ops.QuantizedKVCache(1, 2, 16, 40, channels=Channels.of(k.numpy(), v.numpy()))


def test_supported_answers_before_one_tries():
    assert supported("linear", (1, 2048, 8192), ("int8", "ternary"))
    assert supported("attend", (1, 32, 8, 128), ("int4",), "numpy")
    refusals = {
        ("linear", (1, 8, 200_000), ("int8", "int8"), "auto"): "overflow",
        ("linear", (1, 8, 8), ("int8", "fp32"), "auto"): "integer weights",
        ("linear", (1, 8, 8), ("int7", "ternary"), "auto"): "int7",
        ("linear", (1, 8, 8), ("int8", "septary"), "auto"): "septary",
        ("linear", (1, 0, 8), ("int8", "int8"), "auto"): "1 or more",
        ("linear", (1, 8), ("int8", "int8"), "auto"): "3 sizes",
        ("attend", (1, 3, 2, 64), ("int4",), "auto"): "3 query heads",
        ("attend", (1, 4, 2, 64), ("ternary",), "auto"): "known: fp32",
        ("fft", (1,), (), "auto"): "unknown op",
        ("linear", (1, 8, 8), ("int8", "int8"), "abacus"): "unknown backend",
    }
    for question, word in refusals.items():
        answer = supported(*question)
        assert not answer and word in answer.reason, (question, answer)


def test_modules_over_a_pool_share_a_prefix():
    pool, own = PagePool(2, 2, 8, 6, "int4"), KVCache(2, 2, 8, 600, "int4")
    prompt = ops.QuantizedKVCache.from_pool(pool)
    q, k, v = torch.randn(300, 4, 8), torch.randn(300, 2, 8), torch.randn(300, 2, 8)
    for layer in range(2):
        prompt(layer, q, k, v)
        own.append(layer, k, v)
    answer, taken = prompt.fork(), 6 - pool.free_pages
    assert answer.lengths.tolist() == prompt.lengths.tolist() == [300, 300]
    own.append(1, k[:1], v[:1])
    torch.testing.assert_close(answer(1, q[:1], k[:1], v[:1]), own.attend(1, q[:1]), rtol=0, atol=0)
    assert (taken, pool.free_pages) == (2, 3)
    assert (answer.lengths.tolist(), prompt.lengths.tolist()) == ([300, 301], [300, 300])
    with pytest.raises(NearbankError, match="expected one made by from_pool"):
        ops.QuantizedKVCache(1, 2, 8, 4).fork()
