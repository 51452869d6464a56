"""The CUDA kernels to learn from and to change in a notebook: plain Python, compiled by Numba for the GPU.

Same results, bit for bit, as `nearbank.kernels.reference`; not the speed of `nearbank.kernels.cupy_backend`.
With NUMBA_ENABLE_CUDASIM=1 all of it runs in Numba's simulator, without a GPU.
"""

from nearbank.kernels.numba_cuda.cache import allocate, append, attend, with_pages
from nearbank.kernels.numba_cuda.product import matmul_codes, matmul_floats, prepare
from nearbank.kernels.numba_cuda.rounding import quantise_rows

__all__ = ["allocate", "append", "attend", "matmul_codes", "matmul_floats", "prepare", "quantise_rows", "with_pages"]
