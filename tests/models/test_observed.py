"""Runs of other frameworks: sketched on the meta device, imported from a profile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nearbank.models.catcher import product_shapes
from nearbank.models.kineto import import_kineto, unknown_lines
from nearbank.models.meta import sketch_config
from nearbank.models.observed import Reader, Seen, passes
from nearbank.trace import open_trace

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
SIZES |= {"max_position_embeddings": 128, "intermediate_size": 96}
GPT_SIZES = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 128}
# Families without an architecture of their own here, and two with one
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": SIZES,
    "bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 97},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97},
    "gptj": {**GPT_SIZES, "rotary_dim": 8},
    "phi": SIZES,
    "olmo2": SIZES,
    "starcoder2": {**SIZES, "num_key_value_heads": 2},
    "cohere": SIZES,
    "llama": {**SIZES, "num_key_value_heads": 2},
    "gpt2": GPT_SIZES,
}


def reference_macs(family: str, prompt: int, new: int) -> list[int]:
    """Multiply-accumulates of each pass by torch's own counter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    macs, past = [], None
    for index in range(new):
        ids = torch.zeros(1, 1 if index else prompt, dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            past = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values
        macs.append(counter.get_total_flops() // 2)
    return macs


SOURCE_SIZES: dict[str, Any] = {"d_model": 64, "vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 0}
SOURCE_SIZES |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
SOURCE_SIZES |= {"decoder_layers": 3, "decoder_attention_heads": 8, "decoder_ffn_dim": 80}
T5_SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
T5_SIZES |= {"vocab_size": 97}
LONG_SIZES = {**T5_SIZES, "local_radius": 3, "global_block_size": 4}
PROPHETNET_SIZES = {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 8, "max_position_embeddings": 64}
PROPHETNET_SIZES |= {"hidden_size": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80, "vocab_size": 97}
PROPHETNET_SIZES |= {"num_encoder_layers": 2, "num_decoder_layers": 3}
READERS: dict[str, dict[str, Any]] = {
    "t5": T5_SIZES,
    "umt5": {**T5_SIZES, "feed_forward_proj": "gated-gelu"},
    "marian": SOURCE_SIZES,
    "pegasus": SOURCE_SIZES,
    "m2m_100": SOURCE_SIZES,
    "blenderbot": SOURCE_SIZES,
    "bart": SOURCE_SIZES,
    "prophetnet": PROPHETNET_SIZES,
    "longt5": LONG_SIZES,
    "longt5-global": {**LONG_SIZES, "encoder_attention_type": "transient-global"},
}


def model_type(family: str) -> str:
    """A family without its variant."""
    return family.partition("-")[0]


def reference_source_macs(family: str, source: int, new: int) -> list[int]:
    """As above, of an encoder-decoder; the encoder is in the first pass."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    config = transformers.AutoConfig.for_model(model_type(family), **READERS[family])
    with torch.device("meta"):
        model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    ids, macs, out = torch.zeros(1, source, dtype=torch.long, device="meta"), [], None
    for _ in range(new):
        known = {"encoder_outputs": BaseModelOutput(out.encoder_last_hidden_state)} if out else {"input_ids": ids}
        past = out.past_key_values if out else EncoderDecoderCache(DynamicCache(), DynamicCache())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            out = model(**known, decoder_input_ids=ids[:, :1], past_key_values=past, use_cache=True)
        macs.append(counter.get_total_flops() // 2)
    return macs


@pytest.mark.parametrize(("family", "source"), [*((family, 9) for family in READERS), ("t5", 1), ("prophetnet", 3)])
def test_an_encoder_decoders_macs_equal_torchs_own_count(
    family: str, source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketched = sketch_config({"model_type": model_type(family), **READERS[family]}, source, 4)
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")  # it looks at values, which a meta tensor has not
    macs = reference_source_macs(family, source, 4)
    if family == "prophetnet":  # einsum multiplies where one position is attended: no product for torch to count
        macs[0] += 3 * PROPHETNET_SIZES["hidden_size"]
    assert [step.macs for step in sketched.steps] == macs
    model = sketched.model
    assert (model.layers, model.encoder_layers, model.width, model.vocabulary) == (5, 2, 64, 97)
    layers = {matrix.name: matrix.layers for matrix in model.matrices}
    assert (layers["encoder.matmul.0"], layers["cross.k"], layers["lm_head"]) == ((0, 1), (2, 3, 4), None)
    for step in sketched.steps:
        rows = list(step.rows())
        assert {o.name for _, o in rows if o.op == "matmul"} <= layers.keys()
        assert {o.context for _, o in rows if o.name == "cross.score"} == {source}
        assert {o.context for _, o in rows if o.name == "attn.score"} == {step.index + 1}
        kept = [(layer, o.m) for layer, o in rows if o.name == "cross.kv"]
        assert kept == ([] if step.index else [(layer, source) for layer in (2, 3, 4)])
    assert "mul" in sketched.unknown


def test_streams_that_predict_further_tokens_keep_nothing() -> None:
    """ProphetNet: two streams beside the main one, each sees the past, the main token and its own."""
    sketched = sketch_config({"model_type": "prophetnet", **PROPHETNET_SIZES}, 9, 3)
    for step in sketched.steps:
        rows = [o for layer, o in step.rows() if layer >= 2]
        predicted = {(o.m, o.heads, o.context, o.pairs) for o in rows if o.name == "predict.score"}
        assert predicted == {(2, 8, step.index + 2, 2 * (step.index + 2))}
        assert [o.m for o in rows if o.op == "append" and o.name != "cross.kv"] == [1, 1, 1]


def test_blocks_of_tokens_attend_their_neighbours() -> None:
    """LongT5, radius 3: 9 tokens in 3 blocks of 4, each sees 3 blocks, and a sum of every 4 tokens where asked."""
    for kind, context in (("local", 12), ("transient-global", 14)):
        config = {"model_type": "longt5", **LONG_SIZES, "encoder_attention_type": kind}
        rows = [o for layer, o in sketch_config(config, 9, 2).steps[0].rows() if layer < 2]
        scores = {(o.m, o.heads, o.context, o.pairs) for o in rows if o.name == "encoder.attn.score"}
        assert scores == {(12, 4, context, 12 * context)}
        pools = [(o.m, o.n, o.context) for o in rows if o.name == "encoder.pool.context"]
        assert pools == ([] if kind == "local" else [(2, 64, 9)] * 2)


@pytest.mark.parametrize(
    ("equation", "shapes", "product"),
    [
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5)), ("batched", (2, 3, 4), (2, 4, 5))),
        ("...qhd,...khd->...hqk", ((1, 6, 3, 2, 4), (1, 6, 5, 2, 4)), ("batched", (1, 6, 2, 3, 4), (1, 6, 2, 4, 5))),
        ("...nd,...ng->...gd", ((1, 9, 4), (1, 9, 2)), ("pooled", (1, 4, 9), (1, 9, 2))),
        ("i,j->ij", ((3,), (4,)), None),
        ("bij->bji", ((2, 3, 4),), None),
        ("bii,bij->bj", ((2, 3, 3), (2, 3, 4)), None),
    ],
)
def test_an_einsum_is_read_as_the_product_it_is(equation: str, shapes: Any, product: Any) -> None:
    assert product_shapes(equation, shapes) == product


def test_a_bart_caught_is_the_bart_that_is_known() -> None:
    """The two ways to a sketch agree on every product and attention of every step."""
    from nearbank.models.hf_config import shape_from_config
    from nearbank.models.sketch import describe, sketch

    config = {"model_type": "bart", **READERS["bart"]}
    caught, shape = sketch_config(config, 9, 4), shape_from_config(config, "bart")
    for ours, theirs in zip(sketch(shape, 9, 4), caught.steps, strict=True):
        for op in ("matmul", "score", "context", "append"):
            both = (
                sorted((layer, o.m or 0, o.n or 0, o.k or 0, o.context or 0) for layer, o in step.rows() if o.op == op)
                for step in (ours, theirs)
            )
            assert len({tuple(rows) for rows in both}) == 1
    assert describe(shape).weights() == caught.model.weights()


@pytest.mark.parametrize("family", FAMILIES)
def test_macs_equal_torchs_own_count(family: str) -> None:
    macs = reference_macs(family, 9, 4)
    sketched = sketch_config({"model_type": family, **FAMILIES[family]}, 9, 4)
    assert [step.macs for step in sketched.steps] == macs
    assert [step.phase for step in sketched.steps] == ["prefill", "decode", "decode", "decode"]
    assert (sketched.model.layers, sketched.model.width, sketched.model.vocabulary) == (3, 64, 97)
    in_layers = [o for block in sketched.steps[1].blocks if block.first >= 0 for o in block.operations]
    assert all(o.context == 10 for o in in_layers if o.op in ("score", "context", "append"))
    assert "mul" in sketched.unknown


def test_sliding_windows_are_run_step_by_step() -> None:
    """GPT-Neo's local layers attend 4 tokens at most in the mask, but the framework computes all of them."""
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 97, "window_size": 4}
    sketched = sketch_config({"model_type": "gpt_neo", **sizes, "attention_types": [[["global", "local"], 1]]}, 3, 6)
    contexts = [{o.context for _, o in step.rows() if o.op == "score"} for step in sketched.steps]
    assert contexts == [{3}, {4}, {5}, {6}, {7}, {8}]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nonsense"}, "model type 'nonsense': transformers cannot build a causal"),
        ({"model_type": "stablelm", **SIZES, "num_key_value_heads": 3}, "the model does not run without data"),
        (
            {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50},
            "cannot tell the layers apart",
        ),
    ],
)
def test_models_that_cannot_be_sketched_are_refused(config: dict[str, Any], message: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=message):
        sketch_config(config, 4, 3)
    with pytest.raises(ValueError, match="0 prompt and 3 new tokens"):
        sketch_config(config, 0, 3)


@pytest.fixture(scope="module")
def profile_of_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model("llama", **FAMILIES["llama"])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    past = None
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profiler:
        for index in range(4):
            ids = torch.zeros(1, 1 if index else 9, dtype=torch.long)
            past = model(ids, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values
    path = tmp_path_factory.mktemp("profile") / "llama.json"
    profiler.export_chrome_trace(str(path))
    return path


def test_a_profile_becomes_a_trace_with_times(profile_of_llama: Path, tmp_path: Path) -> None:
    imported = import_kineto(profile_of_llama, tmp_path / "llama.parquet", kv_heads=2)
    trace = open_trace(tmp_path / "llama.parquet")
    assert [step.macs for step in trace.steps()] == reference_macs("llama", 9, 4)
    assert (imported.prompt_tokens, imported.passes, trace.header.model.kv_heads) == (9, 4, 2)
    assert trace.header.model.name == "llama"
    rows = trace.table().to_pylist()
    assert all(row["time_ns"] > 0 for row in rows if row["op"] in ("matmul", "context"))
    assert all(row["time_ns"] is None for row in rows if row["op"] in ("score", "softmax", "append"))
    assert {"mul", "rsqrt", "pow", "mean"} <= imported.unknown.keys()
    assert len(list(unknown_lines(imported))) == len(imported.unknown)


def event(name: str, start: float, length: float, dims: list[Any], external: int, category: str = "cpu_op") -> Any:
    args = {"Input Dims": dims, "Input type": ["c10::BFloat16"] * len(dims), "External id": external}
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": 1, "args": args}


def synthetic(path: Path) -> Path:
    """One pass of one layer on a GPU: the linear calls launch kernels through an inner call."""
    calls = [
        event("aten::embedding", 0, 1, [[50, 8], [1, 3]], 1),
        event("aten::linear", 2, 4, [[1, 3, 8], [24, 8], []], 2),
        event("aten::mm", 3, 1, [[3, 8], [8, 24]], 3),
        event("aten::scaled_dot_product_attention", 7, 1, [[1, 2, 3, 4]] * 3, 4),
        event("aten::linear", 9, 1, [[1, 3, 8], [8, 8], []], 5),
        event("aten::mystery", 10, 1, [[1, 3, 8]], 6),
        event("aten::linear", 12, 1, [[1, 1, 8], [50, 8], []], 7),
    ]
    kernels = [event("k", 20 + i, 2 + i, [], external, "kernel") for i, external in enumerate((1, 3, 4, 5, 6, 7))]
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": calls + kernels}).encode()))
    return path


def test_on_a_gpu_times_are_those_of_the_kernels(tmp_path: Path) -> None:
    imported = import_kineto(synthetic(tmp_path / "gpu.json.gz"), tmp_path / "gpu.parquet")
    trace = open_trace(tmp_path / "gpu.parquet")
    times = {row["name"]: row["time_ns"] for row in trace.table().to_pylist() if row["time_ns"] is not None}
    expected = {"wte.0": 2000, "matmul.0": 3000, "attn.context": 4000, "matmul.1": 5000, "lm_head": 7000}
    assert times == expected
    assert imported.unknown == {"mystery": (1, 6000)}
    assert (trace.header.device, trace.header.weights, trace.header.kv) == ("GPU", "bf16", "bf16")
    layers = [(block.first, [o.name for o in block.operations]) for block in next(trace.steps()).blocks]
    attention = ["attn.kv", "attn.score", "attn.softmax", "attn.context"]
    assert layers == [(-1, ["wte.0"]), (0, ["matmul.0", *attention, "matmul.1"]), (-1, ["lm_head"])]


def test_files_that_are_no_profiles_are_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "profile.json", tmp_path / "out.parquet"
    no_shapes = {"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1, "args": {}}]}
    no_decoder = {"traceEvents": [event("aten::mm", 0, 1, [[2, 2], [2, 2]], 1)]}
    for content, message in (
        ("{", "no torch profile"),
        ("[]", "no torch profile"),
        (json.dumps(no_shapes), "no shapes; record it with profile"),
        (json.dumps(no_decoder), "no attention among its 1 calls"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            import_kineto(path, out)
    with pytest.raises(ValueError, match="cannot read the profile"):
        import_kineto(tmp_path / "none.json", out)
    assert not out.exists()


def test_uneven_layers_are_refused() -> None:
    attention = Seen("scaled_dot_product_attention", ((1, 2, 3, 4),) * 3)
    linear = Seen("linear", ((1, 3, 8), (8, 8)))
    table = Seen("embedding", ((50, 8), (1, 3)))
    calls = [table, linear, attention, linear, attention, linear, linear, attention, linear]
    with pytest.raises(ValueError, match="cannot tell the layers apart: 3 attentions"):
        list(passes(calls, Reader()))
