"""What a study asks: a base, axes over it, and whether to play the whole grid or to search it. A YAML file or a value.

    Study(name="bank", base={"model": "gpt3-xl", "weights": "ternary"}, axes={"lanes": [16, 128], "channels": [8, 16]})

What an axis may name is in `nearbank.study.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from nearbank.errors import NearbankError
from nearbank.study.metrics import COLUMNS, METRICS, metric_named
from nearbank.study.settings import Scalar, check_settings, nearest

STUDY_SCHEMA = "nearbank.study/1"
Changes = Mapping[str, Scalar]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Search(_Strict):
    """Let Optuna choose `trials` points of the grid, `together` at a time, to make `minimise` small.

    More than one metric asks for the front that nothing beats. The same seed chooses the same points, on however many
    processes and after however many interruptions.
    """

    minimise: tuple[str, ...] = Field(min_length=1)
    trials: int = Field(ge=1, le=100_000)
    seed: int = 0
    together: int = Field(default=4, ge=1, le=1024)

    @field_validator("minimise", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Search:
        for name in self.minimise:
            if not metric_named(name).less_is_better:
                lower = ", ".join(key for key, metric in METRICS.items() if metric.less_is_better)
                raise NearbankError(f"search.minimise: more {name} is better; expected one of: {lower}")
        return self


class Quality(_Strict):
    """A table of what a choice costs in quality, such as a loss, by the value of one setting; less is better."""

    title: str
    source: str
    by: str
    values: dict[str, float]

    def of(self, settings: Changes) -> float | None:
        """The value for a point; None, not zero, where the table has none."""
        return self.values.get(str(settings.get(self.by)))


class Study(_Strict):
    """`base`: settings of every point. `axes`: by name the values of a setting, {from, to, step or times}, or bundles:
    labels with the settings that each of them changes together."""

    study_schema: Literal["nearbank.study/1"] = Field(default="nearbank.study/1", alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    base: dict[str, Scalar] = {}
    axes: dict[str, Any]
    search: Search | None = None
    quality: Quality | None = None

    def __init__(self, /, **content: Any) -> None:
        known = [field.alias or name for name, field in type(self).model_fields.items()]
        for key in content:
            if key not in known:
                raise NearbankError(f"unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")
        try:
            super().__init__(**content)
        except ValidationError as error:
            raise NearbankError(_complaint(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if not self.axes:
            raise NearbankError("axes: is empty; expected at least one, such as {channels: [4, 8, 16]}")
        everything: list[Changes] = [self.base]
        everything += [changes for choices in self.choices.values() for changes in choices.values()]
        check_settings(self.base, everything)
        self._check_overlaps()
        if self.quality and self.quality.by not in {name for changes in everything for name in changes}:
            raise NearbankError(f"quality.by: no point sets {self.quality.by!r}; expected a setting of base or axes")
        if self.search and "quality" in self.search.minimise and self.quality is None:
            raise NearbankError("search.minimise: quality needs a quality table; give one under 'quality:'")
        return self

    def _check_overlaps(self) -> None:
        for axis in self.choices:
            if axis in METRICS or axis in COLUMNS:
                raise NearbankError(f"axes: {axis!r} is a column of the results; expected another name")
        owners: dict[str, str] = {}
        for axis, choices in self.choices.items():
            for name in {name for changes in choices.values() for name in changes}:
                if owners.setdefault(name, axis) != axis:
                    raise NearbankError(f"axes: {owners[name]} and {axis} both set {name}; expected one of them")

    @property
    def choices(self) -> dict[str, dict[Scalar, Changes]]:
        """For every axis its values or labels, with the settings that each of them makes."""
        return {name: _choices(name, given) for name, given in self.axes.items()}

    @property
    def size(self) -> int:
        """Points of the grid."""
        return prod(len(choices) for choices in self.choices.values())

    def grid(self) -> list[dict[str, Scalar]]:
        """Every combination of the axes' values, the last axis fastest."""
        return [dict(zip(self.choices, values, strict=True)) for values in product(*self.choices.values())]

    def settings(self, at: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """All settings of the point that has these values on the axes."""
        choices = self.choices
        changed = {name: value for axis, chosen in at.items() for name, value in choices[axis][chosen].items()}
        return {**self.base, **changed}

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place + ': ' if place else ''}{str(first['msg']).removeprefix('Value error, ')}"


def _choices(axis: str, given: object) -> dict[Scalar, Changes]:
    if isinstance(given, Mapping) and given and all(isinstance(changes, Mapping) for changes in given.values()):
        return {str(label): dict(changes) for label, changes in given.items()}
    values = _range(axis, given) if isinstance(given, Mapping) else given
    if not isinstance(values, list | tuple | range) or not values:
        raise NearbankError(f"axes.{axis}: expected values, such as [4, 8], {{from: 1, to: 64, times: 2}}, or bundles")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise NearbankError(f"axes.{axis}: {value!r} is neither a number nor a text")
    if len(set(values)) < len(values):
        raise NearbankError(f"axes.{axis}: a value occurs twice; expected each once")
    return {value: {axis: value} for value in values}


def _range(axis: str, given: Mapping[Any, Any]) -> list[int]:
    """From one whole number to another, in steps or in multiples."""
    where = f"axes.{axis}: {dict(given)}"
    if not {"from", "to"} <= set(given) or len(given) != 3 or not ({"step", "times"} & set(given)):
        raise NearbankError(f"{where}: expected {{from: 1, to: 64, times: 2}} or {{from: 8, to: 64, step: 8}}")
    if not all(isinstance(value, int) for value in given.values()):
        raise NearbankError(f"{where}: expected whole numbers")
    value, last = given["from"], given["to"]
    step, times = given.get("step", 0), given.get("times", 1)
    if value < 1 or last < value or (step < 1 and times < 2):
        raise NearbankError(f"{where}: expected 1 <= from <= to, and a step of 1 or times of 2 or more")
    values = []
    while value <= last:
        values.append(value)
        value = value * times + step
    return values


def load_study(path: Path) -> Study:
    """The study in a YAML file; `NearbankError` names the file, the key and what was expected."""
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise NearbankError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    return parse_study(content, str(path))


def parse_study(content: object, where: str) -> Study:
    """A study from plain values; `NearbankError` says where it is wrong."""
    if not isinstance(content, dict):
        raise NearbankError(f"{where}: expected a mapping of keys, such as 'schema: {STUDY_SCHEMA}'")
    try:
        return Study(**{str(key): value for key, value in content.items()})
    except NearbankError as error:
        raise NearbankError(f"{where}: {error}") from error
