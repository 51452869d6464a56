"""An estimate of the fast attention's time on an H200, from its machine code alone: no GPU is asked.

    python benchmarks/gpu_issue_bound.py [--context 32768] [--kv-heads 8] [--group 1] [--formats int4 int8]

Compiles every instance for sm_90a, finds the loop over tiles of 16 tokens and counts what a warp issues there. Four
bounds follow: memory, instruction issue, matrix instructions, and a block's beginning and end as if nothing of them
overlapped. Then how evenly the tokens fill the chip. All of it is an estimate: only a GPU shows the time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nearbank.formats import format_named
from nearbank.kernels.cuda import cache, cubin, loops, sources
from nearbank.kernels.cuda.loops import Instruction

TILE = 16
ARCH = "sm_90a"


@dataclass(frozen=True)
class Chip:
    """What the estimate knows of an H200."""

    multiprocessors: int = 132
    schedulers: int = 4  # each issues one warp's instruction per cycle
    cycles_per_us: float = 1755.0  # assumed: a little below the 1830 that 989 Tflop/s in bf16 (data sheet) come to
    registers: int = 65536  # of a multiprocessor (CUDA programming guide, compute capability 9.0)
    shared_bytes: int = 228 * 1024  # likewise; a block takes 1 KiB beside its own
    bytes_per_us: float = 4.3e6  # measured copy
    # m16n8k16 is 2048 products; a tensor core makes 512 a cycle on wgmma. Half of that for mma.sync is assumed.
    matrix_cycles: int = 8
    # Latencies of a GH200, the same die: github.com/markdewing/AI_kernels, latency/README.md.
    l2_cycles: int = 281
    memory_cycles: int = 690


H200 = Chip()


@dataclass(frozen=True)
class Built:
    """An instance's machine code, as far as it matters here."""

    stored: str
    dim: int
    registers: int
    tile: tuple[Instruction, ...]  # of one pass of the loop, as it usually goes
    before: int  # instructions that stand before the loop, and after it
    after: int


@dataclass(frozen=True)
class Case:
    """A launch: `blocks` of 8 queries for each KV head, tokens cut into `splits`."""

    kv_heads: int
    context: int
    blocks: int
    splits: int
    resident: int  # thread blocks that share a multiprocessor

    @property
    def grid(self) -> int:
        """Thread blocks."""
        return self.kv_heads * self.blocks * self.splits

    def waves(self, chip: Chip) -> int:
        """How often every place for a block is taken."""
        return -(-self.grid // (self.resident * chip.multiprocessors))

    def tiles(self) -> int:
        """Tiles of the warp that has most."""
        share = -(-self.tiles_of_head() // self.splits)
        return -(-share // cache.ATTEND_WARPS)

    def tiles_of_head(self) -> int:
        """Tiles of one KV head."""
        return -(-self.context // TILE)

    def warps(self, chip: Chip) -> int:
        """Warps that share a scheduler."""
        here = min(self.resident, -(-self.grid // chip.multiprocessors))
        return here * cache.ATTEND_WARPS // chip.schedulers

    def balance(self, chip: Chip) -> float:
        """Tiles there are to tiles there is time for, where all warps take as long as the longest."""
        there = self.kv_heads * self.blocks * self.tiles_of_head()
        places = self.resident * chip.multiprocessors * cache.ATTEND_WARPS * self.waves(chip)
        return there / (places * self.tiles())


@dataclass(frozen=True)
class Bounds:
    """Microseconds that each limit alone would take."""

    memory_us: float
    issue_us: float
    matrix_us: float
    begin_us: float
    end_us: float

    @property
    def total_us(self) -> float:
        """The longest of the first three, then the beginning and the end."""
        return max(self.memory_us, self.issue_us, self.matrix_us) + self.begin_us + self.end_us


def built(stored: str, dim: int) -> Built:
    """Compiled and taken apart. Raises NearbankError where NVRTC or nvdisasm is missing."""
    compiled = cubin.compile_kernel(sources.attend(stored, dim), ARCH)
    code = loops.listing(compiled)
    loop = loops.main_loop(code)
    last = max(i for i, one in enumerate(code) if one.name == "EXIT")
    path = loops.common_path(code, loop)
    return Built(stored, dim, compiled.registers, path, loop.start, last + 1 - loop.stop)


def resident(one: Built, chip: Chip) -> int:
    """Thread blocks that registers and shared memory of a multiprocessor hold."""
    registers = -(-one.registers // 8) * 8 * 32 * cache.ATTEND_WARPS
    shared = cache.attend_shared_bytes(one.dim, cache.ATTEND_WARPS) + 1024
    return min(chip.registers // registers, chip.shared_bytes // shared)


def case_of(one: Built, chip: Chip, kv_heads: int, group: int, context: int) -> Case:
    """A decoding step: one query token of kv_heads · group heads, a cache as long as its context."""
    blocks = -(-group // 8)
    splits = cache.splits_for(one.stored, one.dim, kv_heads, context, blocks, chip.multiprocessors)
    return Case(kv_heads, context, blocks, splits, resident(one, chip))


def tile_bytes(stored: str, dim: int) -> int:
    """Bytes of 16 tokens of one KV head, K and V, scales and offsets included."""
    return int(2 * TILE * format_named(stored).for_cache().bytes_for(1, dim))


def bounds(one: Built, case: Case, chip: Chip) -> Bounds:
    """The estimate of one launch."""
    passes, warps = case.waves(chip) * case.tiles(), case.warps(chip)
    matrix = sum(1 for instruction in one.tile if instruction.kind == "matrix")
    nbytes = case.kv_heads * case.tiles_of_head() * tile_bytes(one.stored, one.dim)
    begin = chip.l2_cycles + chip.memory_cycles + one.before * warps  # the length, then the first tile
    end = 3 * chip.l2_cycles + one.after * warps  # parts and arrival out, parts back in
    return Bounds(
        nbytes / chip.bytes_per_us,
        passes * warps * len(one.tile) / chip.cycles_per_us,
        passes * warps * matrix * chip.matrix_cycles / chip.cycles_per_us,
        begin / chip.cycles_per_us,
        end / chip.cycles_per_us,
    )


def instance_lines(all_built: Sequence[Built], chip: Chip, kv_heads: int, group: int, context: int) -> Iterator[str]:
    """A table of instances: what a tile costs, and the bounds."""
    kinds = (*loops.CLASSES, loops.OTHER)
    yield f"One query token, {kv_heads} KV heads, {group} query heads each, {context} tokens. Estimates, not times."
    yield ""
    yield f"| instance | per tile | {' | '.join(kinds)} | registers | warps | in flight KiB | before | after |"
    yield "|---|" + "---:|" * (len(kinds) + 6)
    for one in all_built:
        counted, held = loops.by_class(one.tile), resident(one, chip) * cache.ATTEND_WARPS
        flight = held * tile_bytes(one.stored, one.dim) / 1024
        cells = [len(one.tile), *(counted[kind] for kind in kinds), one.registers, held, f"{flight:.0f}"]
        yield f"| {one.stored} × {one.dim} | {' | '.join(map(str, [*cells, one.before, one.after]))} |"
    yield ""
    times = ("memory", "issue", "matrix", "beginning", "end", "estimate")
    yield f"| instance | blocks | waves | balance | {' | '.join(f'{time} µs' for time in times)} |"
    yield "|---|" + "---:|" * (3 + len(times))
    for one in all_built:
        case = case_of(one, chip, kv_heads, group, context)
        found = bounds(one, case, chip)
        parts = (found.memory_us, found.issue_us, found.matrix_us, found.begin_us, found.end_us, found.total_us)
        cells = [f"{case.balance(chip):.2f}", *(f"{part:.1f}" for part in parts)]
        yield f"| {one.stored} × {one.dim} | {case.grid} | {case.waves(chip)} | {' | '.join(cells)} |"


def balance_lines(one: Built, chip: Chip, kv_heads: int) -> Iterator[str]:
    """How evenly contexts fill the chip, for every number of query heads that share a KV head."""
    contexts = [1024 << i for i in range(8)]
    held = resident(one, chip)
    yield f"{held} blocks per multiprocessor ({one.stored} × {one.dim}), {kv_heads} KV heads, by query heads of each:"
    yield "blocks / waves / balance (tiles there are to tiles there is time for)"
    yield ""
    yield f"| query heads | {' | '.join(f'{context // 1024} k' for context in contexts)} |"
    yield "|---|" + "---:|" * len(contexts)
    for group in (1, 2, 4, 8, 16):
        cases = [case_of(one, chip, kv_heads, group, context) for context in contexts]
        cells = (f"{case.grid} / {case.waves(chip)} / {case.balance(chip):.2f}" for case in cases)
        yield f"| {group} | {' | '.join(cells)} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=32768, help="tokens in the cache")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--group", type=int, default=1, help="query heads that share a KV head")
    parser.add_argument("--formats", nargs="+", choices=tuple(sources.FAST_DIMS), default=tuple(sources.FAST_DIMS))
    options = parser.parse_args()
    if cubin.disassembler() is None:
        sys.exit("no estimate here: nvdisasm is missing (pip install nvidia-cuda-nvdisasm)")
    every = [built(stored, dim) for stored in options.formats for dim in sources.FAST_DIMS[stored]]
    print("\n".join(instance_lines(every, H200, options.kv_heads, options.group, options.context)))
    for one in {resident(one, H200): one for one in reversed(every)}.values():
        print("\n" + "\n".join(balance_lines(one, H200, options.kv_heads)))


if __name__ == "__main__":
    main()
