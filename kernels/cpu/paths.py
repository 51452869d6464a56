"""Which instructions the CPU's integer kernels use: chosen at run time by what the CPU reports.

A path is a NamedTuple class. Compiled functions take an instance as their first argument, so each path
is compiled, and cached on disk, as its own specialisation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import llvmlite.binding as llvm
from numba import config

from nearbank.errors import NearbankError


class Avx512Vnni(NamedTuple):
    """64 products of u8 × i8 per instruction, summed into 16 int32: VPDPBUSD on 512 bits."""

    bits: int


class Avx2(NamedTuple):
    """32 products of u8 × i8 per instruction, summed into 16 int16: VPMADDUBSW on 256 bits."""

    bits: int


class NeonDot(NamedTuple):
    """16 products of i8 × i8 per instruction, summed into 4 int32: SDOT of 64-bit Arm."""

    bits: int


class Portable(NamedTuple):
    """LLVM's vectors of int16 and int32, no instruction named; runs on any CPU."""

    bits: int


Path = Avx512Vnni | Avx2 | NeonDot | Portable

# name → (class, what the CPU must report), fastest first
PATHS: Mapping[str, tuple[type[Path], frozenset[str]]] = MappingProxyType(
    {
        "avx512vnni": (Avx512Vnni, frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"})),
        "avx2": (Avx2, frozenset({"avx2", "f16c"})),
        "neon": (NeonDot, frozenset({"neon", "dotprod"})),
        "portable": (Portable, frozenset()),
    }
)
OVERRIDE = "NEARBANK_CPU_PATH"


@cache
def cpu_features() -> frozenset[str]:
    """What the CPU reports, as LLVM names it; nothing when Numba was told to compile for another CPU."""
    if getattr(config, "CPU_NAME", None) or getattr(config, "CPU_FEATURES", None):
        return frozenset()
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def available_paths() -> list[str]:
    """The paths this CPU can run, fastest first."""
    return [name for name, (_, needs) in PATHS.items() if needs <= cpu_features()]


def chosen_path() -> str:
    """The fastest path, or the one named by the environment variable NEARBANK_CPU_PATH."""
    wanted = os.environ.get(OVERRIDE)
    if wanted is None:
        return available_paths()[0]
    if wanted not in available_paths():
        raise NearbankError(f"{OVERRIDE}={wanted}: this CPU can run {', '.join(available_paths())}")
    return wanted
