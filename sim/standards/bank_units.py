"""Units at the banks of HBM3 and LPDDR5: AttAcc (Park et al., ASPLOS 2024) and LPDDR5-PIM.

One machine channel is one pseudo-channel (HBM) or channel (LPDDR5). In all-bank mode ACT16, MACAB and PREA reach every
bank at once, with the names of GDDR6-AiM; MACSB works on one bank. WRGB fills the unit's register file or vector buffer
from the pins, RDMAC and WRBIAS read and write its accumulators. TMOD enters or leaves the mode, where machines say what
that takes (tMODCH). tCCDAB spaces MACAB where power, not tCCDL, does; tMVSB spaces reads of accumulators.

"attacc" has, besides, a command bus for rows, and its registers are reached over ways of their own inside the stack:
moves to and from them wait for each other only. With units at the bank groups (and not at the banks), ACT4, MAC4B and
PRE4 work on one bank of each of the four groups; machines number these four in a run.
"""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_BANK, _FOUR, _GROUP, _ALL, _CHANNEL = (
    Scope.BANK,
    Scope.FOUR_BANKS,
    Scope.BANK_GROUP,
    Scope.ALL_BANKS,
    Scope.CHANNEL,
)

_COMMANDS = (
    CommandSpec("ACT", _BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACT4", _FOUR, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACT16", _ALL, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", _BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PRE4", _FOUR, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", _ALL, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", _BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", _BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("WRGB", _CHANNEL, latency="tCWL + tBL", bursts=1),
    CommandSpec("MACSB", _BANK, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("MAC4B", _FOUR, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("MACAB", _ALL, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("RDMAC", _CHANNEL, latency="tCL + tBL", bursts=1),
    CommandSpec("WRBIAS", _CHANNEL, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", _ALL, Row.CLOSED),
    CommandSpec("TMOD", _CHANNEL),
)

_ACTS = ("ACT", "ACT4", "ACT16")
_PRES = ("PRE", "PRE4", "PREA")
_MACS = ("MACSB", "MAC4B", "MACAB")
_WIDE_MACS = ("MAC4B", "MACAB")
_ARRAY_READS = ("RD", *_MACS)
_BUS_READS = ("RD", "RDMAC")
_BUS_WRITES = ("WR", "WRGB", "WRBIAS")
_EVERY = tuple(command.name for command in _COMMANDS)

_MOVES = ("WRGB", "RDMAC", "WRBIAS")

_RULES = (
    # Bank
    Rule(_BANK, _ACTS, (*_ARRAY_READS,), "tRCDRD|tRCD"),
    Rule(_BANK, _ACTS, ("WR",), "tRCDWR|tRCD"),
    Rule(_BANK, _ACTS, _PRES, "tRAS"),
    Rule(_BANK, _ACTS, (*_ACTS, "REFab"), "tRC"),
    Rule(_BANK, _ARRAY_READS, _PRES, "tRTP"),
    Rule(_BANK, ("WR",), _PRES, "tCWL + tBL + tWR"),
    Rule(_BANK, _PRES, (*_ACTS, "REFab"), "tRP"),
    # Bank group
    Rule(_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    Rule(_GROUP, ("RD", "WR", "MACSB"), ("RD", "WR", "MACSB"), "tCCDL"),
    Rule(_GROUP, ("WR",), _ARRAY_READS, "tCWL + tBL + tWTRL"),
    # Channel: rows
    Rule(_CHANNEL, _ACTS, _ACTS, "tRRDS"),
    Rule(_CHANNEL, ("ACT",), ("ACT",), "tFAW", window=4, optional=True),
    Rule(_CHANNEL, ("ACT16",), _ACTS, "tFAW", optional=True),
    Rule(_CHANNEL, ("ACT", "ACT4"), ("ACT16",), "tFAW", optional=True),
    Rule(_CHANNEL, _PRES, _PRES, "tPPD", optional=True),
    # Channel: columns and the data bus
    Rule(_CHANNEL, (*_ARRAY_READS, "WR"), (*_ARRAY_READS, "WR"), "tCCDS"),
    Rule(_CHANNEL, _WIDE_MACS, (*_WIDE_MACS, "RD", "WR", "MACSB"), "tCCDAB|tCCDL"),
    Rule(_CHANNEL, ("RD", "WR", "MACSB"), _WIDE_MACS, "tCCDL"),
    Rule(_CHANNEL, ("WRGB", "WRBIAS"), _MACS, "tWRMAC", optional=True),
    Rule(_CHANNEL, _MACS, ("RDMAC", "WRBIAS"), "tMACRD", optional=True),
    # Channel: refresh and modes
    Rule(_CHANNEL, ("REFab",), _EVERY, "tRFC"),
    Rule(_CHANNEL, ("TMOD",), _EVERY, "tMODCH", optional=True),
)

_ON_THE_PINS = (
    Rule(_CHANNEL, _BUS_READS, _BUS_READS, "tMVSB|tBL"),
    Rule(_CHANNEL, _BUS_WRITES, _BUS_WRITES, "tBL"),
    Rule(_CHANNEL, _BUS_READS, _BUS_WRITES, "tRTW"),
    Rule(_CHANNEL, _BUS_WRITES, _BUS_READS, "tCWL + tBL + tWTRS"),
)

_INSIDE_THE_STACK = (
    Rule(_CHANNEL, ("RD",), ("RD",), "tBL"),
    Rule(_CHANNEL, ("WR",), ("WR",), "tBL"),
    Rule(_CHANNEL, ("RD",), ("WR",), "tRTW"),
    Rule(_CHANNEL, ("WR",), ("RD",), "tCWL + tBL + tWTRS"),
    Rule(_CHANNEL, _MOVES, _MOVES, "tMVSB|tBL"),
)

BANK_UNITS = Standard("bank-units", _COMMANDS, _RULES + _ON_THE_PINS, precharge_all="PREA", refresh="REFab")

ATTACC = Standard(
    "attacc",
    _COMMANDS,
    _RULES + _INSIDE_THE_STACK,
    precharge_all="PREA",
    refresh="REFab",
    row_bus=(*_ACTS, *_PRES, "REFab"),
)

STANDARDS = (BANK_UNITS, ATTACC)
