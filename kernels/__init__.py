"""Low-bit matrix multiplication and the KV cache, one folder per backend beside the NumPy definition.

    packed = PackedMatrix.quantise(weights, "ternary")     # neutral layout, as in files
    matrix = prepare(packed, backend="auto")               # repacked once, for this machine
    y = linear(x, matrix)                                  # x [M, K] float32 → y [M, N] float32

    cache = KVCache(layers, kv_heads, head_dim, capacity, format="int4")
    cache.append(layer, k, v)
    context = cache.attend(layer, q)

All backends return the same bits: integer sums are exact, and every floating sum has one written order
(`nearbank.kernels.reference`). A result for one token does not depend on the tokens computed beside it.
"""

from nearbank.kernels.activations import Rows, quantise_rows
from nearbank.kernels.backends import BACKENDS, available_backends, backend_named
from nearbank.kernels.cache import KVCache
from nearbank.kernels.matmul import Matrix, linear, linear_codes, prepare
from nearbank.kernels.packed import PackedMatrix
from nearbank.kernels.pool import PagePool
from nearbank.kernels.support import Support, supported
from nearbank.kernels.threads import set_threads, thread_count
from nearbank.kernels.window import Channels, WindowedKVCache

__all__ = [
    "BACKENDS",
    "Channels",
    "KVCache",
    "Matrix",
    "PackedMatrix",
    "PagePool",
    "Rows",
    "Support",
    "WindowedKVCache",
    "available_backends",
    "backend_named",
    "linear",
    "linear_codes",
    "prepare",
    "quantise_rows",
    "set_threads",
    "supported",
    "thread_count",
]
