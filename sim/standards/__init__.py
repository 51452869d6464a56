"""The standards: one module each, holding its commands and its table of timing rules (`STANDARDS`)."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from nearbank.errors import NearbankError
from nearbank.sim.standard import Standard, delay_names


def standard_named(name: str) -> Standard:
    """The standard of that name; `NearbankError` lists the known ones."""
    known = _standards()
    if name not in known:
        raise NearbankError(f"unknown standard {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


@cache
def _standards() -> dict[str, Standard]:
    modules = (import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__))
    return {standard.name: standard for module in modules for standard in getattr(module, "STANDARDS", ())}


@cache
def timing_names() -> frozenset[str]:
    """The timing values that the rules, latencies and refreshes of any standard know."""
    standards = _standards().values()
    delays = [rule.delay for standard in standards for rule in standard.rules]
    delays += [command.latency for standard in standards for command in standard.commands]
    return frozenset(name for delay in delays for name in delay_names(delay)) | {"tREFI", "tREFIpb"}
