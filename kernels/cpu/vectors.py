"""A few words over llvmlite for writing loops over vectors inside Numba intrinsics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir as ir

Value = Any
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
CACHE_LINE = 64
PREFETCH_BYTES = 2048  # of 512, 1024 and 2048 the fastest for a cold matrix
BYTE_POINTER = I8.as_pointer()


def vector(element: Any, count: int) -> Any:
    """The type of `count` elements."""
    return ir.VectorType(element, count)


def constant(kind: Any, value: float) -> Value:
    """A vector with one value in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def repeated_byte(byte: int) -> int:
    """Four equal bytes as a signed 32-bit number."""
    return int.from_bytes(bytes([byte] * 4), "little", signed=True)


def data(context: Any, builder: Any, sig: Any, args: Sequence[Value], index: int, offset: int) -> Value:
    """Byte pointer to element args[offset] of the array args[index]."""
    array = context.make_array(sig.args[index])(context, builder, args[index])
    return builder.bitcast(builder.gep(array.data, [args[offset]]), BYTE_POINTER)


def data_at(context: Any, builder: Any, sig: Any, args: Sequence[Value], index: int) -> Value:
    """Byte pointer to the first element of the array args[index]."""
    array = context.make_array(sig.args[index])(context, builder, args[index])
    return builder.bitcast(array.data, BYTE_POINTER)


def at(builder: Any, pointer: Value, byte: Value | int) -> Value:
    """The byte pointer `byte` further on."""
    return builder.gep(pointer, [I64(byte) if isinstance(byte, int) else byte])


def load(builder: Any, kind: Any, pointer: Value) -> Value:
    """Load without an alignment promise."""
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def store(builder: Any, value: Value, pointer: Value) -> None:
    """Store without an alignment promise."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)


def prefetch_block(builder: Any, block: Value) -> None:
    """Ask for the two cache lines `PREFETCH_BYTES` after a block of 128 bytes: a hint, which never faults.

    Tiles are one stream in memory, so the first lines of the next tile are on their way when one ends.
    """
    for line in (0, CACHE_LINE):
        prefetch(builder, at(builder, block, PREFETCH_BYTES + line))


def prefetch(builder: Any, address: Value) -> None:
    """Ask for one cache line: a hint, which never faults."""
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [address, I32(0), I32(3), I32(1)])


def splat(builder: Any, scalar: Value, count: int) -> Value:
    """One scalar in every lane."""
    kind = vector(scalar.type, count)
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, scalar, I32(0))
    return builder.shuffle_vector(first, empty, ir.Constant(vector(I32, count), [0] * count))


def call(builder: Any, name: str, result: Any, arguments: Sequence[Value]) -> Value:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=kind), arguments)


def loop(
    builder: Any, count: Value, start: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """for i in range(count): carried = body(i, carried). Returns the last `carried`."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    carried = [builder.phi(value.type) for value in start]
    for phi, value in zip(carried, start, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    for phi, value in zip(carried, body(index, list(carried)), strict=True):
        phi.add_incoming(value, builder.block)
    index.add_incoming(builder.add(index, I64(1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return list(carried)
