"""GDDR6 (JESD250): commands and timing rules of one 16-bit channel."""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_READS = ("RD", "RDA")
_WRITES = ("WR", "WRA")
_PRECHARGES = ("PRE", "PREA")
_ALL = ("ACT", "PRE", "PREA", "RD", "WR", "RDA", "WRA", "REFab", "REFpb")

COMMANDS = (
    CommandSpec("ACT", Scope.BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", Scope.BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", Scope.ALL_BANKS, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", Scope.BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", Scope.BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("RDA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCL + tBL", bursts=1),
    CommandSpec("WRA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", Scope.ALL_BANKS, Row.CLOSED),
    CommandSpec("REFpb", Scope.BANK, Row.CLOSED),
)

RULES = (
    # Channel: column accesses and the data bus
    Rule(Scope.CHANNEL, _READS, _READS, "tCCDS"),
    Rule(Scope.CHANNEL, _WRITES, _WRITES, "tCCDS"),
    Rule(Scope.CHANNEL, _READS, _WRITES, "tRTW"),
    Rule(Scope.CHANNEL, _WRITES, _READS, "tCWL + tBL + tWTRS"),
    # Channel: rows
    Rule(Scope.CHANNEL, ("RD",), ("PREA",), "tRTP"),
    Rule(Scope.CHANNEL, ("WR",), ("PREA",), "tCWL + tBL + tWR"),
    Rule(Scope.CHANNEL, ("ACT",), ("ACT",), "tRRDS"),
    Rule(Scope.CHANNEL, ("ACT",), ("ACT", "REFpb"), "tFAW", window=4),
    Rule(Scope.CHANNEL, ("REFpb",), ("ACT", "REFpb"), "tFAW", window=4),
    Rule(Scope.CHANNEL, ("ACT",), ("PREA",), "tRAS"),
    Rule(Scope.CHANNEL, ("PREA",), ("ACT",), "tRP"),
    Rule(Scope.CHANNEL, _PRECHARGES, _PRECHARGES, "tPPD"),
    # Channel: refresh
    Rule(Scope.CHANNEL, ("ACT",), ("REFab",), "tRC"),
    Rule(Scope.CHANNEL, _PRECHARGES, ("REFab",), "tRP"),
    Rule(Scope.CHANNEL, ("RDA",), ("REFab",), "tRTP + tRP"),
    Rule(Scope.CHANNEL, ("WRA",), ("REFab",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.CHANNEL, ("REFab",), _ALL, "tRFC"),
    Rule(Scope.CHANNEL, ("ACT",), ("REFpb",), "tRRDS"),
    Rule(Scope.CHANNEL, ("PREA",), ("REFpb",), "tRP"),
    Rule(Scope.CHANNEL, ("REFpb",), ("ACT", "REFpb"), "tRREFD"),
    Rule(Scope.CHANNEL, ("REFpb",), ("REFab",), "tRFCpb"),
    # Bank group
    Rule(Scope.BANK_GROUP, _READS, _READS, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _WRITES, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _READS, "tCWL + tBL + tWTRL"),
    Rule(Scope.BANK_GROUP, ("ACT",), ("ACT", "REFpb"), "tRRDL"),
    # Bank
    Rule(Scope.BANK, ("ACT",), ("ACT",), "tRC"),
    Rule(Scope.BANK, ("ACT",), _READS, "tRCDRD"),
    Rule(Scope.BANK, ("ACT",), _WRITES, "tRCDWR"),
    Rule(Scope.BANK, ("ACT",), ("PRE",), "tRAS"),
    Rule(Scope.BANK, ("PRE",), ("ACT",), "tRP"),
    Rule(Scope.BANK, ("RD",), ("PRE",), "tRTP"),
    Rule(Scope.BANK, ("WR",), ("PRE",), "tCWL + tBL + tWR"),
    Rule(Scope.BANK, ("RDA",), ("ACT",), "tRTP + tRP"),
    Rule(Scope.BANK, ("WRA",), ("ACT",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.BANK, ("ACT",), ("REFpb",), "tRC"),
    Rule(Scope.BANK, ("PRE",), ("REFpb",), "tRP"),
    Rule(Scope.BANK, ("RDA",), ("REFpb",), "tRTP + tRP"),
    Rule(Scope.BANK, ("WRA",), ("REFpb",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.BANK, ("REFpb",), ("ACT", "REFpb"), "tRFCpb"),
)

GDDR6 = Standard("gddr6", COMMANDS, RULES, precharge_all="PREA", refresh="REFab", refresh_bank="REFpb")

STANDARDS = (GDDR6,)
