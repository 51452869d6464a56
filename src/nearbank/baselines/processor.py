"""A GPU or CPU as a model in the open: a few constants with their sources, in a YAML file each."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML

from nearbank import units
from nearbank.errors import NearbankError
from nearbank.sim.machine import BitRate, Constant, Power, Time

_FOLDER = Path(__file__).parent


class Processor(BaseModel):
    """Peak memory bandwidth, peak multiply-accumulates per second, launch overhead per operation, board power."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    memory_bandwidth: BitRate
    peak_macs_per_ns: int
    peak_source: str
    launch_overhead: Time
    board_power: Power

    @property
    def bits_per_s(self) -> int:
        return units.BIT_RATE.parse(_text(self.memory_bandwidth))

    @property
    def launch_ps(self) -> int:
        return units.TIME.parse(_text(self.launch_overhead))

    @property
    def power_nw(self) -> int:
        return units.POWER.parse(_text(self.board_power))


def _text(constant: Constant) -> str:
    return constant.value


def processor_names() -> list[str]:
    """The modelled processors that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def load_processor(name: str) -> Processor:
    """The processor of that name; `NearbankError` lists the known ones."""
    if name not in processor_names():
        raise NearbankError(f"unknown processor {name!r}; known: {', '.join(processor_names())}")
    path = _FOLDER / f"{name}.yaml"
    try:
        return Processor.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise NearbankError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
