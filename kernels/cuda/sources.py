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
    """One instance: `expression` is its C++ name, template arguments included."""

    file: str
    expression: str


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


def quantise(norm: int, kind: int) -> Kernel:
    """Rows to int8. norm: 0 none, 1 RMS, 2 layer; kind: 0 float32, 1 fp16, 2 bf16."""
    return Kernel("quantise.cuh", f"quantise_rows<{norm}, {kind}>")


STAGE_CODES = Kernel("quantise.cuh", "stage_codes")


def gemv_stream(bits: int, rows: int, tokens: int) -> Kernel:
    """One scale per row: `rows` 16-row tiles per warp, `tokens` blocks of 8 tokens."""
    return Kernel("gemv.cuh", f"gemv_stream<{bits}, {rows}, {tokens}>")


def gemv_groups(bits: int, tokens: int) -> Kernel:
    """A scale per group of columns."""
    return Kernel("gemv.cuh", f"gemv_groups<{bits}, {tokens}>")


def gemv_dot4(bits: int) -> Kernel:
    """Chips without int8 matrix instructions."""
    return Kernel("gemv.cuh", f"gemv_dot4<{bits}>")


def all_kernels() -> tuple[Kernel, ...]:
    """Every instance that a launch can ask for."""
    bits = (1, 2, 4, 8)
    return (
        *(quantise(norm, kind) for norm in range(3) for kind in range(3)),
        STAGE_CODES,
        *(gemv_stream(b, rows, tokens) for b in bits for rows, tokens in ((4, 1), (4, 2), (2, 4))),
        *(gemv_groups(b, tokens) for b in bits for tokens in (1, 2, 4)),
        *(gemv_dot4(b) for b in bits),
    )
