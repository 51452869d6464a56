"""A MAC unit's description gives its clocks per column, its exact sums, its energy and area, and its machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nearbank.errors import NearbankError
from nearbank.formats import FORMATS
from nearbank.sim.mac_unit import Process, UnitCosts, UnitDesign, unit_costs
from nearbank.sim.machine import Machine, load_machine

AT_45 = Process(node_nm=45, source="test", routing=1)
HEAD = "extends: pim-gpt\nname: mine\ntitle: what if\n"
PROCESS = "process: {node_nm: 28, calibrated_to: bf16, source: test}"


def costs(fmt: str, process: Process = AT_45, activations: str = "", **design: Any) -> UnitCosts:
    return unit_costs(FORMATS[fmt], UnitDesign(**design), 32, process, activations=activations)


@pytest.mark.parametrize(
    ("fmt", "values"),
    [("bf16", 16), ("int8", 32), ("int4", 64), ("int2", 128), ("ternary", 128), ("ternary-b3", 160), ("binary", 256)],
)
def test_a_column_wide_unit_takes_a_column_a_clock(fmt: str, values: int) -> None:
    found = costs(fmt)
    assert (found.values, found.lanes, found.steps, found.limit) == (values, values, 1, "column")


@pytest.mark.parametrize(
    ("design", "steps", "limit"),
    [
        ({"lanes": 32}, 4, "lanes"),
        ({"lanes": 100}, 2, "lanes"),
        ({"lanes": 1000}, 1, "column"),
        ({"bits_per_step": 1}, 8, "activation bits"),
        ({"bits_per_step": 3}, 3, "activation bits"),
        ({"bits_per_step": 1, "activation_bits": 2}, 2, "activation bits"),
        ({"bits_per_step": 1, "activation_bits": 1}, 1, "column"),
        ({"bits_per_step": 1, "lanes": 64}, 16, "lanes"),
    ],
)
def test_clocks_per_column_of_ternary_weights(design: dict[str, Any], steps: int, limit: str) -> None:
    found = costs("ternary", **design)
    assert (found.steps, found.limit) == (steps, limit)


def test_energy_and_area_are_sums_of_the_published_operations() -> None:
    """45 nm, no routing: a fp16 unit is multipliers, 15 adders and an fp32 adder; 2 int8 lanes are 2 products, an
    adder of 16 bits, an accumulator of 32."""
    assert costs("fp16").energy_per_mac_fj == round(1100 + 400 * 15 / 16 + 900 / 16)
    assert costs("fp16").area_um2 == 16 * 1640 + 15 * 1360 + 4184
    two = costs("int8", lanes=2)
    assert two.energy_per_mac_fj == round(200 + 30 / 8 * (16 + 32) / 2)
    assert two.area_um2 == 2 * 282 + 36 * (16 + 32) // 8


def test_integer_weights_times_floats_cost_the_rows_of_their_product() -> None:
    """An int4 weight takes 4 of bf16's 8 x 8 product; fp16's 11 x 11 is published. Adders are those of 64 lanes."""
    found = costs("int4", activations="bf16")
    assert found.energy_per_mac_fj == round(1100 * 8 * 4 / 121 + 400 * 63 / 64 + 900 / 64)
    assert costs("bf16", activations="bf16") == costs("bf16")
    assert costs("int4", activations="bf16", lanes=16).steps == 4


def test_a_pair_of_integers_is_a_unit_of_so_many_bits() -> None:
    assert costs("ternary", activations="ternary") == costs("ternary", activation_bits=2)
    assert costs("binary", activations="binary") == costs("binary", activation_bits=1)
    assert costs("ternary", activations="ternary", bits_per_step=1).steps == 2


def test_processes_and_routing_scale() -> None:
    at_7 = costs("fp16", Process(node_nm=7, source="test", routing=1)).energy_per_mac_fj
    assert at_7 == round(340 + 160 * 15 / 16 + 360 / 16)
    between = costs("fp16", Process(node_nm=28, source="test", routing=1)).energy_per_mac_fj
    assert at_7 < between < costs("fp16").energy_per_mac_fj
    assert costs("fp16", Process(node_nm=28, source="test")).energy_per_mac_fj == pytest.approx(1.5 * between, abs=1)


def test_fewer_activation_bits_cost_less_and_a_serial_unit_pays_for_its_accumulator() -> None:
    energies = [costs("ternary", activation_bits=bits).energy_per_mac_fj for bits in (8, 4, 2, 1)]
    assert energies == sorted(energies, reverse=True)
    serial = costs("ternary", bits_per_step=1)
    assert serial.energy_per_mac_fj > energies[0]
    assert 3 * serial.area_um2 < costs("ternary").area_um2


def test_the_accumulator_holds_what_it_says() -> None:
    """2^23 products of at most 127 · 1 fit 32 bits; an accumulator below a column's sum is refused."""
    assert costs("ternary").exact_inputs == 2**23
    with pytest.raises(NearbankError, match=r"accumulator of 15 bits cannot hold the sum of 128 .* expected 16"):
        costs("ternary", accumulator_bits=15)


def test_a_machine_is_made_of_its_units(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    unit = "ternary: {unit: {bits_per_step: 2, activation_bits: 8}, source: test}"
    path.write_text(f"{HEAD}mac_unit: {{{PROCESS}, formats: {{{unit}}}}}\n")
    machine = load_machine(str(path))
    assert machine.mac_unit is not None
    lanes = machine.mac_unit.formats["ternary"]
    assert (lanes.per_step, lanes.serial, lanes.activations) == (128, 4, "integer")
    assert lanes.energy_per_mac is not None
    assert not lanes.energy_per_mac.verified
    content = machine.model_dump(mode="json", by_alias=True)
    assert Machine.model_validate(content) == machine


def test_energies_are_scaled_to_the_published_unit() -> None:
    """The model gives PIM-GPT's bf16 unit twice its published energy, so everything derived is halved."""
    process = Process(node_nm=28, source="test")
    scale = 583 / costs("bf16", process).energy_per_mac_fj
    machine = load_machine("pim-gpt-ternary")
    assert machine.mac_unit is not None
    energy = machine.mac_unit.formats["ternary"].energy_per_mac
    assert energy is not None
    assert energy.value == f"{round(costs('ternary', process).energy_per_mac_fj * scale)} fJ"


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("formats: {ternary: {unit: {}, source: test}}", "needs mac_unit.process"),
        (
            f"{PROCESS}, formats: {{ternary: {{unit: {{}}, per_step: 3, source: test}}}}",
            "not what follows from its unit",
        ),
        (f"{PROCESS}, formats: {{ternary: {{unit: {{lane: 3}}, source: test}}}}", "unit.lane"),
        (f"{PROCESS}, formats: {{fp32: {{unit: {{}}, source: test}}}}", "no unit for fp32 is known"),
        (f"{PROCESS}, formats: {{foo: {{unit: {{}}, source: test}}}}", "unknown format 'foo'"),
        (f"{PROCESS}, formats: {{int8/int4: {{unit: {{}}, source: test}}}}", "'int4' cannot hold activations"),
        (f"{PROCESS}, formats: {{bf16/int8: {{unit: {{}}, source: test}}}}", "floating weights and integers"),
        (f"{PROCESS}, formats: {{int8/bf16: {{unit: {{bits_per_step: 1}}, source: test}}}}", "taken bit by bit"),
        (f"{PROCESS}, formats: {{int8/int8: {{unit: {{activation_bits: 4}}, source: test}}}}", "is not the 8 of int8"),
        (
            "process: {node_nm: 28, calibrated_to: ternary, source: test}, "
            "formats: {ternary: {unit: {}, source: test}}",
            "calibrated_to",
        ),
    ],
)
def test_a_bad_unit_is_refused(tmp_path: Path, section: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{HEAD}mac_unit: {{{section}}}\n")
    with pytest.raises(NearbankError) as caught:
        load_machine(str(path))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scaling_costs_a_conversion_a_product_an_addition_and_the_zero() -> None:
    """Per group: 24 rows of the scale's significand on fp16's published 11 x 11, two fp32 additions; int4 and int2 take
    the zero (a row a bit, as wide as the accumulator) off first."""
    plain, scaling = costs("int8"), costs("int8", scales="bf16")
    assert plain.energy_per_scale_fj is None
    assert scaling.energy_per_mac_fj == plain.energy_per_mac_fj
    assert scaling.energy_per_scale_fj == round(1100 * 24 * 8 / 121 + 2 * 900)
    assert scaling.area_um2 == round(plain.area_um2 + 1640 * 24 * 8 / 121 + 2 * 4184)
    zeros = costs("int4", scales="fp16").energy_per_scale_fj
    assert zeros == round(1100 * 24 * 11 / 121 + 2 * 900 + 200 * 32 * 4 / 64 + 30 * 32 / 8)


def test_only_units_of_integers_scale() -> None:
    with pytest.raises(NearbankError, match="int4/bf16: only units of integers scale"):
        costs("int4", activations="bf16", scales="bf16")
