"""Hugging Face architectures against transformers, on tiny random checkpoints that transformers wrote."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearbank.models.generate import generate, steps
from nearbank.models.load import load_model
from nearbank.models.sketch import sketch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 64}
OPT = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
OPT |= {"max_position_embeddings": 64, "word_embed_proj_dim": 64}
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
YARN_TUNED = {**YARN, "rope_theta": 500.0, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 2, "truncate": False}
LONGROPE = {"type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)]}
LONGROPE |= {"long_factor": [1.0 + 0.9 * i for i in range(8)]}
PHI3 = {**LLAMA, "pad_token_id": 0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "opt": ("opt", OPT),
    "opt, norms after, projected": ("opt", {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "llama": ("llama", LLAMA),
    "llama, tied, biased": ("llama", {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, llama3 rope": ("llama", {**LLAMA, "rope_parameters": LLAMA3_ROPE}),
    "llama, linear rope": ("llama", {**LLAMA, "rope_parameters": LINEAR_ROPE}),
    "llama, yarn": ("llama", {**LLAMA, "rope_parameters": {**YARN_TUNED, "rope_type": "yarn"}}),
    "mistral, window": ("mistral", {**LLAMA, "head_dim": 16, "sliding_window": 8}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2, some windows": (
        "qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen2, yarn": ("qwen2", {**LLAMA, "rope_scaling": YARN, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 32}),
    "gemma": ("gemma", {**LLAMA, "head_dim": 32}),
    "gemma2": ("gemma2", {**LLAMA, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 20}),
    "phi3": ("phi3", PHI3),
    "phi3, partly rotated": (
        "phi3",
        {**PHI3, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "phi3, longrope, short": ("phi3", {**PHI3, "rope_scaling": LONGROPE, "original_max_position_embeddings": 32}),
    "phi3, longrope, long": ("phi3", {**PHI3, "rope_scaling": LONGROPE, "original_max_position_embeddings": 8}),
    "bitnet": ("bitnet", LLAMA),
}


@lru_cache
def reference(case: str) -> Any:
    kind, options = CASES[case]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so large that a mistake anywhere shows in the logits
            matrix = parameter.dim() > 1
            parameter.normal_(0, 0.2) if matrix else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("checkpoint")
    model = reference(request.param)
    model.save_pretrained(directory, max_shard_size="60KB")
    return model, directory


every_case = pytest.mark.parametrize("checkpoint", CASES, indirect=True)
TOKENS = [int(x) for x in np.random.default_rng(3).integers(1, 97, 30)]


@every_case
def test_logits_equal_transformers(checkpoint: tuple[Any, Path]) -> None:
    model, directory = checkpoint
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    for backend in ("numpy", "numba"):
        got = load_model(directory, backend, kv="fp32").logits(TOKENS)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@every_case
def test_greedy_generation_with_the_cache_is_token_identical(checkpoint: tuple[Any, Path]) -> None:
    model, directory = checkpoint
    prompt = torch.tensor([TOKENS[:10]])
    with torch.no_grad():
        options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, 10:].tolist()
    assert list(generate(load_model(directory, kv="fp32"), TOKENS[:10], 20).tokens) == expected


@pytest.mark.parametrize("checkpoint", ["phi3, longrope, long"], indirect=True)
def test_a_generation_that_outgrows_the_original_context_has_one_set_of_frequencies(
    checkpoint: tuple[Any, Path],
) -> None:
    model = load_model(checkpoint[1], kv="fp32")
    prompt = TOKENS[:5]
    made = generate(model, prompt, 12).tokens
    best = model.logits([*prompt, *made]).argmax(axis=1)
    assert tuple(best[len(prompt) - 1 : -1]) == made


@every_case
def test_a_sketch_from_the_config_equals_the_record(checkpoint: tuple[Any, Path]) -> None:
    _, directory = checkpoint
    model = load_model(directory, kv="int8", weights="int4", inputs="fp32")
    prompts = [np.array(TOKENS[:10])] * 2
    formats = {"weights": "int4", "inputs": "fp32", "kv": "int8", "head_inputs": "fp32", "batch": 2}
    sketched = sketch(model.shape, 10, 5, **formats)  # type: ignore[arg-type]
    for step, result in zip(sketched, steps(model, prompts, 5, record=True), strict=True):
        assert list(step.rows()) == [(layer, operation) for layer, operation, _ in result.rows]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    reference("llama").save_pretrained(tmp_path)
    return tmp_path


def change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mamba"}, "model type 'mamba' has no architecture here; known: gpt2, opt, llama"),
        ({"hidden_size": "wide"}, "'hidden_size' is 'wide'; expected a whole number of at least 1"),
        ({"num_hidden_layers": 4}, "model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, "9 tensors that this architecture does not have: model.layers.2.input_layernorm"),
        ({"intermediate_size": 100}, r"mlp.gate_proj.weight is \[96, 64\]; expected \[100, 64\]"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported; known: gelu_new"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope type 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' needs 'short_factor'"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1]}}, r"'short_factor' has shape \[1\]"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope type 'linear' needs 'factor'"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 KV heads"),
    ],
)
def test_a_wrong_config_is_refused(llama: Path, values: dict[str, Any], message: str) -> None:
    change(llama, **values)
    with pytest.raises(ValueError, match=message):
        load_model(llama)


def test_damaged_files_are_refused(llama: Path) -> None:
    whole = (llama / "model.safetensors").read_bytes()
    for damaged, message in (
        (whole[:-100], "does not lie within it"),
        (whole[:5], "truncated"),
        (b"\x10" + bytes(7) + b"not json at all!", "header is not JSON"),
        (b"", "truncated"),
    ):
        (llama / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            load_model(llama)
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="is a pickle, which can run code and is never loaded"):
        load_model(llama)
    (llama / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        load_model(llama)
    (llama / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        load_model(llama)


def test_nan_weights_and_impossible_formats_are_refused(llama: Path) -> None:
    for options, message in (
        ({"weights": "int5"}, "unknown format 'int5'"),
        ({"weights": "bf16", "inputs": "int8"}, "int8 activations need integer weights"),
        ({"weights": "int4", "inputs": "int2"}, "activations are int8, int4 or fp32"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(llama, **options)  # type: ignore[arg-type]
    model = reference("llama")
    broken = {name: value.clone() for name, value in model.state_dict().items()}
    broken["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    model.save_pretrained(llama, state_dict=broken)
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight holds NaN"):
        load_model(llama)


def test_bf16_and_fp16_checkpoints_load_as_their_values(llama: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        rounded = {name: value.to(dtype) for name, value in reference("llama").state_dict().items()}
        reference("llama").save_pretrained(llama, state_dict=rounded)
        exact = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        with torch.no_grad():
            expected = exact(torch.tensor([TOKENS])).logits[0].numpy()
        got = load_model(llama, kv="fp32").logits(TOKENS)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_directory_with_a_tokenizer_takes_text(llama: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {character: number for number, character in enumerate("abcdefgh ")}
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    words.save(str(llama / "tokenizer.json"))
    model = load_model(llama, kv="fp32")
    assert generate(model, "bad cab", 3).prompt_tokens == 7
    change(llama, vocab_size=5)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \[97, 64\]; expected \[5, 64\]"):
        load_model(llama)
    (llama / "tokenizer.json").write_text("{}")
    change(llama, vocab_size=97)
    with pytest.raises(ValueError, match="not a readable tokenizer"):
        load_model(llama)
