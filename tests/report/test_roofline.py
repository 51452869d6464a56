"""The modelled processors follow their formula, counted here by hand."""

import pytest

from nearbank.baselines.processor import load_processor, processor_names
from nearbank.baselines.roofline import roofline_row
from nearbank.errors import NearbankError
from nearbank.trace import Operation
from nearbank.trace.moved import kv_bytes, operation_bytes, weight_bytes
from nearbank.workload import sketch_workload

QKV = Operation("matmul", "attn.qkv", m=1, n=6144, k=2048, weights="bf16", inputs="bf16")
SCORE = Operation("score", "attn.score", m=1, k=128, heads=16, kv_heads=16, context=100, pairs=100, kv="bf16")


def test_a_gemv_moves_its_weights_and_activations() -> None:
    assert weight_bytes(QKV) == 6144 * 2048 * 2
    assert operation_bytes(QKV) == 6144 * 2048 * 2 + 2 * (6144 + 2048)


def test_attention_reads_the_cache_once() -> None:
    assert kv_bytes(SCORE) == 100 * 16 * 128 * 2
    append = Operation("append", "attn.kv", m=3, n=2048, kv_heads=16, context=9, kv="int4")
    assert kv_bytes(append) == 2 * 3 * 16 * (128 // 2 + 4)


def test_decode_time_at_gpt3_xl_is_the_weights_over_the_bandwidth() -> None:
    load = sketch_workload("gpt3-xl", 1, 4)
    bare = roofline_row(load_processor("t4"), load)
    weights_ns = load.model.weights() * 2 / 320e9 * 1e9
    assert bare.ns_per_token == pytest.approx(weights_ns, rel=0.01)
    assert bare.energy_pj == pytest.approx(bare.time_ns * 70_000, rel=1e-6)


def test_a_long_prompt_is_bound_by_arithmetic() -> None:
    processor = load_processor("h200")
    bare = roofline_row(processor, sketch_workload("gpt3-xl", 2000, 1))
    macs = sum(step.macs for step in sketch_workload("gpt3-xl", 2000, 1).steps())
    assert macs / processor.peak_macs_per_ns < bare.time_ns < 3 * macs / processor.peak_macs_per_ns


def test_fewer_bits_move_fewer_bytes() -> None:
    load = sketch_workload("gpt3-xl", 1, 2)
    processor = load_processor("t4")
    moved = {w: roofline_row(processor, load, w).bytes_off_chip for w in ("bf16", "int8", "ternary", "binary")}
    assert list(moved.values()) == sorted(moved.values(), reverse=True)


def test_an_unknown_processor_lists_the_known_ones() -> None:
    with pytest.raises(NearbankError, match=", ".join(processor_names())):
        load_processor("t5")
