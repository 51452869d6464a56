"""A trace as the compiled schedulers read it: a row for each request, with its place in the memory."""

import numpy as np

from nearbank.compiled import compiled, compiled_part
from nearbank.sim.pointers import pointer
from nearbank.sim.requests import state as fields
from nearbank.sim.requests.state import REQUEST_WIDTH

CH, PC, RA, BG, BA, RO, CO = range(3, 24, 3)  # the fields of `AddressMap.shifts`, three numbers each


@compiled
def fill(requests, addresses, writes, arrivals, shifts):  # type: ignore[no-untyped-def]
    """Write the rows of `requests` [request, field]; how many addresses wrapped around.

    It does what `AddressMap.place` does. `addresses` are bytes, as int64.
    """
    q, s = pointer(requests, 0), pointer(shifts, 0)
    inside = (np.int64(1) << s[1]) - 1
    wrapped = 0
    for number in range(len(addresses)):
        whole = addresses[number] >> s[0]
        block = whole & inside
        wrapped += whole != block
        request = number * REQUEST_WIDTH
        q[request + fields.CHANNEL] = _part(s, CH, block)
        q[request + fields.BANK] = _part(s, PC, block) | _part(s, RA, block) | _part(s, BG, block) | _part(s, BA, block)
        q[request + fields.ROW] = _part(s, RO, block)
        q[request + fields.COLUMN] = _part(s, CO, block)
        q[request + fields.BLOCK] = block
        q[request + fields.WRITE] = writes[number]
        q[request + fields.ARRIVAL] = arrivals[number]
        q[request + fields.MERGED] = 0
    return wrapped


@compiled_part
def _part(s, field, block):  # type: ignore[no-untyped-def]
    return (block >> s[field] & ((1 << s[field + 1]) - 1)) << s[field + 2]
