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

    def append(self, store: Any, layer: int, start: int, k: Floats, v: Floats) -> None:
        """Write k, v [T, kv heads, head_dim] at positions start … of a `CacheStore`."""

    def attend(self, store: Any, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
        """Causal attention of q [T, heads, head_dim], at positions start … of a `CacheStore`."""


# name → (package, module it needs beyond nearbank's own requirements)
BACKENDS: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        "numpy": ("nearbank.kernels.reference", None),
        "numba": ("nearbank.kernels.cpu", "numba"),
    }
)


def available_backends() -> list[str]:
    """Backends whose requirements are installed, the definition first."""
    return [name for name, (_, needs) in BACKENDS.items() if needs is None or find_spec(needs) is not None]


def resolve(name: str) -> str:
    """ "auto" → the fastest backend at hand; any other name is checked."""
    if name == "auto":
        return "numba" if "numba" in available_backends() else "numpy"
    if name not in BACKENDS:
        raise NearbankError(f"unknown backend '{name}'; known: auto, {', '.join(BACKENDS)}")
    if name not in available_backends():
        raise NearbankError(
            f"backend '{name}' needs the package '{BACKENDS[name][1]}', which is not installed"
        )
    return name


def backend_named(name: str = "auto") -> Backend:
    """The backend's package. Raises NearbankError with the known names."""
    return cast(Backend, import_module(BACKENDS[resolve(name)][0]))
