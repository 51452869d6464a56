"""Arrays of other libraries as NumPy arrays in place, and results handed back as what was given.

Host memory only; arrays on a GPU belong to `nearbank.kernels.cupy_backend`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import from_bf16

Array = npt.NDArray[Any]


def is_torch(x: Any) -> bool:
    """True for torch tensors; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def on_gpu(x: Any) -> bool:
    """True for CUDA tensors of torch and for arrays of CuPy and its like."""
    return bool(x.is_cuda) if is_torch(x) else hasattr(x, "__cuda_array_interface__")


def taken(x: Any, name: str) -> tuple[Array, Callable[[Array], Any]]:
    """(x as a NumPy array, how to hand a result back as the caller's kind of array), without copies.

    Torch tensors keep their memory; bfloat16, which NumPy lacks, is widened to float32. Anything else with
    `__dlpack__` comes in by DLPack. Raises NearbankError for arrays that are not in host memory, and for tensors
    whose gradients would be lost.
    """
    if isinstance(x, np.ndarray):
        return x, _as_it_is
    if is_torch(x):
        return _from_torch(x, name), sys.modules["torch"].from_numpy
    if on_gpu(x):
        raise _elsewhere(name, type(x).__name__, "a GPU")
    if hasattr(x, "__dlpack__"):
        return _from_dlpack(x, name), _as_it_is
    return np.asarray(x), _as_it_is


def is_float(x: Array) -> bool:
    """True for float16, float32 and float64 of either byte order."""
    return x.dtype.kind == "f" and x.dtype.itemsize <= 8


def floats32(x: Array) -> npt.NDArray[np.float32]:
    """`plain` float32; what is too large for it becomes infinity, which the callers refuse."""
    if x.dtype == np.float32:
        return plain(x, np.float32)
    with np.errstate(over="ignore"):
        return plain(x, np.float32)


def plain(x: Array, dtype: Any = None) -> Array:
    """x itself where it is a contiguous, aligned, writeable array, else a copy that is.

    Numba would compile every function once more for a read-only or an unaligned array.
    """
    if x.flags.carray and type(x) is np.ndarray and (dtype is None or x.dtype == dtype):
        return x  # `require` comes to the same, and takes as long as a small product
    return np.require(x, dtype, ["C", "A", "W", "E"])


def _as_it_is(y: Array) -> Any:
    return y


def _from_torch(x: Any, name: str) -> Array:
    torch = sys.modules["torch"]
    if x.device.type != "cpu":
        raise _elsewhere(name, "a torch tensor", str(x.device))
    check_no_gradient(x, name)
    plain = x.detach().resolve_neg()
    if plain.dtype == torch.bfloat16:
        return from_bf16(plain.contiguous().view(torch.int16).numpy().view(np.uint16))
    return _in_place(plain.numpy, x, name)


def check_no_gradient(x: Any, name: str) -> None:
    """Refuse a torch tensor whose gradient is wanted: a result without one would train nothing and say nothing."""
    if x.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise NearbankError(
            f"'{name}' requires grad, and these kernels have no gradients; call under torch.no_grad(), or detach it"
        )


def _from_dlpack(x: Any, name: str) -> Array:
    return _in_place(lambda: np.from_dlpack(x), x, name)


def _in_place(view: Callable[[], Array], x: Any, name: str) -> Array:
    try:
        return view()
    except (BufferError, RuntimeError, TypeError) as error:
        raise NearbankError(f"'{name}' ({type(x).__name__}) cannot be read in place: {error}") from error


def _elsewhere(name: str, what: str, where: str) -> NearbankError:
    return NearbankError(
        f"'{name}' is {what} on {where}; this backend works in host memory. Move it to the CPU, or use the "
        "backend 'cupy'"
    )


def checked_size(value: Any, name: str) -> None:
    """Refuse what is not a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise NearbankError(f"{name} = {value!r}; expected a whole number, 1 or more")
