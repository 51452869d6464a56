"""Every CUDA kernel by name: the file it is in and the template instances that launches may ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One instance: `expression` is its C++ name, template arguments included.

    early: it calls `wait_for_previous`, so it may start while the kernel before it runs.
    """

    file: str
    expression: str
    early: bool = False


@cache
def source_of(file: str) -> str:
    """A file's text with its own includes written out once each, so that a cache of builds sees every change."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen or name == "emulation.cuh":
            return ""
        seen.add(name)
        text = (FOLDER / name).read_text().replace("#pragma once\n", "")
        return INCLUDE.sub(lambda found: expand(found[1]), text)

    return expand(file)


# (rows, tokens) of `gemm`: a small block when there are few of them, a large one when there are many.
GEMM_TILES = ((1, 4), (2, 8))


def quantise(norm: int, kind: int) -> Kernel:
    """Rows to int8. norm: 0 none, 1 RMS, 2 layer; kind: 0 float32, 1 fp16, 2 bf16."""
    return Kernel("quantise.cuh", f"quantise_rows<{norm}, {kind}>", early=True)


STAGE_CODES = Kernel("quantise.cuh", "stage_codes")


def gemv_stream(bits: int, tokens: int) -> Kernel:
    """One scale per row: four 16-row tiles per warp, `tokens` blocks of 8 tokens."""
    return Kernel("gemv.cuh", f"gemv_stream<{bits}, 4, {tokens}>", early=True)


# (16-row tiles per block, loads of weights ahead, blocks per multiprocessor) of `gemv_rows`, by tiles per block.
GEMV_TILINGS = ROWS_SHORT, ROWS_LONG, ROWS_TWO, ROWS_FOUR = (1, 4, 4), (1, 8, 2), (2, 2, 2), (4, 2, 2)


def gemv_tilings(bits: int, tokens: int) -> tuple[tuple[int, int, int], ...]:
    """Those whose sums and operands fit in the registers."""
    return GEMV_TILINGS[:3] if (bits, tokens) == (1, 2) else GEMV_TILINGS


def gemv_rows(bits: int, tokens: int, tiling: tuple[int, int, int]) -> Kernel:
    """One scale per row, whole rows in each thread block, `tokens` blocks of 8 tokens."""
    rows, depth, resident = tiling
    resident = min(resident, 2 if tokens > 1 else 3 if bits == 1 else 4)  # what the registers hold
    return Kernel("gemv_rows.cuh", f"gemv_rows<{bits}, {rows}, {tokens}, {depth}, {resident}>", early=True)


def gemv_one_resident(bits: int, grouped: bool) -> int:
    """Thread blocks of `gemv_one` per multiprocessor: what the registers hold."""
    return 3 if bits == 1 and grouped else 4


def gemv_one(bits: int, source: int, grouped: bool) -> Kernel:
    """One token, x rounded on the way in. source: 3 · norm + kind of `quantise`; grouped: a scale per group."""
    resident = gemv_one_resident(bits, grouped)
    return Kernel("gemv_one.cuh", f"gemv_one<{bits}, {source}, {str(grouped).lower()}, 4, {resident}>", early=True)


def gemv_groups(bits: int, tokens: int) -> Kernel:
    """A scale per group of columns."""
    return Kernel("gemv.cuh", f"gemv_groups<{bits}, {tokens}>")


def gemv_dot4(bits: int) -> Kernel:
    """Chips without int8 matrix instructions."""
    return Kernel("gemv.cuh", f"gemv_dot4<{bits}>")


def gemm(bits: int, rows: int, tokens: int, grouped: bool) -> Kernel:
    """Many tokens: blocks of 64 · rows rows by 16 · tokens tokens."""
    return Kernel("gemm.cuh", f"gemm<{bits}, {rows}, {tokens}, {str(grouped).lower()}>")


WIDE_BITS = (2, 4, 8)


def gemm_wide(bits: int) -> Kernel:
    """Many tokens on Hopper, one scale per row; sm_90a alone. Bytes are operands as they lie: their step ends first."""
    return Kernel("gemm_wide.cuh", f"gemm_wide<{bits}, {0 if bits == 8 else 1}>")


def floats_by_floats(kind: int) -> Kernel:
    """Float activations, float weights. kind as in `quantise`."""
    return Kernel("floats.cuh", f"floats_by_floats<{kind}>")


def floats_by_codes(bits: int) -> Kernel:
    """Float activations, integer weights."""
    return Kernel("floats.cuh", f"floats_by_codes<{bits}>")


def pack_bits(signed: bool) -> Kernel:
    """One-bit activations, packed in the order of the weights."""
    return Kernel("bits.cuh", f"pack_bits<{str(signed).lower()}>")


def binary_gemm(tokens: int, signed: bool) -> Kernel:
    """One-bit activations times binary weights, `tokens` blocks of 8 tokens per thread block."""
    return Kernel("bits.cuh", f"binary_gemm<{tokens}, {str(signed).lower()}>")


# How kv.cuh names what a cache stores.
STORED = {"int2": 2, "int4": 4, "int8": 8, "fp16": 16, "bf16": 17, "fp32": 32}
# Head dimensions whose queries and sums fit in registers.
FAST_DIMS = {"int2": (128,), "int4": (64, 128, 256), "int8": (64, 128), "fp16": (64, 128), "bf16": (64, 128)}
# The same where the newest tokens are exact.
WINDOW_DIMS = {"int2": (128,), "int4": (64, 128), "int8": (64, 128)}


def append_rows(stored: str, kind: int, paged: bool = False) -> Kernel:
    """Quantise new tokens into the cache. paged: into sequences of a pool."""
    return Kernel("kv.cuh", f"append_rows<{STORED[stored]}, {kind}{', true' * paged}>", early=True)


def attend_resident(stored: str, dim: int) -> int:
    """Thread blocks of the fast attention that one multiprocessor's registers hold."""
    return 2 if dim == 64 or (stored, dim) in (("int2", 128), ("int4", 128)) else 1


def attend(stored: str, dim: int, paged: bool = False) -> Kernel:
    """Flash decoding, for the formats and head dimensions of `FAST_DIMS`. paged: sequences of a pool."""
    sizes = f"{STORED[stored]}, {dim}, {attend_resident(stored, dim)}"
    return Kernel("attend.cuh", f"attend<{sizes}{', true' * paged}>", early=True)


def window_resident(stored: str, dim: int, key_group: int) -> int:
    """The same with exact newest tokens; queries times the scales of a key group take the registers of a block."""
    return 1 if key_group and dim > 64 else attend_resident(stored, dim)


def attend_window(stored: str, dim: int, key_group: int) -> Kernel:
    """Flash decoding with newest tokens exact, for `WINDOW_DIMS`. key_group: tokens sharing a key channel's scale."""
    sizes = f"{STORED[stored]}, {dim}, {window_resident(stored, dim, key_group)}, {key_group}"
    return Kernel("attend_window.cuh", f"attend_window<{sizes}>", early=True)


def exact_scores(stored: str) -> Kernel:
    """First pass of the attention in fixed order."""
    return Kernel("attend_exact.cuh", f"exact_scores<{STORED[stored]}>")


def exact_pages(stored: str) -> Kernel:
    """Second pass."""
    return Kernel("attend_exact.cuh", f"exact_pages<{STORED[stored]}>")


EXACT_TOTAL = Kernel("attend_exact.cuh", "exact_total")


# What happens between the matrices of a decoding step. The order is the template argument's.
ACTIVATIONS = ("gelu", "silu", "relu2", "relu")

EMBED_ROWS = Kernel("decode.cuh", "embed_rows", early=True)
TURN_HEADS = Kernel("decode.cuh", "turn_heads", early=True)
ADD_ROWS = Kernel("decode.cuh", "add_rows", early=True)
LARGEST_TOKEN = Kernel("decode.cuh", "largest_token", early=True)


def norm_rows(norm: int) -> Kernel:
    """Rows after a norm (1 RMS, 2 layer), kept as float32; means in double precision."""
    return Kernel("decode.cuh", f"norm_rows<{norm}>", early=True)


def gate_rows(activation: str) -> Kernel:
    """An activation, gated or not."""
    return Kernel("decode.cuh", f"gate_rows<{ACTIVATIONS.index(activation)}>", early=True)


def decoding_kernels() -> tuple[Kernel, ...]:
    """Those of decode.cuh."""
    return (
        *(EMBED_ROWS, TURN_HEADS, ADD_ROWS, LARGEST_TOKEN),
        *(norm_rows(norm) for norm in (1, 2)),
        *(gate_rows(activation) for activation in ACTIVATIONS),
    )


def all_kernels() -> tuple[Kernel, ...]:
    """Every instance that a launch can ask for."""
    bits = (1, 2, 4, 8)
    return (
        *(quantise(norm, kind) for norm in range(3) for kind in range(3)),
        STAGE_CODES,
        *(gemv_stream(b, tokens) for b in bits for tokens in (1, 2)),
        *(gemv_rows(b, tokens, t) for b in bits for tokens in (1, 2) for t in gemv_tilings(b, tokens)),
        *(gemv_one(b, source, grouped) for b in bits for source in range(9) for grouped in (False, True)),
        *(gemv_groups(b, tokens) for b in bits for tokens in (1, 2)),
        *(gemv_dot4(b) for b in bits),
        *(gemm(b, *tile, False) for b in bits for tile in GEMM_TILES),
        *(gemm(b, *tile, True) for b in bits for tile in GEMM_TILES[: 1 if b == 8 else 2]),
        *(gemm_wide(b) for b in WIDE_BITS),
        *(floats_by_floats(kind) for kind in range(3)),
        *(floats_by_codes(b) for b in bits),
        *(pack_bits(signed) for signed in (False, True)),
        *(binary_gemm(tokens, signed) for tokens in (1, 4) for signed in (False, True)),
        *(append_rows(stored, kind, paged) for stored in STORED for kind in range(3) for paged in (False, True)),
        *(attend(stored, dim, paged) for stored, dims in FAST_DIMS.items() for dim in dims for paged in (False, True)),
        *(exact_scores(stored) for stored in STORED),
        *(exact_pages(stored) for stored in STORED),
        EXACT_TOTAL,
        *decoding_kernels(),
    )
