"""Placing a model in memory and lowering its trace to programs.

placed = plan(model, machine, MappingOptions(weights="ternary", kv="bf16", max_context=1024))
programs = (placed.lower(step) for step in trace.steps())
print("\\n".join(describe(placed)))
"""

from nearbank.mapping.account import bytes_off_chip, command_counts, mac_operations
from nearbank.mapping.bounds import Bounds, bounds
from nearbank.mapping.describe import describe
from nearbank.mapping.placement import Placement
from nearbank.mapping.plan import MappingOptions, Plan, plan

__all__ = [
    "Bounds",
    "MappingOptions",
    "Placement",
    "Plan",
    "bounds",
    "bytes_off_chip",
    "command_counts",
    "describe",
    "mac_operations",
    "plan",
]
