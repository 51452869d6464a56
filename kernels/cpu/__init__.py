"""The CPU backend, compiled by Numba. Same bits as `nearbank.kernels.reference`."""

from nearbank.kernels.cpu.attention import append, attend
from nearbank.kernels.cpu.matmul import matmul_codes, matmul_floats, matmul_low, prepare
from nearbank.kernels.cpu.quantise import quantise_normed, quantise_rows
from nearbank.kernels.store import allocate, with_pages

__all__ = [
    "allocate",
    "append",
    "attend",
    "matmul_codes",
    "matmul_floats",
    "matmul_low",
    "prepare",
    "quantise_normed",
    "quantise_rows",
    "with_pages",
]
