"""DDR4 (JESD79-4): commands and timing rules of one channel of one or more ranks."""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_READS = ("RD", "RDA")
_WRITES = ("WR", "WRA")
_COLUMNS = (*_READS, *_WRITES)

COMMANDS = (
    CommandSpec("ACT", Scope.BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", Scope.BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", Scope.RANK, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", Scope.BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", Scope.BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("RDA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCL + tBL", bursts=1),
    CommandSpec("WRA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", Scope.RANK, Row.CLOSED),
)

RULES = (
    # Rank to rank on one data bus
    Rule(Scope.RANK, _READS, _READS, "tBL + tRTRS", others=True),
    Rule(Scope.RANK, _WRITES, _WRITES, "tBL", others=True),
    Rule(Scope.RANK, _READS, _WRITES, "tCL + tBL + tRTRS - tCWL", others=True),
    Rule(Scope.RANK, _WRITES, _READS, "tCWL + tBL + tRTRS - tCL", others=True),
    # Rank
    Rule(Scope.RANK, _READS, _READS, "tCCDS"),
    Rule(Scope.RANK, _WRITES, _WRITES, "tCCDS"),
    Rule(Scope.RANK, _READS, _WRITES, "tRTW"),
    Rule(Scope.RANK, _WRITES, _READS, "tCWL + tBL + tWTRS"),
    Rule(Scope.RANK, ("RD",), ("PREA",), "tRTP"),
    Rule(Scope.RANK, ("WR",), ("PREA",), "tCWL + tBL + tWR"),
    Rule(Scope.RANK, ("ACT",), ("ACT",), "tRRDS"),
    Rule(Scope.RANK, ("ACT",), ("ACT",), "tFAW", window=4),
    Rule(Scope.RANK, ("ACT",), ("PREA",), "tRAS"),
    Rule(Scope.RANK, ("PREA",), ("ACT",), "tRP"),
    Rule(Scope.RANK, ("ACT",), ("REFab",), "tRC"),
    Rule(Scope.RANK, ("PRE", "PREA"), ("REFab",), "tRP"),
    Rule(Scope.RANK, ("RDA",), ("REFab",), "tRTP + tRP"),
    Rule(Scope.RANK, ("WRA",), ("REFab",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.RANK, ("REFab",), ("ACT", "PREA", "REFab"), "tRFC"),
    # Bank group
    Rule(Scope.BANK_GROUP, _READS, _READS, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _WRITES, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _READS, "tCWL + tBL + tWTRL"),
    Rule(Scope.BANK_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    # Bank
    Rule(Scope.BANK, ("ACT",), ("ACT",), "tRC"),
    Rule(Scope.BANK, ("ACT",), _COLUMNS, "tRCD"),
    Rule(Scope.BANK, ("ACT",), ("PRE",), "tRAS"),
    Rule(Scope.BANK, ("PRE",), ("ACT",), "tRP"),
    Rule(Scope.BANK, ("RD",), ("PRE",), "tRTP"),
    Rule(Scope.BANK, ("WR",), ("PRE",), "tCWL + tBL + tWR"),
    Rule(Scope.BANK, ("RDA",), ("ACT",), "tRTP + tRP"),
    Rule(Scope.BANK, ("WRA",), ("ACT",), "tCWL + tBL + tWR + tRP"),
)

DDR4 = Standard("ddr4", COMMANDS, RULES, precharge_all="PREA", refresh="REFab")

STANDARDS = (DDR4,)
