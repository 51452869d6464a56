"""Calls of torch caught while a model runs on the meta device, which holds shapes and no data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nearbank.errors import NearbankError
from nearbank.models.observed import Seen, Shape

ALIASES = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__add__": "add", "add_": "add", "__radd__": "add",
           "__iadd__": "add"}  # fmt: skip
FORMATS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
LONGEST_REASON = 160
CHECKS_OFF = "TRANSFORMERS_DISABLE_TORCH_CHECK"


def run_caught(function: Callable[..., Any], **inputs: Any) -> tuple[Any, list[Seen]]:
    """What a call without gradients returns, and the calls with tensors inside it. `NearbankError` if it fails."""
    import torch

    catcher = _catcher()
    try:
        with _values_unchecked(), torch.no_grad(), catcher:
            out = function(**inputs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise NearbankError(f"the model does not run without data (meta device): {reason(error)}") from error
    return out, catcher.calls


@contextmanager
def _values_unchecked() -> Iterator[None]:
    """transformers' own checks of values are off: on the meta device there are no values to look at."""
    before = os.environ.get(CHECKS_OFF)
    os.environ[CHECKS_OFF] = "1"
    try:
        yield
    finally:
        os.environ.pop(CHECKS_OFF) if before is None else os.environ.update({CHECKS_OFF: before})


def reason(error: Exception) -> str:
    """The beginning of another package's message, on one line."""
    return " ".join(str(error).split())[:LONGEST_REASON]


def _catcher() -> Any:
    """A torch mode that keeps the name, shapes and format of every call with tensors."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Catcher(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Seen] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
            name = getattr(func, "__name__", str(func))
            if name == "einsum":
                self.calls.extend(_einsum(*args))
            elif tensors:
                if name == "embedding":
                    tensors = sorted(tensors, key=lambda t: not t.is_floating_point())
                self.calls.append(_seen(ALIASES.get(name, name), tensors))
            return func(*args, **(kwargs or {}))

    return Catcher()


def _einsum(equation: str, *operands: Any) -> list[Seen]:
    """A sum over products of two tensors as the batched product that it is."""
    tensors = list(operands[0]) if isinstance(operands[0], (list, tuple)) else list(operands)
    named = _seen("einsum", tensors)
    shapes = product_shapes(equation, named.shapes)
    return [named if shapes is None else replace(named, name=shapes[0], shapes=shapes[1:])]


def product_shapes(equation: str, shapes: tuple[Shape, ...]) -> tuple[str, Shape, Shape] | None:
    """An equation of two operands as the product of a […, m, k] and b […, k, n]: its name and both shapes.

    What both operands and the result have is a batch; an ellipsis stands first. "pooled": the sum runs over what a
    keeps before its last axis, as where tokens are added up in groups. None for what is no such product.
    """
    left, _, out = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    if len(labels) != 2 or len(shapes) != 2 or not out:
        return None
    a, b = (_sizes(label, shape) for label, shape in zip(labels, shapes, strict=True))
    batch = [axis for axis in a if axis in b and axis[0] in out]
    summed = [axis for axis in a if axis in b and axis not in batch]
    rows, columns = ([axis for axis in x if axis not in batch and axis not in summed] for x in (a, b))
    if any(len(axes) != 1 for axes in (summed, rows, columns)):
        return None
    sizes = tuple(a[axis] for axis in batch)
    m, k, n = a[rows[0]], a[summed[0]], b[columns[0]]
    name = "batched" if [axis for axis in a if axis not in batch][-1] == summed[0] else "pooled"
    return name, (*sizes, m, k), (*sizes, k, n)


def _sizes(label: str, shape: Shape) -> dict[str, int]:
    """The size of each axis by its letter, those of an ellipsis as ".0", ".1" and so on."""
    free = len(shape) - len(label.replace("...", ""))
    before, dots, after = label.partition("...")
    return dict(zip([*before, *(f".{i}" for i in range(free) if dots), *after], shape, strict=True))


def _seen(name: str, tensors: list[Any]) -> Seen:
    floats = [str(t.dtype) for t in tensors if t.is_floating_point()]
    shapes = tuple(tuple(int(n) for n in t.shape) for t in tensors)
    return Seen(name, shapes, FORMATS.get(floats[0], "fp32") if floats else "fp32")
