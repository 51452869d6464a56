"""LPDDR5 (JESD209-5) in bank-group mode: commands and timing rules of one 16-bit channel of one or more ranks.

ACT stands for ACT-1 and ACT-2 right after it: two clocks of the command bus, all times counted from the first. The
write clock is taken to be always on, so no CAS command is needed before reads and writes.
"""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_READS = ("RD", "RDA")
_WRITES = ("WR", "WRA")
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
    CommandSpec("REFpb", Scope.BANK, Row.CLOSED),
)
_ALL = tuple(command.name for command in _COMMANDS)

_RULES = (
    # The command bus
    Rule(Scope.CHANNEL, ("ACT",), _ALL, "2"),
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
    Rule(Scope.RANK, ("RD",), ("PREA",), "tRTP"),
    Rule(Scope.RANK, ("WR",), ("PREA",), "tCWL + tBL + tWR"),
    Rule(Scope.RANK, ("ACT",), ("ACT",), "tRRDS"),
    Rule(Scope.RANK, ("ACT",), ("ACT",), "tFAW", window=4),
    Rule(Scope.RANK, ("ACT",), ("PREA",), "tRAS"),
    Rule(Scope.RANK, ("PREA",), ("ACT",), "tRPab"),
    Rule(Scope.RANK, _PRECHARGES, _PRECHARGES, "tPPD"),
    Rule(Scope.RANK, ("ACT",), ("REFab",), "tRC"),
    Rule(Scope.RANK, ("PRE",), ("REFab",), "tRP"),
    Rule(Scope.RANK, ("PREA",), ("REFab",), "tRP"),
    Rule(Scope.RANK, ("RDA",), ("REFab",), "tRTP + tRP"),
    Rule(Scope.RANK, ("WRA",), ("REFab",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.RANK, ("REFab",), ("ACT", "PREA", "REFab", "REFpb"), "tRFC"),
    Rule(Scope.RANK, ("REFpb",), ("REFpb",), "tPBR2PBR"),
    Rule(Scope.RANK, ("REFpb",), ("REFab",), "tRFCpb"),
    Rule(Scope.RANK, ("REFpb",), ("ACT",), "tPBR2ACT"),
    # Bank group
    Rule(Scope.BANK_GROUP, _READS, _READS, "tCCDL"),
    Rule(Scope.BANK_GROUP, _WRITES, _WRITES, "tCCDL_WR"),
    Rule(Scope.BANK_GROUP, _WRITES, _READS, "tCWL + tBL_max + tWTRL"),
    Rule(Scope.BANK_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    # Bank
    Rule(Scope.BANK, ("ACT",), ("ACT",), "tRC"),
    Rule(Scope.BANK, ("ACT",), (*_READS, *_WRITES), "tRCD"),
    Rule(Scope.BANK, ("ACT",), ("PRE",), "tRAS"),
    Rule(Scope.BANK, ("PRE",), ("ACT",), "tRP"),
    Rule(Scope.BANK, ("RD",), ("PRE",), "tRTP"),
    Rule(Scope.BANK, ("WR",), ("PRE",), "tCWL + tBL + tWR"),
    Rule(Scope.BANK, ("RDA",), ("ACT",), "tRTP + tRP"),
    Rule(Scope.BANK, ("WRA",), ("ACT",), "tCWL + tBL + tWR + tRP"),
    Rule(Scope.BANK, ("REFpb",), ("ACT",), "tRFCpb"),
    Rule(Scope.BANK, ("ACT",), ("REFpb",), "tRC"),
    Rule(Scope.BANK, _PRECHARGES, ("REFpb",), "tRP"),
)

LPDDR5 = Standard("lpddr5", _COMMANDS, _RULES, precharge_all="PREA", refresh="REFab", refresh_bank="REFpb")

STANDARDS = (LPDDR5,)
