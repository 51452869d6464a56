"""HBM3 (JESD238): commands and timing rules of one channel of two pseudo-channels, in half clocks.

A machine of this standard counts half clocks (its tCK is half of CK), because row commands other than ACT take half a
clock and precharges may use its second half; all others start on the first. ACT takes three halves, column commands
two; delays count from a command's last half, which gives the "+ 2" and "- 1" below. A stack id (SID) is a rank.
"""

from nearbank.sim.standard import CommandSpec, Effect, Row, Rule, Scope, Standard

_PC, _RANK, _GROUP, _BANK = Scope.PSEUDO_CHANNEL, Scope.RANK, Scope.BANK_GROUP, Scope.BANK
_READS = ("RD", "RDA")
_WRITES = ("WR", "WRA")
_PRECHARGES = ("PRE", "PREA")
_ROW_BUS = ("ACT", "PRE", "PREA", "REFab", "REFpb")

_COMMANDS = (
    CommandSpec("ACT", _BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", _BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", _PC, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", _BANK, Row.OPEN, latency="tCL + tBL", bursts=1),
    CommandSpec("WR", _BANK, Row.OPEN, latency="tCWL + tBL", bursts=1),
    CommandSpec("RDA", _BANK, Row.OPEN, Effect.CLOSES, latency="tCL + tBL", bursts=1),
    CommandSpec("WRA", _BANK, Row.OPEN, Effect.CLOSES, latency="tCWL + tBL", bursts=1),
    CommandSpec("REFab", _PC, Row.CLOSED),
    CommandSpec("REFpb", _BANK, Row.CLOSED),
)

_RULES = (
    # The command buses, shared by both pseudo-channels
    Rule(Scope.CHANNEL, ("ACT",), _ROW_BUS, "3"),
    Rule(Scope.CHANNEL, (*_READS, *_WRITES), (*_READS, *_WRITES), "2"),
    # Pseudo-channel
    Rule(_PC, _READS, _READS, "tBL"),
    Rule(_PC, _WRITES, _WRITES, "tBL"),
    Rule(_PC, _READS, _WRITES, "tRTW"),
    Rule(_PC, _WRITES, _READS, "tCWL + tBL + tWTRS"),
    Rule(_PC, ("RD",), ("PREA",), "tRTP + 1"),
    Rule(_PC, ("WR",), ("PREA",), "tCWL + tBL + tWR + 1"),
    Rule(_PC, ("ACT",), ("ACT",), "tRRDS"),
    Rule(_PC, ("ACT",), ("ACT",), "tFAW", window=4),
    Rule(_PC, ("ACT",), ("PREA",), "tRAS + 2"),
    Rule(_PC, ("PREA",), ("ACT",), "tRP - 2"),
    Rule(_PC, _PRECHARGES, _PRECHARGES, "tPPD"),
    Rule(_PC, ("ACT",), ("REFab",), "tRC + 2"),
    Rule(_PC, _PRECHARGES, ("REFab",), "tRP"),
    Rule(_PC, ("RDA",), ("REFab",), "tRTP + tRP + 1"),
    Rule(_PC, ("WRA",), ("REFab",), "tCWL + tBL + tWR + tRP + 1"),
    Rule(_PC, ("REFab",), ("PREA", "REFab"), "tRFC"),
    Rule(_PC, ("REFab",), ("ACT",), "tRFC - 2"),
    Rule(_PC, ("REFpb",), ("REFpb",), "tRREFD"),
    Rule(_PC, ("REFpb",), ("ACT",), "tRREFD - 2"),
    Rule(_PC, ("ACT",), ("REFpb",), "tRRDS + 2"),
    # Stack id
    Rule(_RANK, _READS, _READS, "tCCDS"),
    Rule(_RANK, _WRITES, _WRITES, "tCCDS"),
    Rule(_RANK, _READS, _READS, "tCCDR", others=True),
    Rule(_RANK, _WRITES, _WRITES, "tCCDR", others=True),
    # Bank group
    Rule(_GROUP, _READS, _READS, "tCCDL"),
    Rule(_GROUP, _WRITES, _WRITES, "tCCDL"),
    Rule(_GROUP, _WRITES, _READS, "tCWL + tBL + tWTRL"),
    Rule(_GROUP, ("ACT",), ("ACT",), "tRRDL"),
    # Bank
    Rule(_BANK, ("ACT",), ("ACT",), "tRC"),
    Rule(_BANK, ("ACT",), _READS, "tRCDRD + 1"),
    Rule(_BANK, ("ACT",), _WRITES, "tRCDWR + 1"),
    Rule(_BANK, ("ACT",), ("PRE",), "tRAS + 2"),
    Rule(_BANK, ("PRE",), ("ACT",), "tRP - 2"),
    Rule(_BANK, ("RD",), ("PRE",), "tRTP + 1"),
    Rule(_BANK, ("WR",), ("PRE",), "tCWL + tBL + tWR + 1"),
    Rule(_BANK, ("RDA",), ("ACT",), "tRTP + tRP - 1"),
    Rule(_BANK, ("WRA",), ("ACT",), "tCWL + tBL + tWR + tRP - 1"),
    Rule(_BANK, ("REFpb",), ("ACT",), "tRFCpb - 2"),
    Rule(_BANK, ("REFpb",), ("REFpb", "REFab"), "tRFCpb"),
    Rule(_BANK, ("ACT",), ("REFpb",), "tRC + 2"),
    Rule(_BANK, _PRECHARGES, ("REFpb",), "tRP"),
)

HBM3 = Standard(
    "hbm3",
    _COMMANDS,
    _RULES,
    precharge_all="PREA",
    refresh="REFab",
    refresh_bank="REFpb",
    row_bus=_ROW_BUS,
    any_edge=("PRE", "PREA"),
)

STANDARDS = (HBM3,)
