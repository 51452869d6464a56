"""A GPU or CPU as a model in the open: a few constants with their sources, in a YAML file each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from nearbank import units
from nearbank.errors import NearbankError
from nearbank.sim.constants import BitRate, Constant, Power, Time

_FOLDER = Path(__file__).parent
_FRAMEWORKS = _FOLDER / "frameworks"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Share(_Strict):
    """A part of a whole, above 0 and up to 1, and where it comes from."""

    value: Annotated[float, Field(gt=0, le=1)]
    source: str
    verified: bool = True


class EagerPath(_Strict):
    """How an eager framework uses a processor: bytes per value, bandwidth a plain read reaches, a GEMV's share of it.

    `peak_macs_per_ns` bounds long prompts. `launch` is what the host spends on starting a kernel, for processors that
    are not the host themselves; without it the host computes, one operation after another. `power` is what the run
    draws.
    """

    title: str
    value_bytes: Annotated[int, Field(gt=0, le=8)]
    format_source: str
    peak_macs_per_ns: Annotated[int, Field(gt=0)]
    read_bandwidth: BitRate
    gemv_share: Share
    launch: Time | None = None
    power: Power

    @property
    def bits_per_s(self) -> float:
        """Bandwidth that an eager GEMV reaches."""
        return units.BIT_RATE.parse(_text(self.read_bandwidth)) * self.gemv_share.value

    @property
    def launch_ps(self) -> int | None:
        return None if self.launch is None else units.TIME.parse(_text(self.launch))

    @property
    def power_nw(self) -> int:
        return units.POWER.parse(_text(self.power))


class Processor(_Strict):
    """Peak memory bandwidth, peak multiply-accumulates per second, board power.

    `eager` has the ways an eager framework may run on it, by name; the first is the one that reports use.
    """

    name: str
    title: str
    memory_bandwidth: BitRate
    peak_macs_per_ns: int
    peak_source: str
    board_power: Power
    eager: Mapping[str, EagerPath] = Field(default_factory=dict)

    @property
    def bits_per_s(self) -> int:
        return units.BIT_RATE.parse(_text(self.memory_bandwidth))

    @property
    def power_nw(self) -> int:
        return units.POWER.parse(_text(self.board_power))


class Framework(_Strict):
    """What an eager framework's host spends on a network: time in a layer and outside the layers, and the kernels.

    `measured_as` names the part of the calibration's result that the constants are from.
    """

    name: str
    title: str
    measured_as: str
    layer: Time
    outside_layers: Time
    kernels_per_layer: int
    kernels_outside_layers: int
    kernels_source: str

    @property
    def layer_ps(self) -> int:
        return units.TIME.parse(_text(self.layer))

    @property
    def outside_ps(self) -> int:
        return units.TIME.parse(_text(self.outside_layers))


def _text(constant: Constant) -> str:
    return constant.value


def framework_names() -> list[str]:
    """The eager frameworks that come with the package."""
    return sorted(path.stem for path in _FRAMEWORKS.glob("*.yaml"))


def processor_names() -> list[str]:
    """The modelled processors that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def load_processor(name: str) -> Processor:
    """The processor of that name; `NearbankError` lists the known ones."""
    if name not in processor_names():
        raise NearbankError(f"unknown processor {name!r}; known: {', '.join(processor_names())}")
    return _load(Processor, _FOLDER / f"{name}.yaml")


@cache
def load_framework(name: str) -> Framework:
    """The eager framework of that name; `NearbankError` lists the known ones."""
    if name not in framework_names():
        raise NearbankError(f"unknown framework {name!r}; known: {', '.join(framework_names())}")
    return _load(Framework, _FRAMEWORKS / f"{name}.yaml")


_Kind = TypeVar("_Kind", bound=BaseModel)


def _load(kind: type[_Kind], path: Path) -> _Kind:
    try:
        return kind.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise NearbankError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
