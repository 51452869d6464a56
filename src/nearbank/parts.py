"""How functions for compiled functions alone are compiled: typed, lowered and handed on, without machine code.

Numba makes machine code of every function by itself, out of all that it calls, so what lies deep in a chain of calls is
optimised and translated again for every caller above it. A part is not: the function that Python calls takes in the
bodies of all parts below it, as they were lowered, and is optimised and translated once, as a whole. That takes half
the time and sees more. A part also skips the passes for what it does not contain: closures, `with`, list comprehensions
and `raise`, which Numba refuses here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NoPythonSupportedFeatureValidation,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode

_PASSES = (
    (TranslateByteCode, "read the bytecode"),
    (FixupArgs, "count the arguments"),
    (IRProcessing, "find where variables live"),
    (ReconstructSSA, "assign every variable once"),
    (NopythonTypeInference, "infer types"),
    (PreLowerStripPhis, "replace phi nodes"),
    (NoPythonSupportedFeatureValidation, "refuse what is not supported"),
    (IRLegalization, "check before lowering"),
    (NativeLowering, "lower to LLVM"),
    (NoPythonBackend, "finish"),
)


class PartCompiler(CompilerBase):
    """Numba's compiler, up to the point where machine code would be made."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile the function into a library that only holds its body."""
        library: Any = _PartLibrary
        self.state.library = library(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)  # type: ignore[no-untyped-call]

    def define_pipelines(self) -> list[Any]:
        """The passes, in order."""
        passes: Any = PassManager("part")  # type: ignore[no-untyped-call]
        for one, purpose in _PASSES:
            passes.add_pass(one, purpose)
        passes.finalize()
        return [passes]


class _PartLibrary(JITCodeLibrary):
    """A function's body and those of all parts that it calls, to be linked into the function that Python calls."""

    def _optimize_final_module(self) -> None:
        """Left to the caller."""

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """None is there, which is what Numba writes as 0."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    @property
    def codegen(self) -> Any:
        """Numba asks it to set the function's environment, which here needs a place first."""
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """Make the place of the function's environment, which is in no machine code yet, and fill it."""
        codegen: Any = self._codegen
        module = binding.parse_assembly(f'@"{env_name}" = common global ptr null')
        module.triple, module.data_layout = binding.get_process_triple(), codegen._data_layout
        codegen._add_module(module)
        codegen.set_env(env_name, env)
