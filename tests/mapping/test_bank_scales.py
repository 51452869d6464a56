"""Scales applied in the banks: products are those of the same arithmetic in NumPy, bit for bit, wherever scales lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mapping.shapes import gpt, steps

from nearbank.errors import NearbankError
from nearbank.formats import Quantised, format_named
from nearbank.mapping.bank_scales import bank_scales, rounded_scales
from nearbank.mapping.choices import Choices, MatrixChoice
from nearbank.mapping.functional import BankMemory, execute
from nearbank.mapping.gemm import run_gemm
from nearbank.mapping.gemv import gemv_program, run_gemv
from nearbank.mapping.loading import load_matrix
from nearbank.mapping.matrix_placement import MatrixPlacement
from nearbank.mapping.placement import place
from nearbank.mapping.plan import MappingOptions, plan
from nearbank.mapping.target import MacLanes, Target, target_of
from nearbank.sim.energy import energy
from nearbank.sim.engine import simulate
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.program import Builder, Command, Index, Program, Stream
from nearbank.sim.variant import what_if
from nearbank.trace import Matrix

SCALES = load_machine("pim-gpt-scales")
TARGET = target_of(SCALES)
FORMATS = ("int4", "int2", "int4-g64", "int2-g256", "int8-g128", "ternary-g128", "binary-g256")


def placed(n: int, k: int, fmt: str, target: Target, dequant: str | None = None) -> MatrixPlacement:
    matrices = (Matrix(name="w", n=n, k=k, per_layer=True),)
    model = gpt("one matrix", 1, 64, 1, vocabulary=64, context=16).model_copy(update={"matrices": matrices})
    options = {"weights": fmt, "head": "bf16", "kv": "bf16", "inputs": None, "max_context": 16}
    return place(model, target, **options, dequant=dequant).matrix("w")  # type: ignore[arg-type]


def expected(matrix: MatrixPlacement, fmt: str, weights: Quantised, x: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Exact integers per group, then float32: times its scale as the bank has it, added up group by group."""
    form, total, first = format_named(fmt), np.zeros(matrix.n, np.float32), 0
    levels = form.levels(weights).astype(np.int64)
    assert weights.scales is not None
    for chunks in matrix.chunks:
        assert chunks.bank
        for _ in range(chunks.count):
            size = form.scaling.group or chunks.width
            chunk = np.zeros(matrix.n, np.float32)
            end = min(first + chunks.width, matrix.k)
            for start in range(first, end, size):
                part = slice(start, min(start + size, end))
                column = start // size if form.scaling.per == "group" else 0
                sums = (levels[:, part] @ x[part].astype(np.int64)).astype(np.float32)
                chunk += sums * rounded_scales(chunks.bank.format, weights.scales)[:, column]
            total += chunk
            first = end
    return total


def check(n: int, k: int, fmt: str, target: Target, seed: int, dequant: str | None = None) -> None:
    rng = np.random.default_rng(seed)
    weights = format_named(fmt).quantise(rng.normal(size=(n, k)).astype(np.float32))
    x = rng.integers(-127, 128, size=k).astype(np.int8)
    matrix = placed(n, k, fmt, target, dequant)
    assert matrix.scaled_in_bank
    found = run_gemv(matrix, target, weights, x)
    assert found.tobytes() == expected(matrix, fmt, weights, x).tobytes()


SHAPES = {"n": st.integers(1, 500), "k": st.integers(1, 2600), "seed": st.integers(0, 9)}


@given(
    fmt=st.sampled_from(FORMATS),
    scales=st.sampled_from(["bf16", "fp16", "fp32"]),
    accumulators=st.integers(1, 9),
    per_step=st.sampled_from([16, 64, 256]),
    buffer=st.sampled_from([1024, 2048, 16384]),
    crossing=st.sampled_from([None, True, False]),
    **SHAPES,
)
@settings(max_examples=20, deadline=None)
def test_groups_of_any_size_on_any_unit_are_scaled_in_the_bank(
    fmt: str, scales: str, accumulators: int, per_step: int, buffer: int, crossing: bool | None, n: int, k: int,
    seed: int,
) -> None:  # fmt: skip
    unit = MacLanes(per_step, integer=True, scales=scales)
    choices = Choices(matrices=(("w", MatrixChoice(crossing=crossing)),))
    target = replace(
        TARGET,
        lanes=(("bf16", MacLanes(16)), *((name, unit) for name in ("int8", "int4", "int2", "ternary", "binary"))),
        accumulators=accumulators,
        buffer_bytes=buffer,
        choices=choices,
    )
    check(n, k, fmt, target, seed)


@given(fmt=st.sampled_from(["int8", "ternary", "binary", "int4-row"]), columns=st.sampled_from([8, 64]), **SHAPES)
@settings(max_examples=12, deadline=None)
def test_scales_per_row_are_applied_in_the_bank_on_request(fmt: str, columns: int, n: int, k: int, seed: int) -> None:
    """Outputs are longer than a short row: a group waits in its accumulator until its last row."""
    check(n, k, fmt, replace(TARGET, columns=columns), seed, "bank")


def test_a_serial_unit_scales_too() -> None:
    serial = MacLanes(64, serial=8, integer=True, scales="bf16")
    check(100, 700, "int4", replace(TARGET, lanes=(("bf16", MacLanes(16)), ("int4", serial))), 3)


@given(fmt=st.sampled_from(["int4", "int2-g256", "int8"]), vectors=st.integers(1, 4), **SHAPES)
@settings(max_examples=10, deadline=None)
def test_weights_used_again_give_single_products(fmt: str, vectors: int, n: int, k: int, seed: int) -> None:
    target = replace(TARGET, choices=Choices(reuse=4))
    rng = np.random.default_rng(seed)
    weights = format_named(fmt).quantise(rng.normal(size=(n, k)).astype(np.float32))
    x = rng.integers(-127, 128, size=(vectors, k)).astype(np.int8)
    matrix = placed(n, k, fmt, target, "bank")
    found, _ = run_gemm(matrix, target, weights, x)
    for row, one in zip(found, x, strict=True):
        assert row.tobytes() == expected(matrix, fmt, weights, one).tobytes()


def test_more_vectors_than_accumulators_are_refused() -> None:
    with pytest.raises(NearbankError, match=r"9 vectors cannot share a row of int4: .* have 8 accumulators"):
        placed(100, 512, "int4", replace(TARGET, choices=Choices(reuse=9)))


def test_a_damaged_scale_changes_its_output_alone() -> None:
    rng = np.random.default_rng(0)
    weights = format_named("int4").quantise(rng.normal(size=(40, 300)).astype(np.float32))
    x = rng.integers(1, 100, size=300).astype(np.int8)
    matrix = placed(40, 300, "int4", TARGET)
    good = run_gemv(matrix, TARGET, weights, x)
    assert weights.scales is not None
    weights.scales[17, 1] *= 2
    assert np.flatnonzero(good != run_gemv(matrix, TARGET, weights, x)).tolist() == [17]


@pytest.mark.parametrize(
    ("fmt", "group", "used", "columns"), [("int4", 2, 60, 3), ("int8-g128", 4, 63, 1), ("int2", 1, 58, 6)]
)
def test_scales_take_what_is_left_of_a_row(fmt: str, group: int, used: int, columns: int) -> None:
    """bf16 and a zero are 3 bytes, ten of which fit a column of 32; without zeros sixteen do."""
    form = format_named(fmt)
    found = bank_scales(form, TARGET.use(form, "int8"), group, TARGET)
    assert (found.used, found.columns) == (used, columns)


def test_one_sum_per_output_leaves_the_bank() -> None:
    matrix = placed(128, 2048, "int4", TARGET)
    program = gemv_program(matrix, TARGET)
    counts = simulate(SCALES, program).command_counts()
    assert counts["MACSC"] == 8 * 16  # groups, in 8 channels
    assert counts["MACAB"] == 8 * 16
    assert counts["RDMAC"] == 8 * 2
    assert "RD" not in counts


def test_the_energy_of_scales_and_their_columns_is_counted() -> None:
    b = Builder()
    b.command("ACT16", row=0)
    b.command("LDSC", row=0, column=63)
    for i in range(5):
        b.command("MACSC" if i == 4 else "MACAB", row=0, column=i, data=i, format="int4")
    b.command("PREA")
    parts = energy(simulate(SCALES, Program("p", (Stream((0,), b.body()),))), SCALES).components_fj
    assert parts["mac_read"] == 6 * 16 * 256 * 284
    assert parts["mac"] == 16 * (5 * 64 * 84 + 2345)


def test_a_unit_without_the_energy_of_scales_leaves_it_absent() -> None:
    stated = {"mac_unit.formats.int4": {"per_step": 64, "scales": "bf16", "source": "test"}}
    machine = Machine.model_validate(
        {**SCALES.model_dump(by_alias=True), "mac_unit": _with(SCALES, stated["mac_unit.formats.int4"])}
    )
    b = Builder()
    b.command("ACT16")
    b.command("MACSC", format="int4")
    report = energy(simulate(machine, Program("p", (Stream((0,), b.body()),))), machine)
    assert report.components_fj["mac"] is None


def _with(machine: Machine, int4: dict[str, object]) -> dict[str, object]:
    assert machine.mac_unit
    mac = machine.mac_unit.model_dump()
    return {**mac, "formats": {**mac["formats"], "int4": int4}}


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ((Command("LDSC"),), "not open"),
        ((Command("ACT16"), Command("LDSC", column=Index(64))), "LDSC of column 64"),
        ((Command("ACT16"), Command("MACSC", format="int4", scale=Index(10))), "has 0 to 9"),
        ((Command("ACT16"), Command("MACSC", format="ternary/ternary")), "has no scales"),
    ],
)
def test_wrong_commands_are_errors(commands: tuple[Command, ...], message: str) -> None:
    program = Program("wrong", (Stream(tuple(range(8)), commands),))
    with pytest.raises(NearbankError, match=message):
        execute(program, BankMemory(TARGET), _Ternary())  # type: ignore[arg-type]


class _Ternary:
    def inputs(self, label: str) -> str:
        return "int8"


def test_sums_are_not_read_before_their_group_ends() -> None:
    matrix = placed(16, 128, "int4", TARGET)
    memory = BankMemory(TARGET)
    rng = np.random.default_rng(1)
    load_matrix(memory, matrix, format_named("int4").quantise(rng.normal(size=(16, 128)).astype(np.float32)))
    memory.buffer[:] = 1
    mac = Command("MACAB", format="int4")
    commands = (Command("ACT16"), Command("MACSC", format="int4"), mac, Command("RDMAC"))
    with pytest.raises(NearbankError, match="end the group first"):
        execute(Program("wrong", (Stream(tuple(range(8)), commands),)), memory, _Ternary())  # type: ignore[arg-type]


def test_who_applies_scales_is_chosen_by_machine_and_format() -> None:
    lowbit = target_of(load_machine("pim-gpt-lowbit"))
    assert not placed(64, 512, "int4", lowbit).scaled_in_bank
    assert placed(64, 512, "int4", TARGET).scaled_in_bank
    assert not placed(64, 512, "int4", TARGET, "asic").scaled_in_bank
    assert not placed(64, 512, "ternary", TARGET).scaled_in_bank
    assert not placed(64, 512, "ternary-tensor", TARGET, "bank").scaled_in_bank


@pytest.mark.parametrize(
    ("machine", "dequant", "message"),
    [
        ("pim-gpt-lowbit", "bank", r"its unit for int4 has no scales.*use dequant=asic"),
        ("pim-gpt-scales", "host", "dequant is 'host'; expected bank or asic"),
    ],
)
def test_what_cannot_be_is_said(machine: str, dequant: str, message: str) -> None:
    with pytest.raises(NearbankError, match=message):
        plan(gpt("m", 1, 256, 4), load_machine(machine), MappingOptions(weights="int4", dequant=dequant))


def test_a_standard_without_the_commands_is_refused() -> None:
    machine = what_if(SCALES, "peer", {"standard": "bank-units"})
    with pytest.raises(NearbankError, match="standard bank-units has no commands for units that scale"):
        target_of(machine)


def test_a_decode_step_is_quicker_with_scales_in_the_bank() -> None:
    model = gpt("m", 2, 1024, 8, vocabulary=64)
    step = next(steps(model, 1, 1))
    times = {
        dequant: simulate(
            SCALES, plan(model, SCALES, MappingOptions(weights="int4", dequant=dequant)).lower(step)
        ).cycles
        for dequant in ("bank", "asic")
    }
    assert times["bank"] < 0.7 * times["asic"]
