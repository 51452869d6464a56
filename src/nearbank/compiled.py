"""Functions compiled by Numba and kept on disk until any of their sources changes.

Numba's own cache looks at one file, that of the function called from Python: a change in a compiled function that this
one calls, but that lies elsewhere, would go unnoticed. Here the stamp is that of the function's module and of all
modules of the same package that it imports at its top, directly or not. Compiled code may so be cut into files.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.caching import FunctionCache

from nearbank.parts import PartCompiler


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A compiled function that Python calls; cached on disk, by the types it is called with.

    Numba's options may be given: `@compiled(nogil=True)`.
    """
    if function is None:
        return partial(compiled, **options)
    make: Any = njit
    dispatcher = make(**options)(function)
    cache: Any = _Cache
    dispatcher._cache = cache(function)  # what `njit(cache=True)` does, with our stamp
    dispatcher._compiler.compile = partial(_without_gc, dispatcher._compiler.compile)
    return dispatcher


def _without_gc(compile_: Callable[..., Any], *signature: Any) -> Any:
    """Compilation makes many objects that live on; to look for garbage among them takes up to a tenth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return compile_(*signature)
    finally:
        if was_on:
            gc.enable()


def compiled_part(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A function for compiled functions alone, which takes half the time to compile: `nearbank.parts` says why."""
    if function is None:
        return partial(compiled_part, **options)
    make: Any = njit
    part = make(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=PartCompiler, **options)(function)
    part.get_call_template = partial(_call_template, part.get_call_template)
    return part


def _call_template(original: Callable[..., Any], args: Sequence[Any], kws: Mapping[str, Any]) -> Any:
    """What a call compiles: once for all integers, where Numba would compile anew for every constant it is given."""
    plain: Any = types.unliteral
    return original([plain(arg) for arg in args], {name: plain(arg) for name, arg in kws.items()})


class _Cache(FunctionCache):
    """Numba's cache with the stamp of all sources, read when the function is first wanted."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        self._cache_file._source_stamp = source_stamp(self._py_func.__module__)
        return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]


@cache
def source_stamp(module: str) -> str:
    """A hash of the sources of a module and of what it imports from its own package."""
    found: set[str] = set()
    _collect(module, found)
    whole = hashlib.sha256()
    for name in sorted(found):
        whole.update(name.encode() + b"\0" + _source(name))
    return whole.hexdigest()


def _collect(module: str, found: set[str]) -> None:
    if module in found:
        return
    found.add(module)
    for name in _imports(module):
        _collect(name, found)


def _imports(module: str) -> set[str]:
    """The package's modules that `module` imports at its top; those imported later are not in compiled code."""
    package = module.split(".", maxsplit=1)[0] + "."
    names: set[str] = set()
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & sys.modules.keys()) or {node.module}
    return {name for name in names if name.startswith(package)}


def _source(module: str) -> bytes:
    path = sys.modules[module].__file__
    return Path(path).read_bytes() if path else b""
