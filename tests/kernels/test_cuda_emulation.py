"""The emulation itself: it must refuse what a GPU would not forgive."""

from __future__ import annotations

import numpy as np
import pytest

from nearbank.errors import NearbankError
from nearbank.kernels.cuda.emulation import EmulatedRuntime, compiler
from nearbank.kernels.cuda.sources import Kernel

pytestmark = pytest.mark.skipif(compiler() is None, reason="emulating CUDA needs a C++ compiler (g++, or CXX)")

SOURCE = """
#include "portable.cuh"
__global__ void reverse(const int* in, int* out) {
    NB_SHARED(int, memory);
    memory[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = memory[blockDim.x - 1 - threadIdx.x];
}
__global__ void half_arrives(int* out) { if (threadIdx.x < 32) __syncthreads(); out[threadIdx.x] = 1; }
__global__ void two_barriers(int* out) {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void lost_lane(int* out) { if (threadIdx.x != 3) out[threadIdx.x] = __shfl_xor_sync(NB_ALL, 1, 1); }
__global__ void mixed_lanes(int* out) {
    if (threadIdx.x & 1) out[threadIdx.x] = __shfl_xor_sync(NB_ALL, 1, 1);
    else out[threadIdx.x] = __shfl_xor_sync(NB_ALL, 2, 1);
}
__global__ void outside(int* out) { out[blockDim.x + threadIdx.x / 63] = 1; }
__global__ void forgets_to_wait(const int* in, int* out) {
    NB_SHARED(int, memory);
    copy_async(memory + 4 * threadIdx.x, in + 4 * threadIdx.x, 16);
    copy_commit();
    out[threadIdx.x] = memory[4 * threadIdx.x];
}
__global__ void waits(const int* in, int* out) {
    NB_SHARED(int, memory);
    copy_async(memory + 4 * threadIdx.x, in + 4 * threadIdx.x, 8);
    copy_commit();
    copy_wait<0>();
    out[threadIdx.x] = memory[4 * threadIdx.x] + memory[4 * threadIdx.x + 2];
}
__global__ void halves(const int* in, int* out, float* back) {
    out[threadIdx.x] = float_to_half(reinterpret_cast<const float*>(in)[threadIdx.x]);
    back[threadIdx.x] = half_to_float(static_cast<uint16_t>(out[threadIdx.x]));
}
"""
NAMES = ("reverse", "half_arrives", "two_barriers", "lost_lane", "mixed_lanes", "outside", "forgets_to_wait", "waits",
         "halves")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulated") / "kernels.cuh"
    path.write_text(SOURCE)
    kernels = {name: Kernel(str(path), name) for name in NAMES}
    runtime = EmulatedRuntime(kernels.values())

    def launch(name, *arrays, threads=64):
        runtime.forget()
        placed = tuple(runtime.asarray(array) for array in arrays)
        runtime.kernel(kernels[name])((1,), threads, 16 * threads, placed)
        return placed

    return launch


def test_shared_memory_and_barriers(run):
    _, out = run("reverse", np.arange(64, dtype=np.int32), np.zeros(64, np.int32))
    np.testing.assert_array_equal(out, np.arange(64)[::-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half_arrives", "divergent barrier"),
        ("two_barriers", "different __syncthreads"),
        ("lost_lane", "divergent barrier"),
        ("mixed_lanes", "different instructions"),
        ("outside", "wrote outside an array"),
    ],
)
def test_faults_are_named(run, name, message):
    with pytest.raises(NearbankError, match=f"{name}: .*{message}"):
        run(name, np.zeros(64, np.int32))


def test_asynchronous_copies_land_when_waited_for(run):
    data = np.arange(1, 257, dtype=np.int32)
    _, early = run("forgets_to_wait", data, np.zeros(64, np.int32))
    assert (early != data[::4]).all()
    _, late = run("waits", data, np.zeros(64, np.int32))
    np.testing.assert_array_equal(late, data[::4])  # and zeros beyond the bytes taken


def test_half_precision_rounds_as_numpy(run):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(256) * 10.0 ** rng.integers(-9, 6, 256)).astype(np.float32)
    values[:4] = [0.0, -0.0, 65519.9, 65520.0]
    _, bits, back = run(
        "halves", values.view(np.int32), np.zeros(256, np.int32), np.zeros(256, np.float32), threads=256
    )
    with np.errstate(over="ignore"):
        want = values.astype(np.float16)
    np.testing.assert_array_equal(bits.astype(np.uint16), want.view(np.uint16))
    np.testing.assert_array_equal(back, want.astype(np.float32))
