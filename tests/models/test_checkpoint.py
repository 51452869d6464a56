"""Checkpoints: what is written comes back, what is damaged is refused, the bundled one is as its card says."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.models.checkpoint import (
    HEADER_KEY,
    Checkpoint,
    Origin,
    bundled_names,
    bundled_path,
    load_checkpoint,
    save_checkpoint,
    stored_codes,
)
from nearbank.models.config import CONFIGS, ModelConfig, config_named
from nearbank.models.shape import gpt_shape

VOCABULARY = "\n abcdé"
ORIGIN = Origin(1.5, 1.4, 10, 20, 2, 7, "0" * 64, "2026-01-02", "2.13.0", "cpu")


def micro_checkpoint(seed: int = 0) -> Checkpoint:
    """One layer, width 6: rows of 6 and 24 values, so the last byte of a row is half used."""
    random = np.random.default_rng(seed)
    shape = gpt_shape("micro", layers=1, width=6, heads=2, vocabulary=len(VOCABULARY), context=5)
    config = ModelConfig(shape, True, "ternary", "int8", "paper")
    tensors: dict[str, np.ndarray] = {}
    for matrix in config.block_matrices(0):
        codes = random.integers(0, 3, (matrix.outputs, matrix.inputs), dtype=np.uint8)
        tensors[f"{matrix.name}.codes"] = FORMATS["ternary"].pack(codes)
        tensors[f"{matrix.name}.scale"] = random.uniform(0.1, 1, matrix.outputs).astype(np.float32)
    for name, dims in config.vector_shapes().items():
        tensors[name] = random.normal(size=dims).astype(np.float16 if len(dims) == 2 else np.float32)
    return Checkpoint(config, VOCABULARY, ORIGIN, tensors)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "micro.safetensors"
    save_checkpoint(path, micro_checkpoint())
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Write the file again with a changed header or changed tensors, checking nothing."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][HEADER_KEY])
    tensors = load(raw)
    change(header, tensors)
    path.write_bytes(save(tensors, metadata={HEADER_KEY: json.dumps(header)}))


def test_what_is_saved_comes_back(saved: Path) -> None:
    written, read = micro_checkpoint(), load_checkpoint(saved)
    assert replace(read, tensors={}) == replace(written, tensors={})
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert np.array_equal(read.tensors[name], tensor)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_codes_come_back_at_their_places(saved: Path) -> None:
    """Value k of a row lies in byte k // 4 at bits 2·(k % 4), the code is the value + 1."""
    checkpoint = load_checkpoint(saved)
    matrix = checkpoint.config.block_matrices(0)[0]
    packed = checkpoint.tensors[f"{matrix.name}.codes"]
    assert packed.shape == (18, 2)
    codes = stored_codes(checkpoint.config, checkpoint.tensors, matrix).codes
    for k in range(matrix.inputs):
        assert np.array_equal(codes[:, k], packed[:, k // 4] >> 2 * (k % 4) & 3)


def test_a_checkpoint_with_its_own_head(tmp_path: Path) -> None:
    tied = micro_checkpoint()
    head = np.ones((len(VOCABULARY), 6), np.float16)
    untied = Checkpoint(replace(tied.config, tied_head=False), VOCABULARY, ORIGIN, {**tied.tensors, "head": head})
    save_checkpoint(tmp_path / "untied.safetensors", untied)
    assert np.array_equal(load_checkpoint(tmp_path / "untied.safetensors").tensors["head"], head)


def _drop(_header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    del tensors["ln_f.bias"]


def _add(_header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["h.9.extra"] = np.zeros(1, np.float32)


def _reshape(_header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["wte"] = np.zeros((3, 6), np.float16)


def _retype(_header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["ln_f.bias"] = tensors["ln_f.bias"].astype(np.float64)


def _code_3(_header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["h.0.mlp.fc2.codes"][0, 0] |= 3


def _nan_scale(_header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["h.0.attn.qkv.scale"][4] = np.nan


def _set(**values: Any) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda header, _tensors: header.update(values)


def _set_origin(**values: Any) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda header, _tensors: header["origin"].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop, "lacks 1 tensors: ln_f.bias"),
        (_add, "has unexpected 1 tensors: h.9.extra"),
        (_reshape, r"'wte' is float16\[3, 6\]; expected float16\[7, 6\]"),
        (_retype, r"'ln_f.bias' is float64\[6\]; expected float32"),
        (_code_3, "'h.0.mlp.fc2.codes'.*expected 0 to 2"),
        (_nan_scale, "'h.0.attn.qkv.scale' holds NaN"),
        (_set(version=3), "version 3; this nearbank reads versions 1 to 2"),
        (_set(schema="other"), "without a nearbank-checkpoint header"),
        (_set(layers=True), "'layers' is True; expected a value of type int"),
        (_set(layers=2), "lacks 12 tensors"),
        (_set(layers=0), "layers is 0"),
        (_set(heads=4), "not a multiple of its 4 heads"),
        (_set(width=-6), "expected"),
        (_set(variant="mean"), "known: paper, reference"),
        (_set(weights="int4"), "'weights' is 'int4'; expected 'ternary' or 'binary'"),
        (_set(origin={}), "'origin.val_loss_nats' is None"),
        (_set_origin(val_loss_nats=float("nan")), "expected finite"),
    ],
)
def test_a_damaged_file_is_refused(
    saved: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None], words: str
) -> None:
    rewrite(saved, change)
    with pytest.raises(NearbankError, match=words) as caught:
        load_checkpoint(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(saved: Path) -> None:
    raw = saved.read_bytes()
    for length in (0, 5, 40, len(raw) // 2, len(raw) - 1):
        saved.write_bytes(raw[:length])
        with pytest.raises(NearbankError, match="truncated, or not a safetensors file"):
            load_checkpoint(saved)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"PK\x03\x04 this is no checkpoint at all")
    with pytest.raises(NearbankError, match="not a safetensors file"):
        load_checkpoint(foreign)
    foreign.write_bytes(save({"a": np.zeros(3)}))
    with pytest.raises(NearbankError, match="without a nearbank-checkpoint header"):
        load_checkpoint(foreign)


def test_a_missing_file_names_what_there_is(tmp_path: Path) -> None:
    for source in (tmp_path / "none.safetensors", tmp_path, "shakespear"):
        with pytest.raises(NearbankError, match="no such checkpoint") as caught:
            load_checkpoint(source)
        assert all(name in str(caught.value) for name in bundled_names())


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NearbankError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "missing" / "x.safetensors", micro_checkpoint())


def test_saving_checks_too(tmp_path: Path) -> None:
    broken = micro_checkpoint()
    del broken.tensors["wpe"]
    with pytest.raises(NearbankError, match="lacks 1 tensors: wpe"):
        save_checkpoint(tmp_path / "x.safetensors", broken)
    assert not list(tmp_path.iterdir())


def test_reading_needs_no_torch() -> None:
    code = "import sys, nearbank.models.checkpoint, nearbank.models.training; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the bundled checkpoint


def test_the_bundled_checkpoint_keeps_its_promises() -> None:
    """At most 4 MB, losses within the bars for a CPU-trained model, every ternary value in use."""
    checkpoint = load_checkpoint()
    assert bundled_path().stat().st_size <= 4_000_000
    assert checkpoint.origin.val_loss_nats <= 1.80
    assert checkpoint.origin.val_loss_nats - checkpoint.origin.val_loss_twin_nats <= 0.06
    for layer in range(checkpoint.config.shape.layers):
        for matrix in checkpoint.config.block_matrices(layer):
            codes = stored_codes(checkpoint.config, checkpoint.tensors, matrix).codes
            assert np.bincount(codes.ravel(), minlength=3).min() > 0.1 * codes.size


def test_the_card_states_the_losses() -> None:
    origin = load_checkpoint().origin
    card = bundled_path().with_suffix(".md").read_text(encoding="utf-8")
    assert f"{origin.val_loss_nats:.4f}" in card
    assert f"{origin.val_loss_twin_nats:.4f}" in card
    assert origin.data_sha256 in card


# --- configurations

NON_EMBEDDING_MILLIONS = {
    "gpt2-small": 85, "gpt2-medium": 302, "gpt2-large": 708, "gpt2-xl": 1475,
    "gpt3-small": 85, "gpt3-medium": 302, "gpt3-large": 679, "gpt3-xl": 1208,
}  # fmt: skip


def test_parameters_are_those_of_the_literature() -> None:
    counted = {name: round(config.block_parameters() / 1e6) for name, config in CONFIGS.items()}
    assert counted == NON_EMBEDDING_MILLIONS


def test_counts_by_hand() -> None:
    """Layers 1, width 6, hidden 24: 18·6 + 6·6 + 24·6 + 6·24 block values; 7 and 5 embeddings; 3 norms."""
    config = micro_checkpoint().config
    assert config.block_parameters() == 432
    assert config.parameters() == 432 + 12 * 6 + 3 * 2 * 6
    assert config.macs_per_token(5) == 432 + 7 * 6 + 2 * 5 * 6
    assert [(m.name, m.outputs, m.inputs) for m in config.matrix_shapes()] == [
        ("h.0.attn.qkv", 18, 6),
        ("h.0.attn.proj", 6, 6),
        ("h.0.mlp.fc1", 24, 6),
        ("h.0.mlp.fc2", 6, 24),
        ("head", 7, 6),
    ]


def test_stored_values_are_counted_by_parameters() -> None:
    checkpoint = micro_checkpoint()
    vectors = sum(tensor.size for name, tensor in checkpoint.tensors.items() if not name.endswith(("codes", "scale")))
    assert checkpoint.config.parameters() == checkpoint.config.block_parameters() + vectors


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(NearbankError, match=r"unknown model 'gpt4'; known: gpt2-small.*gpt3-xl"):
        config_named("gpt4")
    with pytest.raises(NearbankError, match="attended context is 0"):
        config_named("gpt3-xl").macs_per_token(0)
