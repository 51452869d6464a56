"""`nearbank map`: what it says, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nearbank.cli.app import run
from nearbank.plot.mapping import FREE, mapping_figure, tensor_colours
from nearbank.replay import plan_of, replay
from nearbank.workload import sketch_workload


def test_it_prints_regions_and_bounds_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "map.svg"
    arguments = ["map", "gpt2-small", "--tokens", "64", "--weights", "ternary", "--kv", "int4"]
    assert run([*arguments, "--picture", str(picture), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert {"K", "V", "K and V scales", "lm_head"} <= {region["tensor"] for region in row["regions"]}
    assert row["ideal_ns"] < row["row_aware_ns"] <= row["placed_ns"]
    text = picture.read_text()
    assert text.startswith("<?xml")
    assert run(arguments) == 0
    assert "a token takes at least" in capsys.readouterr().out


def test_the_picture_covers_every_row_once() -> None:
    placed = plan_of(sketch_workload("gpt2-xl", 1, 64), "pim-gpt")
    whole, _ = mapping_figure(placed).axes
    boxes = [patch.get_paths()[0].get_extents() for patch in whole.collections]
    assert sum(box.height for box in boxes) == pytest.approx(placed.placement.rows)
    assert max(box.y1 for box in boxes) == pytest.approx(placed.placement.rows)
    colours = tensor_colours(placed)
    assert len(set(colours.values())) == len(colours)
    assert FREE not in colours.values()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gpt2-small", "gpt2-large", "--picture", "a.svg"], "shows one model, but 2 were named"),
        (["gpt2-small", "--picture", "a.txt"], "expected a name that ends in .svg"),
        (["gpt2-small", "--mapping", "best"], "mapping 'best' is unknown; expected one of: pim-gpt, auto"),
        (["gpt2-small", "--kv", "fp32"], "the format of the KV cache; pass --kv"),
        (["gpt2-small", "--tokens", "0"], "--tokens 0: expected 1 or more"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["map", *arguments]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_a_replay_with_the_mapper_is_not_slower_and_says_why() -> None:
    load = sketch_workload("gpt2-small", 1, 8)
    published, auto = replay(load, "pim-gpt"), replay(load, "pim-gpt", mapping="auto")
    assert auto.row.time_ns < published.row.time_ns
    assert any("as published" in remark for remark in auto.remarks)
    kept = replay(load, "pim-gpt", mapping="auto-by-use")
    assert kept.row.time_ns < 0.95 * auto.row.time_ns
    assert kept.result.command_counts()["REFab"] == 0
    assert any("no refresh commands" in remark for remark in kept.remarks)
