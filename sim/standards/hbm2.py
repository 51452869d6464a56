"""HBM2 (JESD235): commands and timing rules of one channel of two pseudo-channels with row and column command buses.

ACT takes two clocks of the row bus and counts from its second, hence the "+ 1" after it and the "- 1" before it.
"""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_READS = ("RD", "RDA")
_WRITES = ("WR", "WRA")
_PRECHARGES = ("PRE", "PREA")
ROW_BUS = ("ACT", "PRE", "PREA", "REFab", "REFpb")

COMMANDS = (
    CommandSpec("ACT", Scope.BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", Scope.BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", Scope.PSEUDO_CHANNEL, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", Scope.BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", Scope.BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("RDA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCL + tBL", bursts=1),
    CommandSpec("WRA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", Scope.PSEUDO_CHANNEL, Row.CLOSED),
    CommandSpec("REFpb", Scope.BANK, Row.CLOSED),
)

RULES = (
    # The row command bus, shared by both pseudo-channels
    Rule(Scope.CHANNEL, ("ACT",), ROW_BUS, "tCMDACT"),
    # Pseudo-channel: column accesses and the data bus
    Rule(Scope.PSEUDO_CHANNEL, _READS, _READS, "tCCDS"),
    Rule(Scope.PSEUDO_CHANNEL, _WRITES, _WRITES, "tCCDS"),
    Rule(Scope.PSEUDO_CHANNEL, _READS, _WRITES, "tRTW"),
    Rule(Scope.PSEUDO_CHANNEL, _WRITES, _READS, "tCWL + tBL + tWTRS"),
    # Pseudo-channel: rows
    Rule(Scope.PSEUDO_CHANNEL, ("RD",), ("PREA",), "tRTP"),
    Rule(Scope.PSEUDO_CHANNEL, ("WR",), ("PREA",), "tCWL + tBL + tWR"),
    Rule(Scope.PSEUDO_CHANNEL, ("ACT",), ("ACT",), "tRRDS"),
    Rule(Scope.PSEUDO_CHANNEL, ("ACT",), ("ACT",), "tFAW", window=4),
    Rule(Scope.PSEUDO_CHANNEL, ("ACT",), ("PREA",), "tRAS + tCMDACT - 1"),
    Rule(Scope.PSEUDO_CHANNEL, ("PREA",), ("ACT",), "tRP + 1 - tCMDACT"),
    # Pseudo-channel: refresh
    Rule(Scope.PSEUDO_CHANNEL, ("ACT",), ("REFab",), "tRC + tCMDACT - 1"),
    Rule(Scope.PSEUDO_CHANNEL, _PRECHARGES, ("REFab",), "tRP"),
    Rule(Scope.PSEUDO_CHANNEL, ("RDA",), ("REFab",), "tRTP + tRP"),
    Rule(Scope.PSEUDO_CHANNEL, ("WRA",), ("REFab",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.PSEUDO_CHANNEL, ("REFab",), ("PREA", "REFab"), "tRFC"),
    Rule(Scope.PSEUDO_CHANNEL, ("REFab",), ("ACT",), "tRFC + 1 - tCMDACT"),
    Rule(Scope.PSEUDO_CHANNEL, ("REFpb",), ("ACT",), "tRREFD + 1 - tCMDACT"),
    Rule(Scope.PSEUDO_CHANNEL, ("REFpb",), ("REFpb",), "tRREFD"),
    Rule(Scope.PSEUDO_CHANNEL, ("ACT",), ("REFpb",), "tRRDS + tCMDACT - 1"),
    # Bank group
    Rule(Scope.BANK_GROUP, _READS, _READS, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _WRITES, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _READS, "tCWL + tBL + tWTRL"),
    Rule(Scope.BANK_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    # Bank
    Rule(Scope.BANK, ("ACT",), ("ACT",), "tRC"),
    Rule(Scope.BANK, ("ACT",), _READS, "tRCDRD + tCMDACT - 1"),
    Rule(Scope.BANK, ("ACT",), _WRITES, "tRCDWR + tCMDACT - 1"),
    Rule(Scope.BANK, ("ACT",), ("PRE",), "tRAS + tCMDACT - 1"),
    Rule(Scope.BANK, ("PRE",), ("ACT",), "tRP + 1 - tCMDACT"),
    Rule(Scope.BANK, ("RD",), ("PRE",), "tRTP"),
    Rule(Scope.BANK, ("WR",), ("PRE",), "tCWL + tBL + tWR"),
    Rule(Scope.BANK, ("RDA",), ("ACT",), "tRTP + tRP + 1 - tCMDACT"),
    Rule(Scope.BANK, ("WRA",), ("ACT",), "tCWL + tBL + tWR + tRP + 1 - tCMDACT"),
    Rule(Scope.BANK, ("REFpb",), ("ACT",), "tRFCpb + 1 - tCMDACT"),
    Rule(Scope.BANK, ("REFpb",), ("REFpb", "REFab"), "tRFCpb"),
    Rule(Scope.BANK, ("ACT",), ("REFpb",), "tRC + tCMDACT - 1"),
    Rule(Scope.BANK, ("PRE",), ("REFpb",), "tRP"),
    Rule(Scope.BANK, ("PREA",), ("REFpb",), "tRP"),
    Rule(Scope.BANK, ("RDA",), ("REFpb",), "tRTP + tRP"),
    Rule(Scope.BANK, ("WRA",), ("REFpb",), "tCWL + tBL + tWR + tRP"),
)

HBM2 = Standard("hbm2", COMMANDS, RULES, precharge_all="PREA", refresh="REFab", refresh_bank="REFpb", row_bus=ROW_BUS)

STANDARDS = (HBM2,)
