"""A GEMV and element-wise work on HBM-PIM, command by command, as Samsung's software plays them.

Every pseudo-channel does the same. In a GEMV, a tile of outputs is 8 (registers of GRF-B) for each of the 8 units of
each pseudo-channel; lanes of a unit hold partial sums of one output, which the host adds. A tile of inputs is 8
registers of GRF-A, 128 numbers. Even tiles of inputs lie in even banks, odd ones in odd banks, each in two rows.
Registers are written through a reserved row of the odd banks, the mode through one of the even banks.

Which order and which reserved rows: PIMSimulator's kernels. Commands out of their mode are refused; the units' own
program is not simulated.
"""

from __future__ import annotations

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine
from nearbank.sim.program import Builder, Index, Program, Stream
from nearbank.sim.standards.hbm_pim import ALL_BANK_ROW, REGISTER_ROW, SINGLE_BANK_ROW
from nearbank.units import ceil_div

PARKED, ALL_BANK, SINGLE_BANK, REGISTERS = 0x1000, ALL_BANK_ROW, SINGLE_BANK_ROW, REGISTER_ROW
_EVEN, _ODD = 0, 8
_UNITS, _LANES, _VECTORS = 8, 16, 8  # of a pseudo-channel, of a unit, in one register file
_ROWS_PER_TILE = 2
_AHEAD = 4  # banks opened before the first is read
_MODE_BANKS = (0, 8, 4, 12)  # an even and an odd bank of the first and of the third bank group


def gemv(machine: Machine, outputs: int, inputs: int) -> Program:
    """y = W·x with W of `outputs` × `inputs` fp16 weights, from single-bank mode and back to it.

    Raises `NearbankError` if the machine has not the commands, or too few rows below the reserved ones.
    """
    if machine.standard != "hbm-pim":
        raise NearbankError(f"machine {machine.name}: standard {machine.standard}; expected hbm-pim")
    if min(outputs, inputs) < 1:
        raise NearbankError(f"a matrix of {outputs} x {inputs}; expected at least 1 x 1")
    channels = machine.organization.channels
    tiles = ceil_div(outputs, channels * _UNITS * _VECTORS)
    chunks = ceil_div(inputs, _LANES * _VECTORS)
    rows = _ROWS_PER_TILE * ceil_div(chunks, 2)
    if tiles * rows + tiles > PARKED:
        raise NearbankError(f"{outputs} x {inputs} takes {tiles * rows + tiles} rows; {PARKED} are not reserved")
    b = Builder()
    _enter(b)
    with b.loop(tiles) as tile:
        _write_registers(b, _EVEN)  # to PIM mode
        _write_registers(b, _ODD, _VECTORS)
        b.command("PREAB", bank=_EVEN)
        _even_chunk(b, tile * rows)
        with b.loop(ceil_div(chunks, 2) - 1) as pair:
            _open_registers(b, _ODD)
            _write_registers(b, _ODD, _VECTORS)
            _even_chunk(b, tile * rows + pair * _ROWS_PER_TILE + _ROWS_PER_TILE)
        with b.loop(chunks // 2) as pair:
            _odd_chunk(b, tile * rows + pair * _ROWS_PER_TILE)
        _store(b, tile + tiles * rows)
    _leave(b)
    return Program(f"gemv {outputs} x {inputs}", (Stream(tuple(range(channels)), b.body()),))


def elementwise(machine: Machine, numbers: int, operands: int) -> Program:
    """z = x ∘ y (`operands` 2: add, multiply) or z = f(x) (1: ReLU) over vectors of so many fp16 numbers.

    Operands and result lie in rows of their own, in the same columns of all banks; 8 columns at a time go through the
    registers of the even banks' units and then of the odd ones'. Errors as those of `gemv`.
    """
    if machine.standard != "hbm-pim":
        raise NearbankError(f"machine {machine.name}: standard {machine.standard}; expected hbm-pim")
    if numbers < 1 or operands not in (1, 2):
        raise NearbankError(f"{operands} operands of {numbers} numbers; expected 1 or 2, of at least 1")
    organization = machine.organization
    rows = ceil_div(numbers, organization.channels * organization.banks * _LANES * organization.columns)
    if (operands + 1) * rows > PARKED:
        raise NearbankError(f"{operands + 1} vectors of {numbers} take {(operands + 1) * rows} rows of {PARKED}")
    b = Builder()
    _enter(b)
    _write_registers(b, _EVEN)
    b.command("PREA")
    with b.loop(rows) as row, b.loop(organization.columns // _VECTORS) as part:
        for half, other in ((_EVEN, _ODD), (_ODD, _EVEN)):
            _columns(b, "RDAB", half, row, part)
            b.command("PREAB", bank=other)  # its results are written by now
            for operand in range(1, operands):
                b.command("PREAB", bank=half)
                _columns(b, "RDAB", half, row + operand * rows, part)
            b.command("PREAB", bank=half)
            _columns(b, "WRAB", half, row + operands * rows, part)
    _open_registers(b, _EVEN)
    _write_registers(b, _EVEN)
    _leave(b)
    return Program(f"{operands} operands of {numbers}", (Stream(tuple(range(organization.channels)), b.body()),))


def _columns(b: Builder, name: str, half: int, row: Index, part: Index) -> None:
    """Open a row and read or write 8 of its columns; it stays open."""
    b.command("ACTAB", bank=half, row=row)
    with b.loop(_VECTORS) as column:
        b.command(name, bank=half, row=row, column=column + part * _VECTORS)


def _enter(b: Builder) -> None:
    """Park every bank, go to all-bank mode, load the program of the units."""
    banks = [_ODD * (pair % 2) + 2 * group + pair // 2 for pair in range(4) for group in range(4)]
    for at in range(len(banks) + _AHEAD):
        if at < len(banks):
            b.command("ACT", bank=banks[at], row=PARKED)
        if at >= _AHEAD:
            b.command("RD", bank=banks[at - _AHEAD], row=PARKED)
    b.command("PREA")
    for bank in _MODE_BANKS:
        b.command("ACT", bank=bank, row=ALL_BANK)
    for bank in _MODE_BANKS:
        b.command("WR", bank=bank, row=ALL_BANK, column=31)
    b.command("PREA")
    _open_registers(b, _ODD)
    _write_registers(b, _ODD)
    _open_registers(b, _EVEN)


def _leave(b: Builder) -> None:
    """Back to single-bank mode; open and close a row as the software does to have the mode settled."""
    b.command("PREA")
    for half in (_EVEN, _ODD):
        b.command("ACTAB", bank=half, row=SINGLE_BANK)
        b.command("WRREG", bank=half, row=SINGLE_BANK, column=31)
    b.command("PREA")
    for bank in (_EVEN, _ODD):
        b.command("ACT", bank=bank, row=PARKED)
        b.command("RD", bank=bank, row=PARKED)
    b.command("PREA")


def _open_registers(b: Builder, half: int) -> None:
    b.command("ACTAB", bank=half, row=REGISTERS)


def _write_registers(b: Builder, half: int, count: int = 1) -> None:
    with b.loop(count) as register:
        b.command("WRREG", bank=half, row=REGISTERS, column=register, data=register)


def _even_chunk(b: Builder, row: Index) -> None:
    """The registers' row stays open in the odd banks while the even banks' first row is read."""
    _read_row(b, _EVEN, row)
    b.command("PREAB", bank=_ODD)
    b.command("PREAB", bank=_EVEN)
    _read_row(b, _EVEN, row + 1)
    b.command("PREAB", bank=_EVEN)


def _odd_chunk(b: Builder, row: Index) -> None:
    _open_registers(b, _ODD)
    _write_registers(b, _ODD, _VECTORS)
    for part in range(_ROWS_PER_TILE):
        b.command("PREAB", bank=_ODD)
        _read_row(b, _ODD, row + part)
    b.command("PREAB", bank=_ODD)


def _read_row(b: Builder, half: int, row: Index) -> None:
    """Open a row and run one MAC instruction on each of its columns."""
    b.command("ACTAB", bank=half, row=row)
    with b.loop(32) as column:
        b.command("RDAB", bank=half, row=row, column=column, format="fp16")


def _store(b: Builder, row: Index) -> None:
    """GRF-B to the odd banks, then out of PIM mode, which clears it; the registers' rows are open afterwards."""
    b.command("ACTAB", bank=_ODD, row=row)
    with b.loop(_VECTORS) as column:
        b.command("WRAB", bank=_ODD, row=row, column=column)
    _open_registers(b, _EVEN)
    _write_registers(b, _EVEN)
    b.command("PREAB", bank=_ODD)
    _open_registers(b, _ODD)
