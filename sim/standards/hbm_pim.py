"""HBM2 with Samsung's PIM units (Lee et al., ISCA 2021), one unit for an even and an odd bank.

In single-bank mode ACT, PRE, RD and WR reach one bank, as in HBM2. In all-bank mode the even banks or the odd ones act
as one: ACTAB, PREAB, WRAB. RDAB is a read in PIM mode: it makes every unit run its next instruction on the column that
its even (or odd) bank reads. WRAB moves a register of every unit to its bank; WRREG writes a register of all units
from the pins (the input vector in GRF-A, the program in the CRF, the mode): the row of the registers must be open.
Modes change by ACT and WR to reserved rows (`sim.hbm_pim`), so they take the time of these. A mode says which column
commands may come; those to rows are free, since a refresh closes and opens rows as they lie. In all-bank mode all
delays are those within a bank group.

ACT16, MACAB, PREA, WRGB, RDMAC and WRBIAS are what `mapping` writes for every memory with units at its banks; they
stand for work in PIM mode without naming its changes, and no mode refuses them. A MACAB is the read of the even column
and then of the odd one (tCCDAB, two steps of the shared unit).

A machine numbers the even banks first, then the odd ones, and calls each half a rank: so a half is one run of banks.
Between halves even different bank groups keep the distance of one bank group, which is never too short.
"""

from nearbank.sim.standard import Change, CommandSpec, Effect, Modes, Row, Rule, Scope, Standard

_BANK, _GROUP, _HALF, _ALL, _CHANNEL = (
    Scope.BANK,
    Scope.BANK_GROUP,
    Scope.RANK,
    Scope.ALL_BANKS,
    Scope.CHANNEL,
)

_COMMANDS = (
    CommandSpec("ACT", _BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACTAB", _HALF, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACT16", _ALL, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", _BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREAB", _HALF, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", _ALL, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", _BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", _BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("RDAB", _HALF, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("WRAB", _HALF, Row.OPEN, latency="tCWL + tBL"),
    CommandSpec("WRREG", _HALF, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("WRGB", _CHANNEL, latency="tCWL + tBL", bursts=1),
    CommandSpec("MACSB", _BANK, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("MACAB", _ALL, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("RDMAC", _CHANNEL, latency="tCL + tBL", bursts=1),
    CommandSpec("WRBIAS", _CHANNEL, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", _ALL, Row.CLOSED),
    CommandSpec("TMOD", _CHANNEL),
)

_ACTS = ("ACT", "ACTAB", "ACT16")
_WIDE_ACTS = ("ACTAB", "ACT16")
_PRES = ("PRE", "PREAB", "PREA")
_MACS = ("RDAB", "MACSB", "MACAB")
_NARROW_READS = ("RD", "MACSB")
_WIDE_READS = ("RDAB", "MACAB")
_WIDE_WRITES = ("WRAB", "WRREG")
_READS = (*_NARROW_READS, *_WIDE_READS)
_WRITES = ("WR", *_WIDE_WRITES)
_BUS_READS = ("RD", "RDMAC")
_BUS_WRITES = ("WR", "WRREG", "WRGB", "WRBIAS")
_EVERY = tuple(command.name for command in _COMMANDS)

_BANK_RULES = (
    Rule(_BANK, _ACTS, _READS, "tRCDRD|tRCD"),
    Rule(_BANK, _ACTS, _WRITES, "tRCDWR|tRCD"),
    Rule(_BANK, _ACTS, _PRES, "tRAS"),
    Rule(_BANK, _ACTS, (*_ACTS, "REFab"), "tRC"),
    Rule(_BANK, _READS, _PRES, "tRTP"),
    Rule(_BANK, _WRITES, _PRES, "tCWL + tBL + tWR"),
    Rule(_BANK, _PRES, (*_ACTS, "REFab"), "tRP"),
)

_ROW_RULES = (
    Rule(_CHANNEL, _ACTS, _ACTS, "tRRDS"),
    Rule(_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    Rule(_HALF, ("ACT",), ("ACT",), "tRRDL", others=True),
    Rule(_CHANNEL, _WIDE_ACTS, _ACTS, "tRRDL"),
    Rule(_CHANNEL, ("ACT",), _WIDE_ACTS, "tRRDL"),
    Rule(_CHANNEL, ("ACT",), ("ACT",), "tFAW", window=4, optional=True),
    Rule(_CHANNEL, ("REFab",), _EVERY, "tRFC"),
    Rule(_CHANNEL, ("TMOD",), _EVERY, "tMODCH", optional=True),
)

_COLUMN_RULES = (
    Rule(_CHANNEL, _NARROW_READS, _NARROW_READS, "tCCDS"),
    Rule(_GROUP, _NARROW_READS, _NARROW_READS, "tCCDL"),
    Rule(_HALF, _NARROW_READS, _NARROW_READS, "tCCDL", others=True),
    Rule(_CHANNEL, _WIDE_READS, _NARROW_READS, "tCCDL"),
    Rule(_CHANNEL, _READS, ("RDAB",), "tCCDL"),
    Rule(_CHANNEL, (*_NARROW_READS, "RDAB"), ("MACAB",), "tCCDL"),
    Rule(_CHANNEL, ("MACAB",), _READS, "tCCDAB|tCCDL"),
    Rule(_CHANNEL, ("WR",), ("WR",), "tCCDS"),
    Rule(_GROUP, ("WR",), ("WR",), "tCCDL"),
    Rule(_HALF, ("WR",), ("WR",), "tCCDL", others=True),
    Rule(_CHANNEL, _WIDE_WRITES, _WRITES, "tCCDL"),
    Rule(_CHANNEL, ("WR",), _WIDE_WRITES, "tCCDL"),
    Rule(_CHANNEL, _READS, _WRITES, "tRTW"),
    Rule(_CHANNEL, _WRITES, _READS, "tCWL + tBL + tWTRS"),
    Rule(_GROUP, ("WR",), _NARROW_READS, "tCWL + tBL + tWTRL"),
    Rule(_HALF, ("WR",), _NARROW_READS, "tCWL + tBL + tWTRL", others=True),
    Rule(_CHANNEL, _WIDE_WRITES, _READS, "tCWL + tBL + tWTRL"),
    Rule(_CHANNEL, ("WR",), _WIDE_READS, "tCWL + tBL + tWTRL"),
)

_REGISTER_RULES = (
    Rule(_CHANNEL, _BUS_READS, _BUS_READS, "tBL"),
    Rule(_CHANNEL, _BUS_WRITES, _BUS_WRITES, "tBL"),
    Rule(_CHANNEL, _BUS_READS, _BUS_WRITES, "tRTW"),
    Rule(_CHANNEL, _BUS_WRITES, _BUS_READS, "tCWL + tBL + tWTRS"),
    Rule(_CHANNEL, ("WRGB", "WRBIAS"), _MACS, "tWRMAC", optional=True),
    Rule(_CHANNEL, _MACS, ("RDMAC", "WRBIAS"), "tMACRD", optional=True),
)

ALL_BANK_ROW, SINGLE_BANK_ROW, REGISTER_ROW = 0x17FF, 0x1FFF, 0x3FFF  # reserved, as in PIMSimulator
SINGLE_BANK, ALL_BANK, PIM = "single-bank", "all-bank", "PIM"
_EVEN, _ODD, _LAST = 0, 8, 12  # the halves' first banks; the last bank to be written for all-bank mode

MODES = Modes(
    first=SINGLE_BANK,
    only_in={
        "RD": (SINGLE_BANK,),
        "WR": (SINGLE_BANK,),
        "MACSB": (SINGLE_BANK,),
        "WRREG": (ALL_BANK, PIM),
        "RDAB": (PIM,),
        "WRAB": (PIM,),
    },
    changes=(
        Change(SINGLE_BANK, "WR", ALL_BANK_ROW, _LAST, ALL_BANK),
        Change(ALL_BANK, "WRREG", REGISTER_ROW, _EVEN, PIM),
        Change(PIM, "WRREG", REGISTER_ROW, _EVEN, ALL_BANK),
        Change(ALL_BANK, "WRREG", SINGLE_BANK_ROW, _ODD, SINGLE_BANK),
    ),
)

HBM_PIM = Standard(
    "hbm-pim",
    _COMMANDS,
    _BANK_RULES + _ROW_RULES + _COLUMN_RULES + _REGISTER_RULES,
    precharge_all="PREA",
    refresh="REFab",
    modes=MODES,
)

STANDARDS = (HBM_PIM,)
