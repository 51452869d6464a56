"""The table of backends. Each is a package with the functions of `Backend`; it loads when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cuda.device import device_problem
from nearbank.kernels.packed import PackedMatrix

Floats = npt.NDArray[np.float32]


class Backend(Protocol):
    """What a backend must do. Inputs are checked by the caller; outputs are new arrays."""

    def quantise_rows(self, x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
        """x [M, K] → int8 codes [M, K], scales [M], sums of codes [M]."""

    def prepare(self, packed: PackedMatrix) -> Any:
        """Repack for this backend. The result is only handed back to the functions below."""

    def matmul_codes(
        self, codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: Any
    ) -> Floats:
        """Integer activations [M, K] times prepared integer weights → [M, N]."""

    def matmul_floats(self, x: Floats, state: Any) -> Floats:
        """Float activations [M, K] times prepared weights of any format → [M, N]."""

    def allocate(self, fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int) -> Any:
        """Zeroed memory for a cache where this backend works: a `CacheStore` or its own kind, with `nbytes`."""

    def with_pages(self, store: Any, pages: list[int]) -> Any:
        """The same memory as a sequence sees it that holds these pages, in this order."""

    def append(self, store: Any, layer: int, start: int, k: Floats, v: Floats) -> None:
        """Write k, v [T, kv heads, head_dim] at positions start … of a `CacheStore`."""

    def attend(self, store: Any, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        """Causal attention of q [T, heads, head_dim], at positions start … of a `CacheStore`."""


# name → (package, module it needs beyond nearbank's own requirements); those of CUDA also need a device
BACKENDS: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        "numpy": ("nearbank.kernels.reference", None),
        "numba": ("nearbank.kernels.cpu", "numba"),
        "cupy": ("nearbank.kernels.cupy_backend", "cupy"),
        "numba-cuda": ("nearbank.kernels.numba_cuda", "numba_cuda"),
    }
)
ON_CUDA = ("cupy", "numba-cuda")


def available_backends() -> list[str]:
    """Backends that can run here, the definition first."""
    return [name for name in BACKENDS if problem_of(name) is None]


def problem_of(name: str) -> str | None:
    """Why a known backend cannot run here, or None."""
    needs = BACKENDS[name][1]
    if needs is not None and find_spec(needs) is None:
        return f"needs the package '{needs}', which is not installed"
    return device_problem() if name in ON_CUDA else None


def resolve(name: str) -> str:
    """ "auto" → the fastest backend at hand; any other name is checked."""
    if name == "auto":
        return "numba" if "numba" in available_backends() else "numpy"
    if name not in BACKENDS:
        raise NearbankError(f"unknown backend '{name}'; known: auto, {', '.join(BACKENDS)}")
    problem = problem_of(name)
    if problem is not None:
        raise NearbankError(f"backend '{name}': {problem}; available: {', '.join(available_backends())}")
    return name


def backend_named(name: str = "auto") -> Backend:
    """The backend's package. Raises NearbankError with the known names."""
    return cast(Backend, import_module(BACKENDS[resolve(name)][0]))
