"""Calls of torch caught while a model runs on the meta device, which holds shapes and no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nearbank.errors import NearbankError
from nearbank.models.observed import Seen

ALIASES = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__add__": "add", "add_": "add", "__radd__": "add",
           "__iadd__": "add"}  # fmt: skip
FORMATS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
LONGEST_REASON = 160


def run_caught(function: Callable[..., Any], **inputs: Any) -> tuple[Any, list[Seen]]:
    """What a call without gradients returns, and the calls with tensors inside it. `NearbankError` if it fails."""
    import torch

    catcher = _catcher()
    try:
        with torch.no_grad(), catcher:
            out = function(**inputs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise NearbankError(f"the model does not run without data (meta device): {reason(error)}") from error
    return out, catcher.calls


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
            if tensors:
                if name == "embedding":
                    tensors = sorted(tensors, key=lambda t: not t.is_floating_point())
                self.calls.append(_seen(ALIASES.get(name, name), tensors))
            return func(*args, **(kwargs or {}))

    return Catcher()


def _seen(name: str, tensors: list[Any]) -> Seen:
    floats = [str(t.dtype) for t in tensors if t.is_floating_point()]
    shapes = tuple(tuple(int(n) for n in t.shape) for t in tensors)
    return Seen(name, shapes, FORMATS.get(floats[0], "fp32") if floats else "fp32")
