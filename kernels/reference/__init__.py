"""The definition of every kernel, in NumPy. Other backends return these bits.

Sums of integers are exact. A sum of floats over `n` terms runs in 16 lanes: lane l adds the terms
l, l + 16, l + 32 … one after the other, then lane l adds lane l + 8, l + 4, l + 2, l + 1. No fused
multiply-add. So the result is fixed whatever the vector width, and for one row it does not depend on
the rows beside it.
"""

from nearbank.kernels.reference.attention import append, attend
from nearbank.kernels.reference.matmul import matmul_codes, matmul_floats, prepare
from nearbank.kernels.reference.quantise import quantise_rows
from nearbank.kernels.store import allocate, with_pages

__all__ = ["allocate", "append", "attend", "matmul_codes", "matmul_floats", "prepare", "quantise_rows", "with_pages"]
