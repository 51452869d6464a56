"""Random machines with legal timing and random programs, legal by construction, for the tests of the players."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nearbank.sim.machine import Machine, load_machine
from nearbank.sim.program import Builder, Index, Mark, Program, Start, Stream, Wait

_DUMPS: dict[str, Any] = {}
_TIMES = ("tRCD", "tRP", "tWR", "tRTP", "tRRDS", "tRRDL", "tFAW", "tCL", "tCWL", "tBL", "tWTRS", "tWTRL", "tRTW")
_AIM_TIMES = ("tMACRD", "tWRMAC", "tWRCP", "tMODCH", "tMACSC")


def machine_with(name: str = "pim-gpt", **changes: Any) -> Machine:
    """A shipped machine with other cycles (1 ns each) per timing name, refresh policy and organisation."""
    if name not in _DUMPS:
        _DUMPS[name] = load_machine(name).model_dump(mode="json", by_alias=True)
    dump = {**_DUMPS[name], "tCK": {"value": "1 ns", "source": "test"}}
    timing = {k: v for k, v in changes.items() if k.startswith("t") and k != "tCK"}
    kept = {k: v for k, v in dump["timing"].items() if timing.get(k, 1) is not None}
    given = {k: {"value": f"{v} ns", "source": "test"} for k, v in timing.items() if v is not None}
    dump["timing"] = {**kept, **given}
    dump["refresh"] = {"policy": changes.get("policy", "all_bank"), "source": "test"}
    dump["organization"] = {**dump["organization"], **changes.get("organization", {})}
    return Machine.model_validate(dump)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Changes for `machine_with`: GDDR6-AiM of 4 to 16 banks, short random timings, every refresh policy."""
    cycles = st.integers(0, 12)
    times: dict[str, Any] = {name: draw(cycles) for name in (*_TIMES, *_AIM_TIMES)}
    times["tCCD"] = draw(st.integers(1, 4))
    times["tRAS"] = draw(st.integers(0, 25))
    times["tRC"] = times["tRAS"] + times["tRP"] + draw(st.integers(0, 6))
    times["tRFC"] = draw(st.integers(1, 40))
    times["tRFCpb"] = draw(st.integers(1, 20))
    times["tREFI"] = times["tRFC"] + 250 + draw(st.integers(0, 300))
    times["tREFIpb"] = 150 + draw(st.integers(0, 100))
    for name in draw(
        st.lists(st.sampled_from(["tFAW", "tRTW", "tMODCH", "tWRMAC", "tMACSC"]), max_size=2, unique=True)
    ):
        times[name] = None
    groups = draw(st.sampled_from([1, 2, 4]))
    organization = {"bank_groups": groups, "banks_per_group": 4, "channels": draw(st.sampled_from([1, 4, 32]))}
    policy = draw(st.sampled_from(["all_bank", "all_bank", "per_bank", "none"]))
    return {**times, "policy": policy, "organization": organization}


counts = st.integers(1, 9)
long_counts = st.sampled_from([1, 2, 3, 5, 20, 60])


class Blocks:
    """Draws pieces of programs; each leaves every row closed, so they can stand anywhere."""

    def __init__(self, draw: st.DrawFn, machine: Machine, regular: bool) -> None:
        self.draw = draw
        self.banks = machine.organization.banks
        self.regular = regular

    def count(self) -> int:
        return self.draw(long_counts if self.regular else counts)

    def row(self, loops: list[Index]) -> Index:
        """A base row, moving with some of the open loops."""
        index = Index(self.draw(st.integers(2000, 4000)))
        for loop in loops:
            index = index + loop * self.draw(st.sampled_from([0, 0, 1, 3, -2]))
        return index

    def column(self, loops: list[Index]) -> Index:
        return Index(self.draw(st.integers(0, 3))) + (loops[-1] if loops and self.draw(st.booleans()) else Index(0))

    def whole_row(self, b: Builder, loops: list[Index]) -> None:
        row = self.row(loops)
        b.command("ACT16", row=row)
        name = self.draw(st.sampled_from(["MACAB", "MACAB", "MACSC", "LDSC", "EWMUL", "AF"]))
        with b.loop(min(self.count(), 60)) as c:
            b.command(name, row=row, column=c)
        if self.draw(st.booleans()):
            b.command(self.draw(st.sampled_from(["RDMAC", "WRBIAS", "RDAF"])))
        b.command("PREA")

    def written_row(self, b: Builder, loops: list[Index]) -> None:
        """Writes to all banks, each of which closes the row it wrote."""
        row = self.row(loops)
        with b.loop(self.count()) as i:
            b.command("ACT16", row=row + i)
            b.command("WRBK", row=row + i, column=self.column(loops))

    def one_bank(self, b: Builder, loops: list[Index]) -> None:
        row, bank = self.row(loops), self.bank(loops)
        b.command("ACT", bank=bank, row=row)
        name = self.draw(st.sampled_from(["RD", "WR", "MACSB", "RDCP", "WRCP"]))
        with b.loop(self.draw(counts)) as c:
            b.command(name, bank=bank, row=row, column=c)
        b.command("PRE", bank=bank)

    def bank(self, loops: list[Index]) -> Index:
        """A bank, in some loops another one each round (loops have at most 9 rounds then)."""
        if loops and not self.regular and self.draw(st.booleans()) and self.banks == 16:
            return Index(self.draw(st.integers(0, 7))) + loops[-1]
        return Index(self.draw(st.integers(0, self.banks - 1)))

    def four_banks(self, b: Builder, loops: list[Index]) -> None:
        row, bank = self.row(loops), 4 * self.draw(st.integers(0, self.banks // 4 - 1))
        b.command("ACT4", bank=bank, row=row)
        with b.loop(self.draw(counts)) as c:
            b.command("MAC4B", bank=bank, row=row, column=c)
        b.command("PREA" if self.draw(st.booleans()) else "PRE", bank=bank)
        b.command("PREA")

    def several_banks(self, b: Builder, loops: list[Index]) -> None:
        """Rows of several banks open at once, as tFAW, tRRD and the reopening after a refresh see them."""
        row = self.row(loops)
        banks = self.draw(st.lists(st.integers(0, self.banks - 1), min_size=1, max_size=6, unique=True))
        for bank in banks:
            b.command("ACT", bank=bank, row=row + bank)
        with b.loop(self.draw(counts)):
            for bank in banks:
                b.command(self.draw(st.sampled_from(["RD", "WR"])), bank=bank, row=row + bank)
        b.command("PREA")

    def registers(self, b: Builder, loops: list[Index]) -> None:
        name = self.draw(st.sampled_from(["WRGB", "WRBIAS", "RDMAC", "RDAF", "TMOD"]))
        with b.loop(self.count()):
            b.command(name, column=self.column([]))

    def carried_row(self, b: Builder, loops: list[Index]) -> None:
        """A row opened at the end of one round and used in the next."""
        row = self.row(loops)
        b.command("ACT16", row=row)
        with b.loop(self.count()) as i:
            b.command("MACAB", row=row + i)
            b.command("PREA")
            b.command("ACT16", row=row + i + 1)
        b.command("PREA")

    def refresh(self, b: Builder, loops: list[Index]) -> None:
        b.command("REFab" if self.draw(st.booleans()) else "REFpb", bank=0)

    def block(self, b: Builder, loops: list[Index]) -> None:
        kinds = [self.whole_row, self.whole_row, self.one_bank, self.four_banks, self.several_banks]
        self.draw(st.sampled_from([*kinds, self.written_row, self.registers, self.carried_row, self.refresh]))(b, loops)


@st.composite
def programs(draw: st.DrawFn, machine: Machine) -> Program:
    """One to three streams with equal meetings; nested loops, regular and irregular."""
    regular = draw(st.booleans())
    streams = draw(st.integers(1, min(3, machine.organization.channels)))
    blocks = Blocks(draw, machine, regular)
    builders = [Builder() for _ in range(streams)]
    for _ in range(draw(st.integers(1, 4))):
        _part(draw, blocks, builders, [[] for _ in builders], 0)
    channels = machine.organization.channels
    last = draw(st.sampled_from([channels, streams]))
    owned = [(i,) for i in range(streams - 1)] + [tuple(range(streams - 1, last))]
    return Program("random", tuple(Stream(c, b.body()) for c, b in zip(owned, builders, strict=True)))


def _part(draw: st.DrawFn, blocks: Blocks, builders: list[Builder], loops: list[list[Index]], depth: int) -> None:
    """The next part of all streams: a block each, one for all, a meeting, or a common loop around further parts."""
    kind = draw(st.sampled_from(["block", "same", "meeting", "loop" if depth < 2 else "block"]))
    if kind == "same":
        one = Builder([[] for _ in range(depth + 1)])
        blocks.block(one, loops[0])
        for b in builders:
            for node in one._open[-1]:
                b.add(node)
    elif kind == "block":
        for b, around in zip(builders, loops, strict=True):
            blocks.block(b, around)
    elif kind == "meeting":
        _meeting(draw, builders)
    else:
        count = draw(counts)
        first = draw(st.integers(0, 9 - count))
        nests = [b.loop(count, first) for b in builders]
        counters = [nest.__enter__() for nest in nests]
        inner = [[*around, counter] for around, counter in zip(loops, counters, strict=True)]
        for _ in range(draw(st.integers(1, 2))):
            _part(draw, blocks, builders, inner, depth + 1)
        for nest in nests:
            nest.__exit__(None, None, None)


def _meeting(draw: st.DrawFn, builders: list[Builder]) -> None:
    unit = draw(st.sampled_from(["asic", "link"]))
    duration = draw(st.integers(0, 300_000))
    start, wait = Start(unit, "job", duration), Wait(unit)
    nodes = draw(st.sampled_from([(start,), (wait,), (start, wait), (Mark("phase"),)]))
    for b in builders:
        for node in nodes:
            b.add(node)
