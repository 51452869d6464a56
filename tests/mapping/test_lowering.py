"""Programs hold the commands that formulas ask for, obey the machine, and take as long as the bounds foresee."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.mapping.shapes import gpt, paper_models, steps

from nearbank.errors import NearbankError
from nearbank.mapping import MappingOptions, bounds, bytes_off_chip, command_counts, mac_operations, plan
from nearbank.mapping.account import nodes
from nearbank.mapping.target import target_of
from nearbank.sim.checker import Flat, check
from nearbank.sim.engine import Player, simulate
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Command, Loop, Mark, Node, Program, unrolled
from nearbank.trace import Block, ModelDescription, Operation, Step
from nearbank.units import ceil_div

PIM = load_machine("pim-gpt")
BANKS, CHANNELS = 16, 8
XL = next(m for m in paper_models() if m.name == "gpt3-xl")


def labels(body: tuple[Node, ...]) -> set[str]:
    found = {node.label for node in body if isinstance(node, Mark)}
    return found.union(*(labels(node.body) for node in body if isinstance(node, Loop)))


def decode(model: ModelDescription, context: int) -> Step:
    """The step that brings the cache to `context` tokens."""
    return list(steps(model, context - 1, 2))[1]


@pytest.mark.parametrize("context", [1, 16, 17, 300])
def test_macs_of_a_token_are_those_of_the_trace_rounded_up_to_whole_accesses(context: int) -> None:
    """GPT3-XL divides evenly: only positions and the vocabulary are padded."""
    step = decode(XL, context) if context > 1 else next(steps(XL, 1, 1))
    counts = command_counts(plan(XL, PIM).lower(step))
    padded_context = ceil_div(context, BANKS) * BANKS
    padding = 24 * 2 * XL.width * (padded_context - context)
    padding += (ceil_div(50257, BANKS * CHANNELS) * BANKS * CHANNELS - 50257) * XL.width
    assert mac_operations(counts, target_of(PIM)) == {"bf16": step.macs + padding}


def test_commands_of_one_token_of_gpt3_xl() -> None:
    """Rows, columns, vectors and results by hand, for one layer at 32 positions and the LM head."""
    counts = command_counts(plan(XL, PIM, MappingOptions(max_context=1024, v_block=1024)).lower(decode(XL, 32)))
    matrices = 12 * 2048**2
    columns = matrices // (16 * BANKS)  # over all channels, MACAB does 16 banks at once
    score = CHANNELS * 2 * 2 * 8  # 2 slots, 2 records, 8 columns a head
    context = CHANNELS * 2 * 8 * 2  # 2 slots, 8 dimensions a bank, 2 columns
    head = CHANNELS * 2 * 393 * 64
    assert counts["MACAB", "bf16"] == 24 * (columns + score + context) + head
    vectors = CHANNELS * 64 * (2 + 2 + 2 + 8)  # chunks of qkv, proj, fc1, fc2
    assert counts["WRGB", ""] == 24 * (vectors + CHANNELS * (2 * 8 + 2 * 2)) + CHANNELS * 128
    results = CHANNELS * (2 * 48 + 2 * 16 + 2 * 64 + 8 * 16 + 2 * 2 + 2 * 8)
    assert counts["RDMAC", ""] == 24 * results + CHANNELS * 2 * 393
    rows = CHANNELS * (2 * 48 + 2 * 16 + 2 * 64 + 8 * 16 + 1 + 16 + 16)  # K, V read, V written
    assert counts["ACT16", ""] == 24 * rows + CHANNELS * 2 * 393
    assert counts["WR", ""] == 24 * (CHANNELS * 16 + 2048)
    assert counts["ACT", ""] == 24 * CHANNELS
    moved = bytes_off_chip(counts, 32)
    assert moved["vectors_in"] == 32 * counts["WRGB", ""]
    assert moved["values_in"] == 32 * counts["WR", ""]
    assert moved["results_out"] == 32 * counts["RDMAC", ""]
    assert moved["values_out"] == 0


def test_low_bits_take_fewer_columns_and_no_fewer_steps_on_the_published_unit() -> None:
    step = decode(XL, 32)
    counts = {
        (machine, weights): command_counts(plan(XL, load_machine(machine), MappingOptions(weights=weights)).lower(step))
        for machine, weights in [("pim-gpt", "bf16"), ("pim-gpt", "ternary"), ("pim-gpt-ternary", "ternary")]
    }
    weights = 24 * 12 * 2048**2
    assert counts["pim-gpt", "ternary"]["MACAB", "ternary"] == weights // (16 * BANKS)
    assert counts["pim-gpt-ternary", "ternary"]["MACAB", "ternary"] == weights // (128 * BANKS)
    saved = counts["pim-gpt", "bf16"]["ACT16", ""] - counts["pim-gpt", "ternary"]["ACT16", ""]
    assert saved == 24 * CHANNELS * (384 - 384 // 8 - 4)  # an eighth of the rows, and one row of scales per matrix
    scales = 24 * (6144 + 2048 + 8192 + 2048) * 4
    assert counts["pim-gpt", "ternary"]["RD", ""] * 32 == scales


@pytest.mark.parametrize("model", paper_models(), ids=lambda m: m.name)
def test_rows_are_hit_and_programs_stay_compact(model: ModelDescription) -> None:
    program = plan(model, PIM).lower(decode(model, 512))
    rate = simulate(PIM, program).bank_hit_rate
    assert rate is not None
    assert 0.975 <= rate <= 1 - 1 / 64
    assert nodes(program) / len(program.streams) < 1000


@pytest.mark.parametrize(("kv", "weights"), [("bf16", "bf16"), ("int8", "ternary"), ("int4", "int4"), ("int2", "int2")])
@pytest.mark.parametrize("machine", ["pim-gpt", "pim-gpt-ternary"])
def test_every_format_plays_on_the_simulator(machine: str, kv: str, weights: str) -> None:
    """The engine refuses commands to closed or wrong rows; 12 heads on 8 channels need two kinds of streams."""
    model = gpt("m", 2, 768, 12, vocabulary=1000, context=64)
    target = load_machine(machine)
    placed = plan(model, target, MappingOptions(weights=weights, kv=kv))
    programs = [placed.lower(step) for step in steps(model, 18, 3)]
    result = simulate(target, programs)
    assert result.cycles > 0
    counted = sum((command_counts(p) for p in programs), start=type(command_counts(programs[0]))())
    assert result.commands()["MACAB", weights] == counted["MACAB", weights]
    assert sum(result.label_cycles.values()) == result.cycles


def test_smaller_blocks_of_v_open_fewer_rows_to_append() -> None:
    counts = [
        command_counts(plan(XL, PIM, MappingOptions(max_context=1024, v_block=n)).lower(decode(XL, 32)))
        for n in (1024, 256)
    ]
    whole, blocks = (c["ACT16", ""] for c in counts)
    assert whole - blocks == 24 * CHANNELS * (16 - 4) * 2  # read once and written once
    assert counts[0]["MACAB", "bf16"] == counts[1]["MACAB", "bf16"]


def test_the_quickest_block_of_v_is_chosen() -> None:
    """Played at half the reserved context, no other block of GPT3-XL's V is quicker than the one by default."""
    times = {
        n: simulate(PIM, plan(XL, PIM, MappingOptions(max_context=1024, v_block=n)).lower(decode(XL, 512))).cycles
        for n in (None, 128, 256, 512, 1024)
    }
    assert times[None] == min(times.values())


@pytest.mark.parametrize(("kv", "weights"), [("bf16", "bf16"), ("int4", "ternary")])
def test_every_issued_command_obeys_the_machine(kv: str, weights: str) -> None:
    """The independent checker sees every command of six tokens, refreshes included."""
    model = gpt("m", 2, 192, 12, vocabulary=300, context=64)
    player = Player(PIM)
    placed = plan(model, PIM, MappingOptions(weights=weights, kv=kv))
    issued = [i for step in steps(model, 4, 3) for i in player.record(placed.lower(step), 0, 10**6)]
    channels = {i.channel for i in issued}
    assert len(channels) > 1
    for channel in channels:
        flat = [Flat(i.cycle, i.command, i.bank, i.row, i.column) for i in issued if i.channel == channel]
        assert {"REFab", "ACT16", "MACAB", "RDMAC", "WRGB", "WR", "ACT", "PRE", "PREA"} <= {f.command for f in flat}
        assert check(PIM, flat) is None


def test_labels_are_stable() -> None:
    model = gpt("m", 1, 768, 12, context=64)
    program = plan(model, PIM, MappingOptions(weights="ternary", kv="int8")).lower(next(steps(model, 1, 1)))
    expected = {"embed", "norm", "qkv", "append", "score", "softmax", "context", "proj", "residual"}
    expected |= {"fc1", "activation", "fc2", "lm_head", "sample", "scales"}
    assert labels(program.streams[0].body) == expected


def test_gpt3_xl_lies_between_the_bounds() -> None:
    """64 tokens after one: above the ideal bound, below one and a half times the row-aware bound."""
    placed = plan(XL, PIM, MappingOptions(max_context=1024))
    result = simulate(PIM, [placed.lower(step) for step in steps(XL, 1, 64)])
    bound = bounds(placed, PIM, 32.5)
    per_token_ns = result.time_ps / 1e3 / 64
    assert bound.ideal_ns < bound.row_aware_ns < per_token_ns < 1.5 * bounds(placed, PIM, 32.5, head=False).row_aware_ns
    assert per_token_ns < 1.12 * bound.row_aware_ns
    assert "x the ideal bound" in bound.explain(per_token_ns)


def test_bounds_are_the_known_ones() -> None:
    """Closed form at 512 positions without LM head, as computed by hand from the published machine."""
    known = {
        "gpt2-small": (46, 68),
        "gpt2-medium": (160, 235),
        "gpt2-large": (369, 543),
        "gpt2-xl": (758, 1117),
        "gpt3-large": (350, 516),
        "gpt3-xl": (614, 905),
    }
    for model in paper_models():
        found = bounds(plan(model, PIM), PIM, 512, head=False)
        if model.name in known:
            assert (round(found.ideal_ns / 1e3), round(found.row_aware_ns / 1e3)) == known[model.name]


def test_a_prompt_costs_as_many_passes_as_it_has_tokens() -> None:
    model = gpt("m", 2, 256, 4, vocabulary=512, context=64)
    placed = plan(model, PIM)
    together = command_counts(placed.lower(next(steps(model, 20, 1))))
    apart = [command_counts(placed.lower(s)) for s in steps(model, 1, 20)]
    head = 64 // 16 * 16  # LM head: 4 outputs a bank of 16 columns, 8 channels, once in the prompt
    total = sum((c["MACAB", "bf16"] for c in apart), start=0)
    assert total - together["MACAB", "bf16"] == 19 * head * CHANNELS
    assert sum(c["WR", ""] for c in apart) == together["WR", ""]


def test_a_window_bounds_the_work() -> None:
    model = gpt("m", 2, 256, 4, vocabulary=512, context=1024)
    placed = plan(model, PIM)
    far, near = (list(steps(model, 600, 2, window=w))[1] for w in (None, 64))
    wide, narrow = (command_counts(placed.lower(s))["MACAB", "bf16"] for s in (far, near))
    assert narrow < wide


def test_layers_in_several_blocks_are_the_same_layers() -> None:
    """Layers that differ come as blocks of their own; they must find their own rows."""
    model = gpt("m", 3, 64, 4, vocabulary=50, context=32)
    placed = plan(model, PIM)
    step = decode(model, 20)
    before, layers, after = step.blocks
    apart = replace(step, blocks=(before, *(replace(layers, first=i, count=1) for i in range(3)), after))
    together, split = (flat_commands(placed.lower(s)) for s in (step, apart))
    assert together == split
    assert len({row for name, _, row, _ in together if name == "ACT"}) == 3


def flat_commands(program: Program) -> list[tuple[str, int, int, int]]:
    return [
        (node.name, *(index.at(counters) for index in (node.bank, node.row, node.column)))
        for node, counters in unrolled(program.streams[0].body)
        if isinstance(node, Command)
    ]


def test_a_context_beyond_the_reserved_space_is_refused() -> None:
    model = gpt("m", 1, 64, 4, vocabulary=50, context=64)
    placed = plan(model, PIM, MappingOptions(max_context=16))
    with pytest.raises(NearbankError, match="context of 17 tokens, but space is reserved for 16"):
        placed.lower(decode(model, 17))


def test_tokens_that_are_no_whole_number_per_sequence_are_refused() -> None:
    model = gpt("m", 1, 64, 4, vocabulary=50, context=64)
    operation = Operation("residual", "r", m=1, n=64, sequence=1)
    with pytest.raises(NearbankError, match="cannot be shared out evenly over 2 sequences"):
        plan(model, PIM).lower(Step(0, "decode", (Block(0, 1, (operation,)),)))


def test_equal_steps_give_equal_programs() -> None:
    model = gpt("m", 2, 256, 4, vocabulary=512, context=64)
    first, second = (plan(model, PIM).lower(decode(model, 20)) for _ in range(2))
    assert first == second
    assert isinstance(first, Program)
