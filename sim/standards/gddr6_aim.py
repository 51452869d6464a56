"""GDDR6 with the commands of AiM, memory whose banks multiply.

Commands and what they do: SK hynix's AiM (Kwon et al., Hot Chips 2022; He et al., MICRO 2020) as its simulator and
CENT (Gu et al., ASPLOS 2025) play them. Delays by JEDEC's names (JESD250); those of AiM alone:

- tRCDRDMAC, tRCDRDAF, tRCDEWMUL, tRCDRDCP, tRCDWRCP: ACT to the first MAC, AF, EWMUL, RDCP, WRCP of the row;
- tMACRD: the last MAC to the read of the accumulators (multiply, adder tree, accumulate);
- tWRMAC: a write of the global buffer or the accumulators to the MAC that uses it;
- tWRCP: WRCP to the precharge of the bank it wrote;
- tMACSC: what MACSC takes longer than a MAC, on machines whose units scale (convert, multiply, add);
- tMODCH: entering or leaving register mode (TMOD), on machines that must.

Units that scale have two commands of ours, in AiM's manner. LDSC loads a column of every bank's open row into the
scale register of its unit, as a MAC reads a column of weights. MACSC is a MAC that ends a group: the group's sum, times
one of the loaded scales, is added to the accumulator.

WRBK writes one burst from the pins to all banks and closes their rows: a write with auto-precharge, with its delays.
"""

from nearbank.sim.standard import LOAD_SCALES, MAC_AND_SCALE, CommandSpec, Effect, Row, Rule, Scope, Standard

_BANK, _FOUR, _GROUP, _ALL, _CHANNEL = (
    Scope.BANK,
    Scope.FOUR_BANKS,
    Scope.BANK_GROUP,
    Scope.ALL_BANKS,
    Scope.CHANNEL,
)

_READ_LATENCY = "tCL + tBL"
_WRITE_LATENCY = "tCWL + tBL"

_COMMANDS = (
    CommandSpec("ACT", _BANK, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACT4", _FOUR, Row.CLOSED, Effect.OPENS),
    CommandSpec("ACT16", _ALL, Row.CLOSED, Effect.OPENS),
    CommandSpec("PRE", _BANK, Row.ANY, Effect.CLOSES),
    CommandSpec("PREA", _ALL, Row.ANY, Effect.CLOSES),
    CommandSpec("RD", _BANK, Row.OPEN, latency=_READ_LATENCY, bursts=1),
    CommandSpec("WR", _BANK, Row.OPEN, latency=_WRITE_LATENCY, bursts=1),
    CommandSpec("WRBK", _ALL, Row.OPEN, Effect.CLOSES, latency=_WRITE_LATENCY, bursts=1),
    CommandSpec("WRGB", _CHANNEL, latency=_WRITE_LATENCY, bursts=1),
    CommandSpec("MACSB", _BANK, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("MAC4B", _FOUR, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("MACAB", _ALL, Row.OPEN, latency="tMACRD|1", macs=True),
    CommandSpec("RDMAC", _CHANNEL, latency=_READ_LATENCY, bursts=1),
    CommandSpec("WRBIAS", _CHANNEL, latency=_WRITE_LATENCY, bursts=1),
    CommandSpec("AF", _ALL, Row.OPEN, latency="tMACRD|1"),
    CommandSpec("RDAF", _CHANNEL, latency=_READ_LATENCY, bursts=1),
    CommandSpec("EWMUL", _ALL, Row.OPEN, latency="tCWL"),
    CommandSpec("RDCP", _BANK, Row.OPEN, latency="1"),
    CommandSpec("WRCP", _BANK, Row.OPEN, latency="tCWL"),
    CommandSpec("REFab", _ALL, Row.CLOSED),
    CommandSpec("REFpb", _BANK, Row.CLOSED),
    CommandSpec("TMOD", _CHANNEL),
    CommandSpec(LOAD_SCALES, _ALL, Row.OPEN, latency="tMACRD|1"),
    CommandSpec(MAC_AND_SCALE, _ALL, Row.OPEN, latency="tMACRD|1", macs=True),
)

_ACTS = ("ACT", "ACT4", "ACT16")
_PRES = ("PRE", "PREA")
_REFS = ("REFab", "REFpb")
_MACS = ("MACSB", "MAC4B", "MACAB", MAC_AND_SCALE)
_UNIT_READS = (*_MACS, LOAD_SCALES)
_ARRAY = ("RD", "WR", "WRBK", *_UNIT_READS, "AF", "EWMUL", "RDCP", "WRCP")
_REGISTERS = ("WRGB", "WRBIAS", "RDMAC", "RDAF")
_COLUMNS = (*_ARRAY, *_REGISTERS)
_BUS_READS = ("RD", "RDMAC", "RDAF")
_BUS_WRITES = ("WR", "WRBK", "WRGB", "WRBIAS")

_BANK_RULES = (
    Rule(_BANK, _ACTS, ("RD",), "tRCDRD|tRCD"),
    Rule(_BANK, _ACTS, ("WR", "WRBK"), "tRCDWR|tRCD"),
    Rule(_BANK, _ACTS, _UNIT_READS, "tRCDRDMAC|tRCDRD|tRCD"),
    Rule(_BANK, _ACTS, ("AF",), "tRCDRDAF|tRCDRDMAC|tRCDRD|tRCD"),
    Rule(_BANK, _ACTS, ("EWMUL",), "tRCDEWMUL|tRCDWR|tRCD"),
    Rule(_BANK, _ACTS, ("RDCP",), "tRCDRDCP|tRCDRD|tRCD"),
    Rule(_BANK, _ACTS, ("WRCP",), "tRCDWRCP|tRCDWR|tRCD"),
    Rule(_BANK, _ACTS, _PRES, "tRAS"),
    Rule(_BANK, _ACTS, (*_ACTS, *_REFS), "tRC"),
    Rule(_BANK, ("RD", *_UNIT_READS, "AF", "RDCP"), _PRES, "tRTP"),
    Rule(_BANK, ("WR",), _PRES, "tCWL + tBL + tWR"),
    Rule(_BANK, ("WRBK",), (*_ACTS, *_REFS), "tCWL + tBL + tWR + tRP"),
    Rule(_BANK, ("EWMUL",), _PRES, "tCWL + tWR"),
    Rule(_BANK, ("WRCP",), _PRES, "tWRCP", optional=True),
    Rule(_BANK, _PRES, (*_ACTS, *_REFS), "tRP"),
    Rule(_BANK, ("REFpb",), (*_ACTS, *_REFS), "tRFCpb|tRFC"),
)

_GROUP_RULES = (
    Rule(_GROUP, ("ACT", "ACT4"), ("ACT", "ACT4"), "tRRDL|tRRD", optional=True),
    Rule(_GROUP, ("RD", "WR", "WRBK", "MACSB", "MAC4B", "RDCP", "WRCP"), _ARRAY, "tCCDL|tCCDS|tCCD"),
    Rule(_GROUP, ("WR",), ("RD", *_UNIT_READS, "AF", "RDCP"), "tCWL + tBL + tWTRL|tWTR", optional=True),
)

# A window of tFAW covers four activations: one ACT4, or ACT16 as a whole, fills it.
_CHANNEL_RULES = (
    Rule(_CHANNEL, _ACTS, (*_ACTS, "REFpb"), "tRRDS|tRRD", optional=True),
    Rule(_CHANNEL, ("ACT",), ("ACT",), "tFAW", window=4, optional=True),
    Rule(_CHANNEL, ("ACT4", "ACT16"), _ACTS, "tFAW", optional=True),
    Rule(_CHANNEL, ("ACT",), ("ACT4", "ACT16"), "tFAW", optional=True),
    Rule(_CHANNEL, _COLUMNS, _COLUMNS, "tCCDS|tCCD"),
    Rule(_CHANNEL, ("WR",), ("RD", *_UNIT_READS, "AF", "RDCP"), "tCWL + tBL + tWTRS|tWTR", optional=True),
    Rule(_CHANNEL, _BUS_WRITES, _BUS_READS, "tCWL + tBL + tWTRS|tWTR", optional=True),
    Rule(_CHANNEL, _BUS_READS, _BUS_WRITES, "tRTW", optional=True),
    # A burst keeps the pins busy; it lasts longer than a column access where the pins are slow.
    Rule(_CHANNEL, _BUS_WRITES, _BUS_WRITES, "tBL"),
    Rule(_CHANNEL, _BUS_READS, _BUS_READS, "tBL"),
    Rule(_CHANNEL, ("WRGB", "WRBIAS"), (*_MACS, "EWMUL", "AF", "WRCP"), "tWRMAC", optional=True),
    Rule(_CHANNEL, _MACS, ("RDMAC", "WRBIAS", "AF"), "tMACRD", optional=True),
    Rule(_CHANNEL, (MAC_AND_SCALE,), ("RDMAC", "WRBIAS", "AF"), "tMACRD + tMACSC", optional=True),
    Rule(_CHANNEL, ("AF",), ("RDAF",), "tMACRD", optional=True),
    Rule(_CHANNEL, ("TMOD",), tuple(c.name for c in _COMMANDS), "tMODCH", optional=True),
    Rule(_CHANNEL, ("REFab",), tuple(c.name for c in _COMMANDS), "tRFC"),
)

GDDR6_AIM = Standard(
    name="gddr6-aim",
    commands=_COMMANDS,
    rules=_BANK_RULES + _GROUP_RULES + _CHANNEL_RULES,
    precharge_all="PREA",
    refresh="REFab",
    refresh_bank="REFpb",
)

STANDARDS = (GDDR6_AIM,)
