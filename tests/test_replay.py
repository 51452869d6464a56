"""Replays of whole generations: against closed forms, against each other, and against the trace itself."""

from pathlib import Path

import pytest

from nearbank.errors import NearbankError
from nearbank.replay import Replay, replay
from nearbank.trace import Step
from nearbank.workload import Workload, sketch_workload, trace_workload, write_sketch


@pytest.fixture(scope="module")
def gpt3_xl() -> Replay:
    return replay(sketch_workload("gpt3-xl", 1, 64), "pim-gpt")


def test_gpt3_xl_lies_between_the_ideal_and_the_row_aware_bound(gpt3_xl: Replay) -> None:
    """One bf16 column (16 weights) per bank and ns; a row of 64 columns also takes tRCD + tRP; refresh takes its share.

    Bounds as in PIM-GPT's published figures, with the LM head and the average context of this run.
    """
    width, layers, vocabulary, context = 2048, 24, 50257, 1 + 63 / 2
    weights = layers * 12 * width**2 + vocabulary * width + 2 * layers * width * context
    ideal_ns = weights / (16 * 128)
    row_aware_ns = ideal_ns * (64 + 12 + 12) / 64 / (1 - 455 / 6825)
    assert ideal_ns < gpt3_xl.row.ns_per_token < 1.5 * row_aware_ns


def test_row_hits_approach_one_miss_in_64(gpt3_xl: Replay) -> None:
    assert gpt3_xl.row.row_hit_rate == pytest.approx(63 / 64, abs=0.005)


def test_every_weight_is_multiplied(gpt3_xl: Replay) -> None:
    """MACs that the banks did cover what the trace asks for, and padding adds little."""
    asked = sum(step.macs for step in gpt3_xl.load.steps())
    done = sum(n for (name, _), n in gpt3_xl.result.commands().items() if name == "MACAB") * 16 * 16
    assert asked <= done < 1.05 * asked


def test_the_report_says_why(gpt3_xl: Replay) -> None:
    text = " ".join(gpt3_xl.remarks)
    assert "ideal bound" in text
    assert "row-aware bound" in text
    assert "tRCD" in text
    assert "unverified" in text


def test_fewer_bits_take_less_time_where_lanes_are_there() -> None:
    load = sketch_workload("gpt3-xl", 1, 4)
    bf16 = replay(load, "pim-gpt").row
    fed = replay(load, "pim-gpt", weights="ternary").row
    native = replay(load, "pim-gpt-ternary", weights="ternary").row
    assert bf16.time_ns > fed.time_ns > 2 * native.time_ns


def test_same_inputs_same_result() -> None:
    load = sketch_workload("gpt2-small", 3, 5)
    first, again = (replay(load, "pim-gpt").row for _ in range(2))
    assert first == again


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    load = sketch_workload("gpt3-xl", 1, 2)
    wide = Workload(load.model.model_copy(update={"layers": 96}), 1, 2, "bf16", "bf16", lambda: iter(list[Step]()))
    with pytest.raises(NearbankError, match=r"bytes"):
        replay(wide, "pim-gpt")


def test_a_machine_without_mac_units_says_what_it_lacks() -> None:
    with pytest.raises(NearbankError, match="lacks an ASIC"):
        replay(sketch_workload("gpt2-small", 1, 1), "gddr6-aim")


def test_a_format_without_lanes_lists_those_there_are() -> None:
    with pytest.raises(NearbankError, match="bf16"):
        replay(sketch_workload("gpt2-small", 1, 1), "pim-gpt", weights="fp32")


def test_a_cache_with_exact_tokens_goes_from_sketch_to_file_to_replay(tmp_path: Path) -> None:
    """The trace names it, the file keeps the name, and a recast of a plain trace is the same run."""
    load = sketch_workload("gpt2-small", 33, 2, kv="int4-kivi")
    write_sketch(load, tmp_path / "run.parquet", lambda _: None)
    read = trace_workload(tmp_path / "run.parquet")
    assert read.kv == "int4-kivi"
    rows = [replay(read, "pim-gpt").row, replay(sketch_workload("gpt2-small", 33, 2), "pim-gpt", kv="int4-kivi").row]
    assert rows[0].kv == rows[1].kv == "int4-kivi"
    assert rows[0].cycles == rows[1].cycles
    assert rows[0].time_by_part_ns and rows[0].time_by_part_ns["flush"] > 0
    with pytest.raises(NearbankError, match="unknown KV cache 'int4-window'"):
        replay(load, "pim-gpt", kv="int4-window")
