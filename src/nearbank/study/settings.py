"""Settings of a point, which a study's base and axes name, and the point that they make.

A setting is a field of the run (`FIELDS`: model, formats, counts), a value of the machine with what hangs on it
(`nearbank.study.knobs.KNOBS`, such as channels), or one value of the machine alone, by its dotted path in the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nearbank.cache_formats import cache_format
from nearbank.errors import NearbankError
from nearbank.formats import format_named
from nearbank.models.shape import Shape
from nearbank.models.zoo import find_shape
from nearbank.replay import mapping_named
from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.variant import fields_of, what_if
from nearbank.study.knobs import KNOBS
from nearbank.study.point import Point

Scalar = int | float | str
Settings = Mapping[str, Scalar]


def _count(value: Scalar) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NearbankError(f"expected a whole number of 1 or more, not {value!r}")
    return value


def _cache(value: Scalar) -> str:
    cache_format(str(value))
    return str(value)


def _format(value: Scalar) -> str:
    format_named(str(value))
    return str(value)


# Fields of the run: how each is read, and what it is where a study says nothing. A model must be said.
FIELDS: Mapping[str, tuple[Callable[[Any], Any], Scalar | None]] = MappingProxyType(
    {
        "model": (find_shape, None),
        "machine": (load_machine, "pim-gpt"),
        "weights": (_format, "bf16"),
        "kv": (_cache, "bf16"),
        "mapping": (mapping_named, "pim-gpt"),
        "reuse": (_count, None),
        "prompt": (_count, 1),
        "context": (_count, None),
        "tokens": (_count, 32),
        "steps": (_count, None),
        "batch": (_count, 1),
        "beams": (_count, 1),
    }
)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; nearest: channels", or nothing where no known name is near."""
    names = list(known)
    by_end = {other.rpartition(".")[2]: other for other in names}
    near = difflib.get_close_matches(name, names, 1, 0.6)
    near = near or [by_end[end] for end in difflib.get_close_matches(name.rpartition(".")[2], by_end, 1, 0.7)]
    return f"; nearest: {near[0]}" if near else ""


def check_settings(base: Settings, everything: Sequence[Settings]) -> None:
    """Refuse names that no point can have, and values of the run that nothing can be made of.

    base: what all points share; everything: it, and what any axis changes.
    """
    named = {name for settings in everything for name in settings}
    if "model" not in named:
        raise NearbankError("base: names no model; give one, such as {model: gpt3-xl}")
    if {"prompt", "context"} <= named:
        raise NearbankError("prompt and context were both given; a run begins with a prompt, or at a context")
    machines = [_read("machine", settings["machine"]) for settings in everything if "machine" in settings]
    known = known_settings(machines or [load_machine("pim-gpt")])
    for settings in everything:
        for name, value in settings.items():
            if name not in known:
                raise NearbankError(_unknown(name, known))
            if name in FIELDS:
                _read(name, value)


def known_settings(machines: Iterable[Machine]) -> tuple[str, ...]:
    """Everything that a study on these machines may name."""
    return tuple(dict.fromkeys([*FIELDS, *KNOBS, *(path for machine in machines for path in fields_of(machine))]))


def _unknown(name: str, known: Iterable[str]) -> str:
    return (
        f"unknown field {name!r}{nearest(name, known)}; known: {', '.join((*FIELDS, *KNOBS))}, and the machine's own "
        "(`nearbank study fields MACHINE`)"
    )


def _read(name: str, value: Scalar) -> Any:
    try:
        return FIELDS[name][0](value)
    except NearbankError as error:
        raise NearbankError(f"{name}: {error}") from error


def point_of(settings: Settings) -> Point:
    """The point of these settings. Raises `NearbankError` for values that contradict each other or the machine."""
    run = {name: settings.get(name, default) for name, (_, default) in FIELDS.items()}
    read = {name: _read(name, value) for name, value in run.items() if value is not None}
    machine = changed(read["machine"], {k: v for k, v in settings.items() if k not in FIELDS}, read["weights"])
    begun = _begin(read["model"], read)
    steps = min(read.get("steps", read["tokens"]), read["tokens"])
    return Point(
        shape=read["model"],
        machine=machine,
        weights=read["weights"],
        kv=read["kv"],
        batch=read["batch"],
        beams=read["beams"],
        mapping=read["mapping"],
        reuse=read.get("reuse"),
        stride=read["tokens"] // steps,
        **begun,
    )


def _begin(shape: Shape, read: Mapping[str, Any]) -> dict[str, Any]:
    """A run after a prompt; or, for a context, decoding alone, from where that many positions are attended."""
    if "context" not in read:
        return {"prompt": read["prompt"], "tokens": read["tokens"]}
    if shape.encoder is not None:
        raise NearbankError(f"context: {shape.name} has an encoder, whose source is its prompt; give prompt instead")
    return {"prompt": 1, "tokens": read["context"] + read["tokens"] - 1, "skip": read["context"] - 1}


def changed(machine: Machine, changes: Settings, weights: str) -> Machine:
    """`machine` with knobs turned, one after another, and then all values at dotted paths set at once."""
    for name, value in changes.items():
        if name in KNOBS:
            machine = KNOBS[name].turn(machine, value, weights)
    paths = {name: value for name, value in changes.items() if name not in KNOBS}
    if not paths:
        return machine
    return what_if(machine, ", ".join(f"{path} {value}" for path, value in paths.items()), paths)
