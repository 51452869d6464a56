"""Tensors by name, handed out with shapes and values checked, packed and prepared for a backend.

Architectures ask here for what they need; where the tensors come from is the loaders' matter. What nobody asked for
is reported, so that a checkpoint with more in it than the architecture knows is not half read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.kernels import PackedMatrix, prepare
from nearbank.models.execution import Floats, Linear
from nearbank.models.operations import inputs_for
from nearbank.models.rounding import Rounding

Tensor = npt.NDArray[np.float32] | PackedMatrix
SHOWN = 8


@dataclass(frozen=True)
class Precision:
    """How a float checkpoint is held: block matrices, their activations (None: by the weights' format), LM head."""

    weights: str = "fp32"
    inputs: str | None = None
    head: str = "bf16"

    def __post_init__(self) -> None:
        for name in (self.weights, self.head):
            format_named(name)
        if self.inputs not in (None, "int8", "int4", "fp32"):
            raise NearbankError(f"inputs '{self.inputs}'; activations are int8, int4 or fp32")
        if self.inputs in ("int8", "int4") and format_named(self.weights).is_float:
            raise NearbankError(f"{self.inputs} activations need integer weights; these are {self.weights}")

    @property
    def activations(self) -> str:
        """The format that the block matrices' activations are rounded to."""
        return self.inputs or ("fp32" if format_named(self.weights).is_float else inputs_for(self.weights))


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors below `prefix`. Block matrices that are already packed stay as they are."""

    tensors: Mapping[str, Tensor]
    backend: str
    precision: Precision = Precision()
    source: str = "the checkpoint"
    prefix: str = ""
    used: set[str] = field(default_factory=set)

    def at(self, prefix: str) -> Tensors:
        """The same tensors, with names below `prefix`."""
        return Tensors(self.tensors, self.backend, self.precision, self.source, self.prefix + prefix, self.used)

    def has(self, name: str) -> bool:
        """True if the checkpoint has this tensor."""
        return self.prefix + name in self.tensors

    def floats(self, name: str, *shape: int) -> Floats:
        """A float32 tensor, dequantised if packed. Raises on NaN and infinity."""
        tensor = self._named(name, shape)
        values = tensor.dequantise() if isinstance(tensor, PackedMatrix) else tensor
        if not np.isfinite(values).all():
            raise NearbankError(f"{self.source}: tensor {self.prefix}{name} holds NaN or infinity; write it again")
        return values

    def linear(self, name: str, label: str, n: int, k: int, bias: bool = False) -> Linear:
        """The block matrix `name`.weight [n, k], called `label` in traces, with `name`.bias [n] if it has one."""
        weight = self._named(f"{name}.weight", (n, k))
        if not isinstance(weight, PackedMatrix):
            weight = PackedMatrix.quantise(self.floats(f"{name}.weight", n, k), self.precision.weights)
        return self._multiplier(label, weight, self.floats(f"{name}.bias", n) if bias else None, self.precision.inputs)

    def head(self, values: Floats) -> Linear:
        """The LM head from its float values [V, D]; its activations are not rounded."""
        return self._multiplier("lm_head", PackedMatrix.quantise(values, self.precision.head), None, None)

    def check_all_used(self, known_extras: tuple[str, ...] = ()) -> None:
        """Raise `NearbankError` naming tensors that no part of the architecture asked for."""
        extra = sorted(name for name in self.tensors if name not in self.used and not name.endswith(known_extras))
        if extra:
            more = " …" if len(extra) > SHOWN else ""
            raise NearbankError(
                f"{self.source}: {len(extra)} tensors that this architecture does not have: "
                f"{', '.join(extra[:SHOWN])}{more}; is the config.json of another model?"
            )

    def _multiplier(self, label: str, packed: PackedMatrix, bias: Floats | None, inputs: str | None) -> Linear:
        default = "fp32" if packed.format.is_float else inputs_for(packed.format.name)
        rounding = Rounding("int4") if inputs == "int4" else None  # the kernels round to int8 themselves
        return Linear(label, prepare(packed, self.backend), inputs or default, bias, rounding)

    def _named(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self.prefix + name
        if full not in self.tensors:
            raise NearbankError(f"{self.source}: tensor {full} is missing; expected float {list(shape)}")
        tensor = self.tensors[full]
        if tuple(tensor.shape) != shape:
            raise NearbankError(f"{self.source}: tensor {full} is {list(tensor.shape)}; expected {list(shape)}")
        self.used.add(full)
        return tensor
