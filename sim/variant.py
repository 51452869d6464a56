"""A machine with some values changed, made in memory: for studies and notebooks that ask "what if"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nearbank.errors import NearbankError
from nearbank.sim.constants import Constant
from nearbank.sim.machine import Lanes, Machine, check_timing
from nearbank.units import quantity_of

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
        changed = Machine.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or machine.standard
        raise NearbankError(f"{content['name']}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    check_timing(changed, changed.name)
    return changed


def fields_of(machine: Machine) -> tuple[str, ...]:
    """Dotted paths of every value that `what_if` can change on `machine`, also those that its parts leave open."""
    skipped = ("schema", "name", "title", "source", "verified")
    return tuple(path for path in _paths(type(machine), machine, "") if path.rpartition(".")[2] not in skipped)


def _paths(kind: Any, value: object, path: str) -> Iterator[str]:
    """Paths below a part of `kind`; none below a part that is absent."""
    models = [part for part in _parts(kind) if isinstance(part, type) and issubclass(part, BaseModel)]
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _paths(type(child), child, f"{path}.{key}")
    elif models and models[0] is not Constant:
        for name, field in _open_fields(models[0], value):
            yield from _paths(field.annotation, getattr(value, name, None), f"{path}.{field.alias or name}")
    else:
        yield path.removeprefix(".")


def _open_fields(kind: type[BaseModel], value: object) -> Iterator[tuple[str, FieldInfo]]:
    """Fields of a part that is there, without those that follow from another one."""
    for name, field in kind.model_fields.items() if value is not None else ():
        if not (isinstance(value, Lanes) and value.unit is not None) or name == "unit":
            yield name, field


def _parts(kind: Any) -> Iterator[Any]:
    """The types that an annotation is made of: itself, or those of a union or of what is annotated."""
    inside = get_args(kind)
    yield from (part for each in inside for part in _parts(each)) if inside else (kind,)


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
    constant = isinstance(before, dict) and "value" in before
    if not isinstance(value, Mapping) and (constant or (before is None and _has_a_unit(value))):
        value = {"value": str(value), "source": _SOURCE, "verified": False}
    node[last] = value


def _has_a_unit(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(quantity_of(value))
    except NearbankError:
        return False


def _child(node: object, key: str, path: str, name: str) -> Any:
    if not isinstance(node, dict) or key not in node:
        known = ", ".join(sorted(node)) if isinstance(node, dict) else "a single value"
        raise NearbankError(f"machine {name} has no {path}: {key!r} is not among {known}")
    return node[key]
