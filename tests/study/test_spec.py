"""What a study asks: grids, ranges and bundles; wrong input is named, with the nearest that there is."""

import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest

from nearbank.cli.app import run as command
from nearbank.errors import NearbankError
from nearbank.models.shape import gpt_shape
from nearbank.sim.machine import load_machine
from nearbank.sim.variant import fields_of, what_if
from nearbank.study import Study, load_study
from nearbank.study.point import Point, effect
from nearbank.study.settings import point_of
from nearbank.workload import shape_workload

BASE = {"model": "gpt2-small", "tokens": 4}
EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "studies").glob("*.yaml"))


def study(**axes: object) -> Study:
    return Study(name="s", base=BASE, axes=axes)


def test_the_grid_is_every_combination_in_order() -> None:
    asked = study(channels=[8, 16], weights=["bf16", "ternary", "binary"])
    assert asked.size == 6
    assert asked.grid()[1] == {"channels": 8, "weights": "ternary"}
    assert asked.settings(asked.grid()[5]) == {**BASE, "channels": 16, "weights": "binary"}


def test_ranges_and_bundles() -> None:
    asked = study(
        channels={"from": 1, "to": 20, "times": 2},
        columns={"from": 32, "to": 64, "step": 16},
        formats={"plain": {"weights": "bf16"}, "low": {"weights": "ternary", "kv": "int8"}},
    )
    assert [list(choices) for choices in asked.choices.values()] == [[1, 2, 4, 8, 16], [32, 48, 64], ["plain", "low"]]
    assert asked.settings({"channels": 1, "columns": 32, "formats": "low"})["kv"] == "int8"


def test_a_point_is_what_its_settings_say() -> None:
    point = point_of({**BASE, "machine": "pim-gpt-ternary", "weights": "ternary", "lanes": 16, "timing.tRCD": "15 ns"})
    expected = what_if(
        load_machine("pim-gpt-ternary"), "x", {"mac_unit.formats.ternary.unit.lanes": 16, "timing.tRCD": "15 ns"}
    )
    assert point.key == Point(gpt_shape("gpt2-small", 12, 768, 12, 50257, 1024), expected, 4, weights="ternary").key
    assert point.machine.name == "pim-gpt-ternary, 16 lanes, timing.tRCD 15 ns"


def test_a_context_plays_decoding_from_there_alone() -> None:
    shape = gpt_shape("tiny", 2, 64, 2, 128, 64)
    whole = list(shape_workload(shape, 1, 32).steps())
    point = point_of({**BASE, "context": 20, "tokens": 3})
    found = list(shape_workload(shape, point.prompt, point.tokens, played=point.played).steps())
    assert found == whole[19:22]
    assert point.mean_context == 21
    assert max(operation.context or 0 for block in found[0].blocks for operation in block.operations) == 20


def test_batches_and_beams_reach_the_workload() -> None:
    steps = list(point_of({**BASE, "batch": 2, "beams": 3}).workload().steps())
    sequences = {operation.sequence for block in steps[1].blocks for operation in block.operations}
    assert sequences >= set(range(6))


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"lane": [1]}, "unknown field 'lane'; nearest: lanes; known: model, machine, weights"),
        ({"organization.colums": [1]}, "unknown field 'organization.colums'; nearest: organization.columns"),
        ({"tRCDD": ["9 ns"]}, "unknown field 'tRCDD'; nearest: timing.tRCD"),
        ({"x": {"a": {"chanels": 4}}}, "unknown field 'chanels'; nearest: channels"),
        ({}, "axes: is empty"),
        ({"channels": []}, "axes.channels: expected values, such as"),
        ({"channels": 8}, "axes.channels: expected values, such as"),
        ({"channels": [8, 8]}, "axes.channels: a value occurs twice"),
        ({"channels": [None]}, "axes.channels: None is neither a number nor a text"),
        ({"channels": {"from": 8, "to": 4, "times": 2}}, "expected 1 <= from <= to"),
        ({"channels": {"from": 1, "to": 4}}, "expected {from: 1, to: 64, times: 2}"),
        ({"x": {"a": {"lanes": 3}}, "lanes": [3]}, "axes: x and lanes both set lanes"),
        ({"weights": ["int5"]}, "weights: unknown format 'int5'; known: "),
        ({"model": ["gpt5"]}, "model: unknown model 'gpt5'; known: "),
        ({"machine": ["pim-gtp"]}, "machine: unknown machine 'pim-gtp'; known: "),
        ({"mapping": ["best"]}, "mapping: mapping 'best' is unknown; expected one of: pim-gpt, auto"),
        ({"tokens": [0]}, "tokens: expected a whole number of 1 or more, not 0"),
        ({"prompt": [1], "context": [8]}, "prompt and context were both given"),
        ({"quality": {"a": {"kv": "int8"}}}, "axes: 'quality' is a column of the results"),
    ],
)
def test_wrong_axes_are_named(axes: dict[str, object], said: str) -> None:
    with pytest.raises(NearbankError) as error:
        study(**axes)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("axis: {}", "unknown key 'axis'; nearest: axes"),
        ("search: {minimise: time, trials: 3}", "unknown metric 'time'"),
        ("search: {minimise: tokens_per_s, trials: 3}", "more tokens_per_s is better"),
        (
            "search: {minimise: time_ns_per_token, trials: 0}",
            "search.trials: Input should be greater than",
        ),
        ("search: {minimise: quality, trials: 3}", "quality needs a quality table"),
        ("quality: {title: t, source: s, by: kv, values: {}}", "quality.by: no point sets 'kv'"),
        ("schema: nearbank.study/2", "schema: Input should be 'nearbank.study/1'"),
        ("name: ../up", "name: String should match pattern"),
        ("base: [", "not readable as YAML"),
    ],
)
def test_a_wrong_file_is_one_line_and_status_2(
    more: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    kept = "" if more.startswith("name") else "name: s\n"
    kept += "" if more.startswith("base") else "base: {model: gpt2-small}\n"
    file.write_text(f"{kept}axes: {{channels: [8]}}\n{more}\n", encoding="utf-8")
    assert command(("study", "run", str(file))) == 2
    err = capsys.readouterr().err
    assert said in err and "study.yaml" in err
    assert err.count("\n") == 1


def test_a_key_is_the_same_in_every_process_and_under_every_name() -> None:
    settings = {**BASE, "channels": 16, "timing.tRCD": "15 ns"}
    code = f"from nearbank.study.settings import point_of; print(point_of({settings!r}).key)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    key = point_of(dict(reversed(settings.items()))).key
    assert done.stdout.strip() == key
    machine = load_machine("pim-gpt")
    renamed = machine.model_copy(update={"name": "other", "title": "another"})
    one = Point(gpt_shape("a", 2, 64, 2, 128, 64), renamed, 4)
    assert one.key == Point(gpt_shape("b", 2, 64, 2, 128, 99), machine, 4).key


@pytest.mark.parametrize("name", ["pim-gpt-ternary", "cent", "hbm-pim", "ddr4"])
def test_every_field_that_is_listed_can_be_changed(name: str) -> None:
    machine = load_machine(name)
    content = machine.model_dump(mode="json", by_alias=True)
    for path in fields_of(machine):
        value = reduce(lambda node, key: node[key], path.split("."), content)
        if isinstance(value, dict) or value is None:
            value = value and value["value"]
        if value is not None:
            assert effect(what_if(machine, "same", {path: value})) == effect(machine)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_studies(file: Path) -> None:
    assert load_study(file).title
