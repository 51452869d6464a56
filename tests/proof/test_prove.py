"""A model's text through its mapped programs: the bits of the same arithmetic without a memory, the kernels' tokens."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from nearbank.cli.app import run
from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.kernels.reference.quantise import quantise_rows, quantise_tokens
from nearbank.mapping import MappingOptions, Plan, plan
from nearbank.mapping.asic_arithmetic import ARITHMETICS, EXACT, PIM_GPT
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.decoder import MappedDecoder
from nearbank.models import Model, load_model
from nearbank.models.gpt import load_gpt
from nearbank.models.shape import gpt_shape
from nearbank.models.sketch import sketch
from nearbank.models.tensors import Precision, Tensors
from nearbank.proof import approximation_error, mapped_weights, prove, rounded_model
from nearbank.proof.bridge import stored, values_of
from nearbank.proof.prove import head_format, planned
from nearbank.proof.twin import BankSums
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Mark, Start, unrolled
from nearbank.sim.variant import what_if

PROMPT = [3, 11, 7, 0, 48, 2, 9]


def small(weights: str, kv: str, width: int = 64, bias: bool = False) -> Model:
    """Two layers of random weights."""
    shape = gpt_shape("small", 2, width, 4, 50, 32)
    rng = np.random.default_rng(7)
    hidden = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width)}
    sizes = {f"h.{i}.{n}": s for i in range(2) for n, s in {**hidden, "mlp.fc2": (width, 4 * width)}.items()}
    sizes |= {"wte": (50, width), "wpe": (32, width)}
    tensors = {f"{name}.weight": rng.normal(0, size[1] ** -0.5, size) for name, size in sizes.items()}
    tensors |= {f"{name}.bias": rng.normal(0, 0.1, size[0]) for name, size in sizes.items() if bias}
    for norm in ("ln_f", *(f"h.{i}.ln_{j}" for i in range(2) for j in (1, 2))):
        tensors |= {f"{norm}.weight": rng.normal(1, 0.1, width), f"{norm}.bias": rng.normal(0, 0.1, width)}
    floats = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    precision = Precision(weights)
    network = load_gpt(shape, Tensors(floats, "numpy", precision), bias)
    return Model(network, None, weights, precision.activations, kv, "numpy")


@pytest.mark.parametrize(
    ("machine", "weights", "kv", "width", "asic"),
    [
        ("pim-gpt", "bf16", "bf16", 64, "exact"),
        ("pim-gpt", "ternary", "int4", 64, "pim-gpt"),
        ("pim-gpt-ternary", "bf16", "int8", 272, "exact"),  # fc2's 1,088 inputs are two chunks
        ("pim-gpt-ternary", "int8", "int8", 64, "pim-gpt"),
        ("pim-gpt-ternary", "ternary-tensor", "bf16", 64, "exact"),
        ("pim-gpt-ternary", "binary", "int4", 64, "exact"),
        ("pim-gpt-ternary", "int4-g64", "int2", 64, "exact"),
    ],
)
def test_logits_have_the_bits_of_the_same_arithmetic_without_a_memory(
    machine: str, weights: str, kv: str, width: int, asic: str
) -> None:
    model = small(weights, kv, width, bias=weights != "int8")
    proof = prove(model, machine, PROMPT, 4, ARITHMETICS[asic])
    assert proof.logits_bit_equal
    if (machine, asic) == ("pim-gpt-ternary", "exact"):
        assert proof.tokens_equal
        assert proof.against_kernels.max_abs < 1e-5


@pytest.mark.parametrize(("weights", "kv"), [("ternary", "int4"), ("bf16", "bf16")])
def test_the_bundled_model_writes_what_the_kernels_write(weights: str, kv: str) -> None:
    model = rounded_model(load_model(backend="numpy", kv=kv), weights)
    proof = prove(model, "pim-gpt-ternary", "I ", 8)
    assert proof.tokens_equal
    assert proof.logits_bit_equal
    assert len(proof.text) == 8
    assert proof.commands["MACAB"] > 5_000


def test_commands_one_by_one_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("ternary", "int4")
    fast = prove(model, "pim-gpt-ternary", PROMPT, 2)
    monkeypatch.setattr("nearbank.mapping.functional._Run._macs", lambda *_: False)
    slow = prove(model, "pim-gpt-ternary", PROMPT, 2)
    assert slow.commands == fast.commands
    assert slow.logits_bit_equal
    assert replace(slow, seconds=0) == replace(fast, seconds=0)


def test_a_flipped_bit_in_a_bank_is_seen() -> None:
    model = small("ternary", "int4")
    placed = planned(model, "pim-gpt-ternary", 8)
    step = next(sketch(model.shape, 2, 1, weights="ternary", kv="int4"))
    good, bad = (MappedDecoder(placed, mapped_weights(model)) for _ in range(2))
    row = next(m for m in placed.placement.matrices if m.name.endswith("fc1")).region.first_row
    bad.memory.row(row)[0, 0, 0] ^= 1
    assert np.abs(good.run(step, [1, 2]) - bad.run(step, [1, 2])).max() > 1e-4


def test_a_decoder_whose_vectors_share_rows_is_refused() -> None:
    model = small("ternary", "bf16")
    placed = planned(model, "pim-gpt-ternary", 8)
    shared = plan(placed.model, placed.machine, replace(placed.options, choices=Choices(reuse=2)))
    with pytest.raises(NearbankError, match="executed token by token, but the plan lets 2 vectors share rows"):
        MappedDecoder(shared, mapped_weights(model))


def test_scales_in_the_bank_have_the_bits_of_the_twin() -> None:
    proof = prove(small("int4-g128", "bf16"), "pim-gpt-scales", [1, 2, 3], 4)
    assert proof.logits_bit_equal
    assert proof.commands["MACSC"] > 0
    assert "RD" not in proof.commands


@pytest.mark.parametrize(
    ("tokens", "again", "complaint"),
    [
        ([1, 2, 3], False, "step 0 has 2 tokens, but 3 were given"),
        ([1, 50], False, "token 50 is outside the vocabulary of 50"),
        ([1, 2], True, "step 0 begins at position 0, but 2 tokens were executed"),
    ],
)
def test_steps_and_tokens_are_checked(tokens: list[int], again: bool, complaint: str) -> None:
    model = small("ternary", "bf16")
    decoder = MappedDecoder(planned(model, "pim-gpt-ternary", 8), mapped_weights(model))
    step = next(sketch(model.shape, 2, 1, weights="ternary"))
    if again:
        decoder.run(step, [1, 2])
    with pytest.raises(NearbankError, match=complaint):
        decoder.run(step, tokens)


@pytest.mark.parametrize("weights", ["int8", "ternary", "ternary-tensor", "binary", "int4-g64"])
def test_integer_products_in_the_order_of_the_banks_have_the_bits_of_the_kernels(weights: str) -> None:
    model = small(weights, "bf16")
    sums = BankSums(planned(model, "pim-gpt-ternary", 8))
    for linear in (model.network.blocks[0].qkv, model.network.blocks[1].fc2):  # type: ignore[attr-defined]
        x = np.random.default_rng(1).normal(size=(5, linear.matrix.shape[1])).astype(np.float32)
        assert (sums.matrix(linear, x) == linear(x)).all()


@pytest.mark.parametrize("weights", ["bf16", "int8", "ternary", "ternary-tensor", "binary", "int4-g64"])
def test_codes_taken_from_a_prepared_matrix_stand_for_its_values(weights: str) -> None:
    linear = small(weights, "bf16").network.blocks[0].fc2  # type: ignore[attr-defined]
    assert (format_named(weights).dequantise(stored(linear)) == values_of(linear)).all()


def test_the_exact_asic_rounds_to_integers_as_the_kernels_do() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 64)).astype(np.float32)
    x[3], x[4] = 1.5, 0
    codes, scales = EXACT.quantise(x)
    expected = quantise_rows(x)
    assert (codes == expected[0]).all() and (scales == expected[1]).all()
    for fmt in ("int8", "int4", "int2"):
        top = format_named(fmt).for_cache().high
        kept, _, _ = quantise_tokens(x, top)
        rounded = EXACT.round_token(format_named(fmt), x)
        assert (rounded.codes.astype(np.int16) + (128 if fmt == "int8" else 0) == kept).all()
        assert np.abs(rounded.values - x).max() <= rounded.scales.max() / 2 * (1 + 1e-4)


def test_published_approximations_change_logits_little_and_choices_rarely() -> None:
    found = approximation_error(load_model(backend="numpy"), "pim-gpt-ternary", "ROMEO:\n", 40)
    assert 1e-5 < found.against_exact.max_abs < 0.5
    assert found.against_exact.mean_abs < 0.05
    assert found.against_exact.same_argmax >= 37


def test_approximations_stay_within_their_bounds_over_the_whole_range() -> None:
    x = np.linspace(-80, 80, 20001).astype(np.float32)
    assert np.abs(PIM_GPT.exp(x) / np.exp(x.astype(np.float64)) - 1).max() < 2**-9 / 4
    y = np.geomspace(1e-20, 1e20, 20001).astype(np.float32)
    assert np.abs(PIM_GPT.divide(y, y) - 1).max() < 2**-9
    assert np.abs(PIM_GPT.over_root(np.sqrt(y), y) - 1).max() < 2**-9
    assert np.abs(PIM_GPT.gelu(x / 4) - EXACT.gelu(x / 4)).max() < 2e-4


def test_the_command_prints_both_and_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("prove", "--tokens", "2", "--prompt", "A", "--kv", "int8", "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["tokens"] == row["kernel_tokens"] and row["logits_bit_equal"]
    for arguments, complaint in (
        (("--machine", "gddr6"), "lacks MAC units"),
        (("--asic", "cordic"), "unknown ASIC arithmetic 'cordic'; known: exact, pim-gpt"),
        (("--weights", "int5"), "unknown format 'int5'"),
        (("--tokens", "999"), "context of"),
        (("--tokens", "1", "--prompt", "A", "--positions", "999"), "at most the context of 256"),
    ):
        assert run(("prove", *arguments)) == 2
        assert complaint in capsys.readouterr().err


def bits(model: Model, placed: Plan, prompt: int = 3, tokens: int = 3) -> list[np.ndarray]:
    """Logits of a prompt and some tokens through the mapped programs."""
    decoder = MappedDecoder(placed, mapped_weights(model))
    steps = sketch(model.shape, prompt, tokens, weights=model.weights, kv=model.kv)
    return [decoder.run(step, PROMPT[: prompt if i == 0 else 1]) for i, step in enumerate(steps)]


def test_a_slow_asic_has_the_same_bits() -> None:
    """Its schedule computes v beside the first softmax and scores head after head; the sums are the same."""
    model, fast = small("bf16", "bf16", width=256), load_machine("pim-gpt")
    slow = what_if(fast, "slow", {"asic.clock": "5 MHz"})
    options = MappingOptions(weights="bf16", kv="bf16", max_context=16, choices=Choices(team=1))
    placed = [plan(model.description(), machine, options) for machine in (fast, slow)]
    assert [p.placement.cache.slow_softmax for p in placed] == [False, True]
    assert [labels_after_softmax(p, model) for p in placed] == [set(), {"qkv"}]
    quick, late = (bits(model, p) for p in placed)
    assert all((a == b).all() for a, b in zip(quick, late, strict=True))


def labels_after_softmax(placed: Plan, model: Model) -> set[str]:
    """Products that a layer returns to once a softmax has begun."""
    step = list(sketch(model.shape, 3, 2, weights="bf16", kv="bf16"))[1]
    marks = [node.label for node, _ in unrolled(placed.lower(step).streams[0].body) if isinstance(node, Mark)]
    begun = [node for node, _ in unrolled(placed.lower(step).streams[0].body) if isinstance(node, Mark | Start)]
    first = next(i for i, node in enumerate(begun) if isinstance(node, Start) and node.job == "softmax")
    attended = next(i for i, node in enumerate(begun) if isinstance(node, Mark) and node.label == "context")
    assert "qkv" in marks
    return {node.label for node in begun[first:attended] if isinstance(node, Mark)} & {"qkv"}


@pytest.mark.parametrize(("team", "in_place"), [(1, False), (2, False), (1, True), (2, True)])
def test_chosen_mappings_write_the_same_bits(team: int, in_place: bool) -> None:
    """Integer sums are exact, whatever channels share an output, however rows are filled, and whenever K is written."""
    model = small("ternary-tensor", "bf16", width=128)
    chosen = Choices(early_rows=True, pieces=2, padding=10, joined=False, team=team, in_place=in_place)
    for name, choice in {"qkv": MatrixChoice(2), "fc1": MatrixChoice(4, None, True), "fc2": MatrixChoice(8)}.items():
        placed_name = next(m.name for m in model.description().matrices if m.name.endswith(name))
        chosen = chosen.with_matrix(placed_name, choice)
    machine = load_machine("pim-gpt-ternary")
    default = MappingOptions(weights=model.weights, kv=model.kv, max_context=16, head=head_format(model))
    plans = [plan(model.description(), machine, replace(default, choices=c)) for c in (Choices(), chosen)]
    assert plans[0].placement != plans[1].placement
    expected, found = (bits(model, placed) for placed in plans)
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))
