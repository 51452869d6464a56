"""CUDA kernels as sources (`*.cuh`), and everything about them that needs no GPU.

`layout` repacks weights, `sources` names every kernel and its instances, `host` decides launches, `emulation`
runs the sources on the CPU, `cubin` compiles them for a named architecture. The device itself is
`nearbank.kernels.cupy_backend`'s matter.
"""
