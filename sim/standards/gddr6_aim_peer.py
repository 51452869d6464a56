"""GDDR6-AiM with the rules as the AiM simulator plays them, for validation against it.

The simulator (Ramulator 2.0 based, CENT's back end) never refreshes, leaves tFAW out, counts all-bank commands at the
channel alone, and lets ACT16 open banks beside open ones. Work on `gddr6-aim`, where every rule is on. Delays of its
registers: tCLREG and tCWLREG (accumulators), tCWLGB (global buffer), tWPRE (turning the bus to writes).
"""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_BANK, _GROUP, _ALL, _CHANNEL = Scope.BANK, Scope.BANK_GROUP, Scope.ALL_BANKS, Scope.CHANNEL

_COMMANDS = (
    CommandSpec("ACT", _BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACT16", _ALL, Row.ANY, Effect.OPENS),
    CommandSpec("PRE", _BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", _ALL, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", _BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", _BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("WRBK", _ALL, Row.OPEN, Effect.CLOSES, latency="tCWL + tBL + tRP", bursts=1),
    CommandSpec("WRGB", _CHANNEL, latency="tCWLGB + tBL", bursts=1),
    CommandSpec("MACSB", _BANK, Row.OPEN, latency="1", macs=True),
    CommandSpec("MACAB", _ALL, Row.OPEN, latency="1", macs=True),
    CommandSpec("RDMAC", _CHANNEL, latency="tCLREG + tBL", bursts=1),
    CommandSpec("WRBIAS", _CHANNEL, latency="tCWLREG + tBL", bursts=1),
    CommandSpec("AF", _ALL, Row.OPEN, latency="1"),
    CommandSpec("RDAF", _CHANNEL, latency="tCLREG + tBL", bursts=1),
    CommandSpec("EWMUL", _ALL, Row.OPEN, latency="1"),
    CommandSpec("RDCP", _BANK, Row.OPEN, latency="1"),
    CommandSpec("WRCP", _BANK, Row.OPEN, latency="1"),
    CommandSpec("REFab", _ALL, Row.CLOSED),
    CommandSpec("TMOD", _CHANNEL),
)

_REGISTER_READS = ("RDMAC", "RDAF")
_BUS_READS = ("RD", *_REGISTER_READS)
_BUS_WRITES = ("WR", "WRBK", "WRGB", "WRBIAS")
_READS = ("RD", "MACSB", "MACAB", "RDCP", *_REGISTER_READS)
_WRITES = ("WR", "WRBK", "WRGB", "WRCP", "WRBIAS")
_GROUP_READS = ("RD", "MACSB", "RDCP")
_WIDE_READS = (*_REGISTER_READS, "MACAB", "EWMUL")
_WIDE_WRITES = ("WRBK", "WRBIAS", "EWMUL")
_WRITE_END = "tCWL + tBL + tWR"

_COLUMN_RULES = (
    Rule(_CHANNEL, _BUS_READS, _BUS_READS, "tBL"),
    Rule(_CHANNEL, _BUS_WRITES, _BUS_WRITES, "tBL"),
    Rule(_CHANNEL, _READS, _READS, "tCCDS"),
    Rule(_CHANNEL, _WRITES, _WRITES, "tCCDS"),
    Rule(_CHANNEL, (*_GROUP_READS, *_WIDE_READS), _WIDE_READS, "tCCDL"),
    Rule(_CHANNEL, _WIDE_READS, (*_GROUP_READS, *_WIDE_READS), "tCCDL"),
    Rule(_CHANNEL, ("WR", "WRCP", *_WIDE_WRITES), _WIDE_WRITES, "tCCDL"),
    Rule(_CHANNEL, _WIDE_WRITES, ("WR", "WRCP", *_WIDE_WRITES), "tCCDL"),
    Rule(_GROUP, _GROUP_READS, _GROUP_READS, "tCCDL"),
    Rule(_GROUP, ("WR", "WRCP"), ("WR", "WRCP"), "tCCDL"),
)

_TURN_RULES = (
    Rule(_CHANNEL, ("RD",), ("WR", "WRBK"), "tCL + tBL + 3 - tCWL + tWPRE"),
    Rule(_CHANNEL, _REGISTER_READS, ("WR", "WRBK"), "tCLREG + tBL + 3 - tCWL + tWPRE"),
    Rule(_CHANNEL, ("RD",), ("WRGB",), "tCL + tBL + 3 - tCWLGB + tWPRE"),
    Rule(_CHANNEL, ("RD",), ("WRBIAS",), "tCL + tBL + 3 - tCWLREG + tWPRE"),
    Rule(_CHANNEL, _REGISTER_READS, ("WRGB",), "tCLREG + tBL + 3 - tCWLGB + tWPRE"),
    Rule(_CHANNEL, _REGISTER_READS, ("WRBIAS",), "tCLREG + tBL + 3 - tCWLREG + tWPRE"),
    Rule(_CHANNEL, ("WR", "WRBK"), _BUS_READS, "tCWL + tBL + tWTRS"),
    Rule(_CHANNEL, ("WRGB",), _BUS_READS, "tCWLGB + tBL + tWTRS"),
    Rule(_CHANNEL, ("WR",), _REGISTER_READS, "tCWL + tBL + tWTRL"),
    Rule(_CHANNEL, ("WRBK",), _BUS_READS, "tCWL + tBL + tWTRL"),
    Rule(_CHANNEL, ("WRBIAS",), _BUS_READS, "tCWLREG + tBL + tWTRL"),
    Rule(_GROUP, ("WR",), ("RD",), "tCWL + tBL + tWTRL"),
)

_ROW_RULES = (
    Rule(_CHANNEL, ("RD", "RDCP", "MACSB", "MACAB", "AF", "EWMUL"), ("PREA",), "tRTP"),
    Rule(_CHANNEL, ("MACAB", "AF", "EWMUL"), ("PRE",), "tRTP"),
    Rule(_CHANNEL, ("WR", "WRCP"), ("PREA",), _WRITE_END),
    Rule(_CHANNEL, ("EWMUL",), ("PRE", "PREA"), "tCWL + tWR"),
    Rule(_CHANNEL, ("ACT16",), ("ACT", "ACT16"), "tRRDL"),
    Rule(_CHANNEL, ("ACT",), ("ACT",), "tRRDS"),
    Rule(_CHANNEL, ("ACT",), ("ACT16",), "tRRDL"),
    Rule(_CHANNEL, ("ACT", "ACT16"), ("PREA",), "tRAS"),
    Rule(_CHANNEL, ("ACT16",), ("PRE",), "tRAS"),
    Rule(_CHANNEL, ("PRE", "PREA"), ("ACT16",), "tRP"),
    Rule(_CHANNEL, ("PREA",), ("ACT",), "tRP"),
    Rule(_CHANNEL, ("PRE", "PREA"), ("PRE", "PREA"), "tRP"),
    Rule(_CHANNEL, ("WRBK",), ("ACT", "ACT16"), _WRITE_END + " + tRP"),
    Rule(_CHANNEL, ("ACT", "ACT16"), ("MACAB",), "tRCDRDMAC"),
    Rule(_CHANNEL, ("ACT", "ACT16"), ("AF",), "tRCDRDAF"),
    Rule(_CHANNEL, ("ACT", "ACT16"), ("EWMUL",), "tRCDEWMUL"),
    Rule(_CHANNEL, ("ACT", "ACT16"), ("WRBK",), "tRCDWR"),
    Rule(_CHANNEL, ("ACT16",), ("MACSB",), "tRCDRDMAC"),
    Rule(_CHANNEL, ("ACT16",), ("RDCP",), "tRCDRDCP"),
    Rule(_CHANNEL, ("ACT16",), ("RD",), "tRCDRD"),
    Rule(_CHANNEL, ("ACT16",), ("WRCP",), "tRCDWRCP"),
    Rule(_CHANNEL, ("ACT16",), ("WR",), "tRCDWR"),
    Rule(_CHANNEL, ("TMOD",), tuple(c.name for c in _COMMANDS if c.name != "TMOD"), "tMODCH"),
    Rule(_GROUP, _GROUP_READS, ("PRE",), "tRTP"),
    Rule(_GROUP, ("WR", "WRCP"), ("PRE",), _WRITE_END),
    Rule(_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    Rule(_BANK, ("ACT",), ("MACSB",), "tRCDRDMAC"),
    Rule(_BANK, ("ACT",), ("RDCP",), "tRCDRDCP"),
    Rule(_BANK, ("ACT",), ("RD",), "tRCDRD"),
    Rule(_BANK, ("ACT",), ("WRCP",), "tRCDWRCP"),
    Rule(_BANK, ("ACT",), ("WR",), "tRCDWR"),
    Rule(_BANK, ("ACT",), ("PRE",), "tRAS"),
    Rule(_BANK, ("PRE",), ("ACT",), "tRP"),
)

GDDR6_AIM_PEER = Standard(
    name="gddr6-aim-peer",
    commands=_COMMANDS,
    rules=_COLUMN_RULES + _TURN_RULES + _ROW_RULES,
    precharge_all="PREA",
    refresh="REFab",
)

STANDARDS = (GDDR6_AIM_PEER,)
