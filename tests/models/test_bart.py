"""BART and mBART against transformers, on tiny random checkpoints: logits, cache, beams, sketch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearbank.models.execution import Pass
from nearbank.models.generate import generate, steps
from nearbank.models.load import load_model
from nearbank.models.record import record
from nearbank.models.search import Search
from nearbank.models.sketch import describe, sketch
from nearbank.trace import open_trace

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"d_model": 64, "vocab_size": 97, "max_position_embeddings": 64, "decoder_start_token_id": 2}
SIZES |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96}
SIZES |= {"decoder_layers": 3, "decoder_attention_heads": 8, "decoder_ffn_dim": 80}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("bart", SIZES),
    "bart, scaled, relu": ("bart", {**SIZES, "scale_embedding": True, "activation_function": "relu"}),
    "mbart": ("mbart", {**SIZES, "scale_embedding": True}),
}
SOURCE, TARGET = ([int(x) for x in np.random.default_rng(seed).integers(3, 97, 20)] for seed in (3, 4))


@lru_cache
def reference(case: str) -> Any:
    kind, options = CASES[case]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() > 1
            parameter.normal_(0, 0.2) if matrix else parameter.add_(torch.randn_like(parameter) * 0.1)
        model.final_logits_bias.normal_(0, 0.3)
        model.final_logits_bias[0, 2] += 3  # so that some outputs end early
    return model


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("checkpoint")
    reference(request.param).save_pretrained(directory, max_shard_size="60KB")
    return reference(request.param), directory


every_case = pytest.mark.parametrize("checkpoint", CASES, indirect=True)
bart_only = pytest.mark.parametrize("checkpoint", ["bart"], indirect=True)


@every_case
def test_logits_equal_transformers_at_once_and_token_by_token(checkpoint: tuple[Any, Path]) -> None:
    model, directory = checkpoint
    with torch.no_grad():
        output = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET]))
    expected = output.logits[0].numpy()
    for backend in ("numpy", "numba"):
        ours = load_model(directory, backend, kv="fp32")
        np.testing.assert_allclose(ours.logits(TARGET, SOURCE), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    cache, sources = ours.cache(len(TARGET)), ours.read([np.array(SOURCE)])
    runs = (Pass(np.array([token]), [1], [cache], sources=sources) for token in TARGET)  # each reads the cache's length
    cached = np.concatenate([ours.network.forward(run) for run in runs])
    np.testing.assert_allclose(cached, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


SETTINGS: tuple[tuple[int, dict[str, Any], dict[str, Any]], ...] = (
    (1, {}, {}),
    (2, {"length_penalty": 2.0, "early_stopping": True}, {"length_penalty": 2.0, "early_stopping": True}),
    (5, {"length_penalty": -1.0, "early_stopping": "never"}, {"length_penalty": -1.0, "early_stopping": "never"}),
    (4, {"no_repeat_ngram_size": 2, "min_length": 9}, {"no_repeat_ngram": 2, "min_length": 9}),
    (3, {"forced_bos_token_id": 7, "eos_token_id": [2, 5]}, {"forced_first": 7, "ends": (2, 5)}),
)


@every_case
def test_outputs_equal_transformers(checkpoint: tuple[Any, Path]) -> None:
    model, directory = checkpoint
    ours = load_model(directory, kv="fp32")
    for beams, options, same in SETTINGS:
        with torch.no_grad():
            found = model.generate(torch.tensor([SOURCE]), num_beams=beams, max_new_tokens=16, **options)
        assert ours.search is not None
        search = Search(**{**vars(ours.search), **same, "beams": beams})
        assert list(generate(ours, SOURCE, 16, search=search).tokens) == found[0, 1:].tolist()


def endless(beams: int) -> Search:
    return Search(beams=beams, start=2)


@every_case
@pytest.mark.parametrize("beams", [1, 3])
def test_a_sketch_equals_the_record(checkpoint: tuple[Any, Path], beams: int, tmp_path: Path) -> None:
    _, directory = checkpoint
    model = load_model(directory, kv="int8", weights="int4")
    record(model, SOURCE, 6, tmp_path / "run.parquet", search=endless(beams))
    trace = open_trace(tmp_path / "run.parquet")
    sketched = sketch(model.shape, 20, 6, weights="int4", kv="int8", head_inputs="fp32", beams=beams)
    forks = 0
    for ours, theirs in zip(trace.steps(), sketched, strict=True):
        rows = list(ours.rows())
        forks += sum(o.op == "fork" for _, o in rows)
        assert [row for row in rows if row[1].op != "fork"] == list(theirs.rows())
    assert (forks > 0) == (beams > 1)
    header = trace.header
    assert (header.source_tokens, header.prompt_tokens, header.beams) == (20, 1, beams)
    assert header.model == describe(model.shape)
    assert (header.model.layers, header.model.encoder_layers) == (5, 2)
    layers = {matrix.name: matrix.layers for matrix in header.model.matrices}
    assert (layers["encoder.attn.q"], layers["cross.k"], layers["lm_head"]) == ((0, 1), (2, 3, 4), None)


@bart_only
def test_beams_share_the_source_and_batches_are_independent(checkpoint: tuple[Any, Path]) -> None:
    model = load_model(checkpoint[1], kv="int4-past", weights="ternary")
    sources = [np.array(SOURCE), np.array(SOURCE[:7])]
    together = [result.tokens for result in steps(model, sources, 6, search=endless(1))]
    for s, source in enumerate(sources):
        assert [tokens[s] for tokens in together] == list(generate(model, list(source), 6, search=endless(1)).tokens)
    rows = [o for _, o in list(sketch(model.shape, 20, 3, batch=2, beams=2))[2].rows() if o.op == "context"]
    cross = {o.sequence: (o.holder, o.shared) for o in rows if o.name == "cross.context"}
    assert cross == {0: (None, None), 1: (0, 20), 2: (None, None), 3: (2, 20)}


def test_a_replay_of_an_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    from nearbank.replay import replay
    from nearbank.workload import sketch_workload, trace_workload, write_sketch

    path = tmp_path / "bart.parquet"
    write_sketch(sketch_workload("bart-base", 30, 4), path, lambda done: None)
    load = trace_workload(path)
    assert (load.prompt_tokens, load.source_tokens, load.max_context) == (1, 30, 4)
    with pytest.raises(ValueError, match="bart-base has an encoder of 6 layers; this mapping places decoders only"):
        replay(load, "pim-gpt")


@bart_only
def test_impossible_requests_are_refused(checkpoint: tuple[Any, Path]) -> None:
    from nearbank.models.sampling import Sampling

    model = load_model(checkpoint[1], kv="fp32")
    for search, message in (
        (Search(beams=60, start=2), "60 beams; .* has 97 tokens to choose among"),
        (Search(start=97), "token 97 of the generation settings; the model has 0 to 96"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, SOURCE, 4, search=search)
    with pytest.raises(ValueError, match="beams are searched without"):
        generate(model, SOURCE, 4, Sampling(temperature=1.0), search=endless(2))
    with pytest.raises(ValueError, match="a source is for encoder-decoders"):
        model.logits(TARGET)
    with pytest.raises(ValueError, match="ask for at most 64 tokens"):
        generate(model, SOURCE, 65)
    with pytest.raises(ValueError, match="beams is 0"):
        Search(beams=0)
