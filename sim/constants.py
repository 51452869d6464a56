"""Constants of a machine: a value with its unit and its source, refused at once where the unit is not the one meant."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nearbank import units
from nearbank.errors import NearbankError

_LONGEST_PS = 10**12  # no time of a memory is longer than a second, and sums of many fit into 64 bits
_MORE_THAN_NONE = (units.FREQUENCY, units.BIT_RATE, units.SIZE)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Constant(Strict):
    """A value with its unit and where it comes from; `verified` is false when the source was not checked."""

    value: str
    source: str
    verified: bool = True

    @model_validator(mode="after")
    def _has_a_unit(self) -> Constant:
        units.quantity_of(self.value)
        return self


def _of(quantity: units.Quantity) -> BeforeValidator:
    def check(value: object) -> object:
        text = value.get("value") if isinstance(value, dict) else getattr(value, "value", value)
        if not isinstance(value, dict | Constant):
            raise NearbankError(f"{value!r} has no source; write {{value: …, source: …}}")
        number = quantity.parse(text)
        if number < 0:
            raise NearbankError(f"{text!r} is negative")
        if number == 0 and quantity in _MORE_THAN_NONE:
            raise NearbankError(f"{text!r}: expected more than 0")
        if quantity is units.TIME and number > _LONGEST_PS:
            raise NearbankError(f"{text!r}: expected at most 1 s")
        return value

    return BeforeValidator(check)


Time = Annotated[Constant, _of(units.TIME)]
Energy = Annotated[Constant, _of(units.ENERGY)]
Power = Annotated[Constant, _of(units.POWER)]
Voltage = Annotated[Constant, _of(units.VOLTAGE)]
Current = Annotated[Constant, _of(units.CURRENT)]
Size = Annotated[Constant, _of(units.SIZE)]
Frequency = Annotated[Constant, _of(units.FREQUENCY)]
BitRate = Annotated[Constant, _of(units.BIT_RATE)]
Area = Annotated[Constant, _of(units.AREA)]
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
