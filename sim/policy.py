"""What a memory controller decides: queues, which request goes first, when rows close, how addresses spread.

A machine may carry a policy (`controller:` in its file). Two are given by name, those of the two simulators whose
traces this package reads: "ramulator" and "dramsim3". Timing is none of a policy's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nearbank.errors import NearbankError

_Length = Annotated[int, Field(gt=0, le=4096)]


class Policy(BaseModel):
    """One controller per channel.

    `queues` "shared": one queue of reads and one of writes; of the commands they call for, the oldest that is ready
    issues, and requests whose row was opened for them go before all others. "per_bank": a read and a write queue that
    feed, one request a cycle, a command queue per bank; banks take turns, and a row stays open while its bank's queue
    holds hits, up to `row_hit_cap` of them when another row waits.

    `keep_hits` (shared): a request may not close a row that an older request still hits.
    `write_high`, `write_low` (shared): fractions of the write queue at which draining writes starts and ends.
    `write_idle` (per_bank): with all banks' queues empty, draining starts above so many writes; else when full.
    `row_policy`: "open" leaves rows open; "closed" closes a row with its `row_cap`-th column access; "timeout" closes
    a row that had no column access for `row_timeout` cycles.
    `mapping`: two-letter fields from the most significant on: ro, ba, bg, ra, pc, co, ch. "ba" without "bg" stands for
    both, bank first, and "ra" without "pc" for rank, then pseudo-channel; fields of size one may be left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    queues: Literal["shared", "per_bank"] = "shared"
    keep_hits: bool = True
    read_queue: _Length = 32
    write_queue: _Length = 32
    bank_queue: _Length = 8
    write_high: float = Field(default=0.8, gt=0, le=1)
    write_low: float = Field(default=0.2, ge=0, le=1)
    write_idle: _Length = 8
    row_hit_cap: _Length = 4
    row_policy: Literal["open", "closed", "timeout"] = "open"
    row_cap: _Length = 1
    row_timeout: Annotated[int, Field(gt=0, le=2**31)] = 1000
    mapping: str = "RoBaRaCoCh"

    @model_validator(mode="after")
    def _drains_before_it_stops(self) -> Policy:
        if self.write_low > self.write_high:
            raise ValueError(
                f"write_low {self.write_low} is above write_high {self.write_high}; "
                "draining writes ends at write_low, so that must not be more"
            )
        return self


POLICIES = {
    "ramulator": Policy(),
    "dramsim3": Policy(queues="per_bank", write_idle=8, mapping="rochrababgco"),
}


def policy_with(policy: Policy, changes: Mapping[str, str]) -> Policy:
    """The policy with some values changed, given as text; `NearbankError` names the key and what it may be."""
    try:
        return Policy.model_validate(policy.model_dump() | dict(changes))
    except ValidationError as error:
        raise NearbankError(f"policy {_complaint(error, changes)}") from error


def _complaint(error: ValidationError, changes: Mapping[str, str]) -> str:
    """What is wrong with which key; some values are wrong only together."""
    first = error.errors()[0]
    what = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"{', '.join(f'{key}={value}' for key, value in changes.items())}: {what}"
    key = str(first["loc"][0])
    if key not in Policy.model_fields:
        what = f"unknown key; known: {', '.join(Policy.model_fields)}"
    return f"{key}={changes.get(key, '')}: {what}"


def policy_named(name: str) -> Policy:
    """The policy of that name; `NearbankError` lists the known ones."""
    if name not in POLICIES:
        raise NearbankError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}")
    return POLICIES[name]
