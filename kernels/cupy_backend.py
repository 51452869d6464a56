"""The CUDA backend: the kernels of `nearbank.kernels.cuda` on a GPU, through CuPy.

Two faces. The functions of `nearbank.kernels.backends.Backend` take and return NumPy arrays. `linear`,
`DeviceCache` and what they are made of take CuPy arrays, torch CUDA tensors or anything with
`__cuda_array_interface__`, run on the caller's stream, wait for nothing and return arrays of the caller's kind.

A first call of a kernel compiles it for the GPU at hand and keeps the machine code on disk for later processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import Format
from nearbank.kernels.cuda import cache as device_cache
from nearbank.kernels.cuda import cubin, early, host, layout
from nearbank.kernels.cuda.cache import DevicePages
from nearbank.kernels.cuda.callers_cache import OneSequence
from nearbank.kernels.cuda.device import device_problem
from nearbank.kernels.cuda.given import callers_stream, check_given, given, given_target
from nearbank.kernels.cuda.host import FloatRows, StagedRows, Tiles
from nearbank.kernels.cuda.sources import Kernel
from nearbank.kernels.levels import Levels
from nearbank.kernels.packed import PackedMatrix, as_format
from nearbank.kernels.store import PAGE

Floats = npt.NDArray[np.float32]
STATIC_SHARED_LIMIT = 48 * 1024
NORMS = {None: 0, "rms": 1, "layer": 2}


class CupyRuntime:
    """One GPU as `nearbank.kernels.cuda.host.Runtime`: memory from CuPy's pool, launches on the current stream."""

    def __init__(self, device: int) -> None:
        import cupy

        self.xp: Any = cupy
        self.device = device
        properties = cupy.cuda.runtime.getDeviceProperties(device)
        self.name = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.capability = 10 * int(properties["major"]) + int(properties["minor"])
        self._kernels: dict[Kernel, Callable[..., None]] = {}
        self._wide: bool | None = None
        self.early = self.capability >= early.CAPABILITY

    def asarray(self, array: Any) -> Any:
        """A copy on the device (an array already there is itself)."""
        return self._allocated(array.nbytes, lambda: self.xp.ascontiguousarray(self.xp.asarray(array)))

    def asnumpy(self, array: Any) -> npt.NDArray[Any]:
        """A copy on the host; waits for the current stream."""
        return np.asarray(self.xp.asnumpy(array))

    def empty(self, shape: Any, dtype: Any) -> Any:
        """Uninitialised device memory."""
        return self._allocated(_bytes_of(shape, dtype), lambda: self.xp.empty(shape, dtype))

    def zeros(self, shape: Any, dtype: Any) -> Any:
        """Zeroed device memory."""
        return self._allocated(_bytes_of(shape, dtype), lambda: self.xp.zeros(shape, dtype))

    def has_wide(self) -> bool:
        """Whether the warpgroup kernel may serve: on Hopper, once it gave the same bits as the common one.

        NEARBANK_WIDE=0 in the environment turns it off.
        """
        if self._wide is None:
            self._wide = False  # while the common kernel is asked
            wanted = self.capability == 90 and os.environ.get("NEARBANK_WIDE") != "0"
            self._wide = wanted and self._wide_agrees()
        return self._wide

    def _wide_agrees(self) -> bool:
        rng = np.random.default_rng(0)
        for spec in ("ternary", "int4-row", "int8"):
            packed = PackedMatrix.quantise(rng.standard_normal((300, 1000)).astype(np.float32), spec)
            tiles, x = host.upload(self, packed), self.asarray(rng.standard_normal((300, 1000)).astype(np.float32))
            common, wide = (host.quantise(self, x, 0, tiles.shape, into=self._staged(tiles, w)) for w in (False, True))
            if not bool((host.matmul(self, common, tiles) == host.matmul(self, wide, tiles)).all()):
                warnings.warn(
                    f"{self.name}: the warpgroup kernel disagrees with the common one and is not used",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
        return True

    def _staged(self, tiles: Tiles, in_steps: bool) -> StagedRows:
        return replace(host.staging(self, 300, tiles.shape), in_steps=in_steps)

    def _allocated(self, size: int, make: Callable[[], Any]) -> Any:
        try:
            with self.xp.cuda.Device(self.device):
                return make()
        except self.xp.cuda.memory.OutOfMemoryError as error:
            with self.xp.cuda.Device(self.device):
                free, total = self.xp.cuda.runtime.memGetInfo()
            raise NearbankError(
                f"{self.name} (device {self.device}): {size} bytes do not fit; {free} of {total} bytes are free"
            ) from error

    def kernel(self, kernel: Kernel) -> Callable[..., None]:
        """kernel(grid, threads, shared_bytes, arguments) on the current stream."""
        if kernel not in self._kernels:
            self._kernels[kernel] = self._compiled(kernel)
        return self._kernels[kernel]

    def _compiled(self, kernel: Kernel) -> Callable[..., None]:
        path, name = cubin.stored(kernel, cubin.arch_of(self.capability))
        with self.xp.cuda.Device(self.device):
            function = self.xp.RawModule(path=str(path)).get_function(name)
        allowed = [STATIC_SHARED_LIMIT]

        def launch(grid: tuple[int, ...], threads: int, shared_bytes: int, arguments: tuple[Any, ...]) -> None:
            with self.xp.cuda.Device(self.device):
                if shared_bytes > allowed[0]:
                    function.max_dynamic_shared_size_bytes = shared_bytes
                    allowed[0] = shared_bytes
                if kernel.early and self.early:
                    stream = self.xp.cuda.get_current_stream().ptr
                    early.launch(function.kernel.ptr, stream, grid, threads, shared_bytes, arguments)
                    return
                values = tuple(np.uint64(0) if value is None else value for value in arguments)
                function(tuple(map(int, grid)), (threads,), values, shared_mem=shared_bytes)

        return launch


def _bytes_of(shape: Any, dtype: Any) -> int:
    return int(np.prod(shape)) * int(np.dtype(dtype).itemsize)


@cache
def runtime_for(device: int) -> CupyRuntime:
    """The runtime of GPU number `device`. Raises NearbankError where there is none, or one too old."""
    problem = device_problem()
    if problem:
        raise NearbankError(f"backend 'cupy': {problem}; use backend 'numba' or 'numpy'")
    runtime = CupyRuntime(device)
    if runtime.capability < host.DOT_PRODUCTS:
        major, minor = divmod(runtime.capability, 10)
        raise NearbankError(
            f"backend 'cupy': {runtime.name} has compute capability {major}.{minor}; supported: 6.1 and later"
        )
    return runtime


def current_runtime() -> CupyRuntime:
    """The runtime of CuPy's current device."""
    if device_problem():
        return runtime_for(0)  # raises, saying why
    import cupy

    return runtime_for(cupy.cuda.runtime.getDevice())


# ---------------------------------------------------------------- NumPy in, NumPy out: the Backend functions


def quantise_rows(x: Floats) -> tuple[npt.NDArray[np.int8], Floats, npt.NDArray[np.int32]]:
    """x [M, K] → int8 codes [M, K], scales [M], sums of codes [M]."""
    runtime = current_runtime()
    cols = x.shape[1]
    shape = layout.Shape(1, cols, 8, cols, -(-cols // 32) * 32, 1)
    plain = replace(host.staging(runtime, x.shape[0], shape), in_steps=False)  # the caller wants columns in order
    rows = host.quantise(runtime, runtime.asarray(x), host.KIND["fp32"], shape, into=plain)
    codes = np.ascontiguousarray(runtime.asnumpy(rows.codes)[:, :cols])
    return codes, runtime.asnumpy(rows.scales), runtime.asnumpy(rows.sums)[:, 0]


def prepare(packed: PackedMatrix) -> Tiles | FloatRows:
    """Repack weights and copy them to the current GPU."""
    runtime = current_runtime()
    return host.upload_floats(runtime, packed) if packed.format.is_float else host.upload(runtime, packed)


def matmul_codes(codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: Tiles) -> Floats:
    """Integer activations [M, K] times prepared integer weights → [M, N]. The device sums the codes itself."""
    runtime = _runtime_of(state)
    rows = host.stage(runtime, runtime.asarray(codes), runtime.asarray(scales), state.shape)
    return runtime.asnumpy(host.matmul(runtime, rows, state))


def matmul_low(
    codes: npt.NDArray[np.int8], scales: Floats, sums: npt.NDArray[np.int32], state: Tiles, levels: Levels
) -> Floats:
    """Activations of few levels: one bit times one bit on its own instruction, all else as int8."""
    runtime = _runtime_of(state)
    one_bit = levels.name in ("binary", "uint1") and state.row_ones is not None and state.shape.groups == 1
    if not one_bit or runtime.capability < host.TENSOR_CORES:
        return matmul_codes(codes, scales, sums, state)
    given = runtime.asarray(codes), runtime.asarray(scales)
    return runtime.asnumpy(host.matmul_bits(runtime, *given, state, levels.name == "binary"))


def matmul_floats(x: Floats, state: Tiles | FloatRows) -> Floats:
    """Float activations [M, K] times prepared weights of any format → [M, N]."""
    runtime = _runtime_of(state)
    return runtime.asnumpy(host.matmul_floats(runtime, runtime.asarray(x), state))


def allocate(fmt: Format, layers: int, kv_heads: int, head_dim: int, capacity: int) -> DevicePages:
    """Pages of a KV cache in the current GPU's memory."""
    return device_cache.allocate(current_runtime(), fmt, layers, kv_heads, head_dim, capacity)


def with_pages(store: DevicePages, pages: list[int]) -> DevicePages:
    """The same memory as a sequence sees it that holds these pages, in this order."""
    table = _runtime_of(store).asarray(np.array(pages or [0], np.int32))
    return replace(store, tables=table, capacity=len(pages) * PAGE)


def append(store: DevicePages, layer: int, start: int, k: Floats, v: Floats) -> None:
    """Write k, v [T, kv heads, head_dim] at positions start …."""
    runtime = _runtime_of(store)
    store.lengths[layer] = start
    device_cache.append(runtime, store, layer, runtime.asarray(k), runtime.asarray(v), host.KIND["fp32"])


def attend(store: DevicePages, layer: int, start: int, q: Floats, scale: np.float32) -> Floats:
    """Causal attention of q [T, heads, head_dim] at positions start …, with the bits of the definition."""
    runtime = _runtime_of(store)
    out = device_cache.attend_exact(runtime, store, layer, start, runtime.asarray(q), scale)
    return runtime.asnumpy(out)


def _runtime_of(state: Tiles | FloatRows | DevicePages) -> CupyRuntime:
    array = state.keys if isinstance(state, DevicePages) else state.words
    return runtime_for(int(array.device.id))


# ---------------------------------------------------------------- device arrays in, device arrays out


def linear(
    x: Any,
    weights: Tiles | FloatRows,
    norm: str | None = None,
    gain: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    out: Any = None,
    workspace: StagedRows | None = None,
    activations: str = "auto",
) -> Any:
    """x [M, K] on the GPU → x · Wᵀ [M, N] float32 on the GPU, on the caller's stream, without waiting.

    Integer weights: rows of x (fp32, fp16, bf16) are rounded to int8 in one kernel together with the norm ("rms",
    "layer", with float32 gain and bias [K]); activations "fp32" keeps x instead. Float weights keep x too. Where x is
    kept it must be float32, without a norm. A row of x with NaN or infinity comes out as NaN. `workspace`
    (`make_workspace`) and `out` let a captured graph be played again.
    """
    rows = given(x, "x")
    shape = weights.shape if isinstance(weights, FloatRows) else (weights.shape.rows, weights.shape.cols)
    runtime, cols = _runtime_of(weights), shape[1]
    check_given(rows, "x", (None, cols), runtime.device)
    if norm not in NORMS:
        raise NearbankError(f"unknown norm '{norm}'; supported: rms, layer or None")
    target = given_target(out, (rows.array.shape[0], shape[0]), runtime.device)
    with callers_stream(rows):
        array = runtime.xp.ascontiguousarray(rows.array)
        if isinstance(weights, FloatRows) or activations == "fp32":
            if rows.kind != "fp32" or norm is not None:
                raise NearbankError(f"x is kept only as float32 and without a norm; it is {rows.kind}, norm is {norm}")
            return rows.returned(host.matmul_floats(runtime, array, weights, target))
        gains, biases = (None if vector is None else _vector(vector, cols, runtime) for vector in (gain, bias))
        kinds = host.KIND[rows.kind], weights.shape, NORMS[norm]
        if host.takes_one(runtime, array.shape[0], weights.shape):
            one = (array, kinds[0], weights, kinds[2], gains, biases, epsilon, target)
            return rows.returned(host.linear_one(runtime, *one))
        staged = host.quantise(runtime, array, *kinds, gains, biases, epsilon, workspace)
        return rows.returned(host.matmul(runtime, staged, weights, target))


def make_workspace(weights: Tiles, tokens: int) -> StagedRows:
    """Memory for the int8 activations of `tokens` rows, for `linear` again and again."""
    return host.staging(_runtime_of(weights), tokens, weights.shape)


def _vector(vector: Any, cols: int, runtime: CupyRuntime) -> Any:
    one = given(vector, "gain or bias")
    check_given(one, "gain or bias", (cols,), runtime.device)
    if one.kind != "fp32":
        raise NearbankError(f"gain and bias must be float32, not {one.kind}")
    return runtime.xp.ascontiguousarray(one.array)


class DeviceCache(OneSequence):
    """A quantised KV cache in GPU memory. Lengths live on the device too, so a captured decode step can be replayed.

    `append` quantises once; `attend` is the fast attention where the format and head dimension have one. An append
    beyond the capacity raises; in a replayed graph, where nothing can raise, `attend` then returns NaN.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        format: Format | str = "int4",  # noqa: A002
    ) -> None:
        runtime, chosen = current_runtime(), as_format(format).for_cache()
        self.pages = device_cache.allocate(runtime, chosen, layers, kv_heads, head_dim, capacity)
        super().__init__(runtime, self.pages)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, scratch included."""
        return self.pages.nbytes + self._scratch_bytes

    def _append(self, layer: int, k: Any, v: Any, kind: int) -> None:
        device_cache.append(self._runtime, self.pages, layer, k, v, kind)
