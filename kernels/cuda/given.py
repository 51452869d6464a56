"""A caller's arrays on the GPU, whose library they are of, and the stream they want work on. Needs CuPy when called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nearbank.errors import NearbankError
from nearbank.kernels import arrays


@dataclass(frozen=True)
class Given:
    """A caller's device array as CuPy sees it: its number format, and how to hand results back."""

    array: Any
    kind: str
    is_torch: bool

    def returned(self, result: Any) -> Any:
        """A CuPy result as the caller's kind of array; no copy."""
        if not self.is_torch:
            return result
        from torch.utils import dlpack

        return dlpack.from_dlpack(result)


def given(x: Any, name: str) -> Given:
    """A device array without copying it. Raises NearbankError for host arrays and unsupported dtypes."""
    import cupy

    is_torch = arrays.is_torch(x)
    if is_torch:
        arrays.check_no_gradient(x, name)
    if is_torch and str(x.dtype) == "torch.bfloat16" and x.is_cuda:
        return Given(_viewed(x.detach().view(_torch_int16())), "bf16", True)
    if not hasattr(x, "__cuda_array_interface__"):
        raise NearbankError(
            f"'{name}' is {type(x).__name__} in host memory; expected a CuPy array or a CUDA tensor on the GPU"
        )
    array = x if isinstance(x, cupy.ndarray) else _viewed(x.detach() if is_torch else x)
    kinds = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
    if str(array.dtype) not in kinds:
        raise NearbankError(f"'{name}' is {array.dtype}; supported: float32, float16, bfloat16 (torch), int8 codes")
    return Given(array, kinds[str(array.dtype)], is_torch)


def check_given(one: Given, name: str, shape: tuple[int | None, ...], device: int) -> None:
    """`NearbankError` unless it is floats of that shape (None: any) on GPU number `device`."""
    real = one.array.shape
    fits = len(real) == len(shape) and all(want in (None, have) for want, have in zip(shape, real, strict=False))
    if not fits or one.kind == "int8":
        wanted = [size if size is not None else "any" for size in shape]
        raise NearbankError(f"'{name}' is {one.kind}{list(real)}; expected floats {wanted}")
    if int(one.array.device.id) != device:
        raise NearbankError(
            f"'{name}' is on device {one.array.device.id}, the weights or cache on device {device}; move one"
        )


def given_target(out: Any, shape: tuple[int, ...], device: int) -> Any:
    """The caller's array for a result of that shape, or None. Kernels write it as it lies, so nothing else will do."""
    if out is None:
        return None
    target = given(out, "out")
    check_given(target, "out", shape, device)
    if target.kind != "fp32" or not target.array.flags.c_contiguous:
        raise NearbankError(f"'out' is {target.kind}{list(shape)}; expected contiguous float32 of that shape")
    return target.array


def _torch_int16() -> Any:
    import torch

    return torch.int16


def _viewed(x: Any) -> Any:
    import cupy

    return cupy.asarray(x)


@contextmanager
def callers_stream(one: Given) -> Iterator[None]:
    """Launch on torch's current stream for torch tensors, on CuPy's otherwise."""
    import cupy

    if not one.is_torch:
        yield
        return
    import torch

    device = int(one.array.device.id)
    with (
        cupy.cuda.Device(device),
        cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device),
    ):
        yield
