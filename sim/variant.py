"""A machine with some values changed, made in memory: for studies and notebooks that ask "what if"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine

_SOURCE = "what if"


def what_if(machine: Machine, what: str, values: Mapping[str, Any]) -> Machine:
    """`machine` with other values at dotted paths, such as {"organization.columns": 128}, named "<machine>, <what>".

    A text where the machine file has a value with unit and source is taken as the value, with "what if" as its
    source and marked unverified. Nothing else changes: delays that hang on a changed value are the caller's to
    change. Raises `NearbankError` for a path that the machine does not have and for values that contradict others.
    """
    content = machine.model_dump(mode="json", by_alias=True, exclude_none=True)
    _forget_what_follows(content)
    for path, value in values.items():
        _put(content, path, value, machine.name)
    content["name"] = f"{machine.name}, {what}"
    try:
        return Machine.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or machine.standard
        raise NearbankError(f"{content['name']}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def _forget_what_follows(content: dict[str, Any]) -> None:
    """Lanes and energies that were worked out from a unit's description: they are worked out again."""
    formats = (content.get("mac_unit") or {}).get("formats", {})
    for name, lanes in formats.items():
        if lanes.get("unit") is not None:
            formats[name] = {key: lanes[key] for key in ("unit", "source", "verified") if key in lanes}


def _put(content: dict[str, Any], path: str, value: object, name: str) -> None:
    node: Any = content
    *parents, last = path.split(".")
    for key in parents:
        node = _child(node, key, path, name)
    before = node.get(last) if isinstance(node, dict) else _child(node, last, path, name)
    if isinstance(before, dict) and "value" in before and not isinstance(value, Mapping):
        value = {"value": str(value), "source": _SOURCE, "verified": False}
    node[last] = value


def _child(node: object, key: str, path: str, name: str) -> Any:
    if not isinstance(node, dict) or key not in node:
        known = ", ".join(sorted(node)) if isinstance(node, dict) else "a single value"
        raise NearbankError(f"machine {name} has no {path}: {key!r} is not among {known}")
    return node[key]
