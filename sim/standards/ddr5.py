"""DDR5 (JESD79-5): commands and timing rules of one 32-bit sub-channel of one or more ranks.

ACT, RD and WR take two clocks of the command bus and count from the second, hence the "+ 1" after them and the "- 1"
before them where the other command takes one.
"""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_READS = ("RD", "RDA")
_WRITES = ("WR", "WRA")
_TWO_CLOCKS = ("ACT", *_READS, *_WRITES)
_PRECHARGES = ("PRE", "PREA")

_COMMANDS = (
    CommandSpec("ACT", Scope.BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", Scope.BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", Scope.RANK, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", Scope.BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", Scope.BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("RDA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCL + tBL", bursts=1),
    CommandSpec("WRA", Scope.BANK, Row.OPEN, Effect.CLOSES, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", Scope.RANK, Row.CLOSED),
)
_ALL = tuple(command.name for command in _COMMANDS)

_RULES = (
    # The command bus
    Rule(Scope.CHANNEL, _TWO_CLOCKS, _ALL, "2"),
    # Rank to rank on one data bus
    Rule(Scope.RANK, _READS, _READS, "tBL + tRTRS", others=True),
    Rule(Scope.RANK, _WRITES, _WRITES, "tBL", others=True),
    Rule(Scope.RANK, _READS, _WRITES, "tCL + tBL + tRTRS - tCWL", others=True),
    Rule(Scope.RANK, _WRITES, _READS, "tCWL + tBL + tRTRS - tCL", others=True),
    # Rank
    Rule(Scope.RANK, _READS, _READS, "tCCDS"),
    Rule(Scope.RANK, _WRITES, _WRITES, "tCCDS_WR"),
    Rule(Scope.RANK, _READS, _WRITES, "tRTW"),
    Rule(Scope.RANK, _WRITES, _READS, "tCWL + tBL + tWTRS"),
    Rule(Scope.RANK, ("RD",), ("PREA",), "tRTP + 1"),
    Rule(Scope.RANK, ("WR",), ("PREA",), "tCWL + tBL + tWR + 1"),
    Rule(Scope.RANK, ("ACT",), ("ACT",), "tRRDS"),
    Rule(Scope.RANK, ("ACT",), ("ACT",), "tFAW", window=4),
    Rule(Scope.RANK, ("ACT",), ("PREA",), "tRAS + 1"),
    Rule(Scope.RANK, ("PREA",), ("ACT",), "tRP - 1"),
    Rule(Scope.RANK, _PRECHARGES, _PRECHARGES, "tPPD"),
    Rule(Scope.RANK, ("ACT",), ("REFab",), "tRC + 1"),
    Rule(Scope.RANK, _PRECHARGES, ("REFab",), "tRP"),
    Rule(Scope.RANK, ("RDA",), ("REFab",), "tRTP + tRP + 1"),
    Rule(Scope.RANK, ("WRA",), ("REFab",), "tCWL + tBL + tWR + tRP + 1"),
    Rule(Scope.RANK, ("REFab",), ("ACT",), "tRFC - 1"),
    Rule(Scope.RANK, ("REFab",), ("PREA", "REFab"), "tRFC"),
    # Bank group
    Rule(Scope.BANK_GROUP, _READS, _READS, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _WRITES, "tCCDL_WR"),
    Rule(Scope.BANK_GROUP, _WRITES, _READS, "tCWL + tBL + tWTRL"),
    Rule(Scope.BANK_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    # Bank
    Rule(Scope.BANK, ("ACT",), ("ACT",), "tRC"),
    Rule(Scope.BANK, ("ACT",), (*_READS, *_WRITES), "tRCD"),
    Rule(Scope.BANK, ("ACT",), ("PRE",), "tRAS + 1"),
    Rule(Scope.BANK, ("PRE",), ("ACT",), "tRP - 1"),
    Rule(Scope.BANK, ("RD",), ("PRE",), "tRTP + 1"),
    Rule(Scope.BANK, ("WR",), ("PRE",), "tCWL + tBL + tWR + 1"),
    Rule(Scope.BANK, ("RDA",), ("ACT",), "tRTP + tRP"),
    Rule(Scope.BANK, ("WRA",), ("ACT",), "tCWL + tBL + tWR + tRP"),
)

DDR5 = Standard("ddr5", _COMMANDS, _RULES, precharge_all="PREA", refresh="REFab")

STANDARDS = (DDR5,)
