"""The timeline, read back by Perfetto's own schema, holds every command at its time and every open row."""

from pathlib import Path

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

from nearbank.sim.engine import Player
from nearbank.sim.machine import load_machine
from nearbank.sim.program import Builder, Program, Stream
from nearbank.sim.rules import rulebook
from nearbank.sim.timeline import write_timeline


def a_program() -> Program:
    b = Builder()
    with b.loop(3) as row:
        b.command("ACT16", row=row)
        with b.loop(4) as column:
            b.command("MACAB", row=row, column=column)
        b.command("PREA")
    b.command("ACT", bank=5, row=9)
    return Program("three rows", (Stream((0, 1), b.body()), Stream((2,), b.body())))


def test_the_timeline_holds_what_was_issued(tmp_path: Path) -> None:
    machine = load_machine("pim-gpt")
    issued = Player(machine).record(a_program(), 0, 10_000)
    write_timeline(tmp_path / "t", issued, rulebook(machine), machine.tck_ps)
    trace = perfetto.Trace.FromString((tmp_path / "t").read_bytes())
    names = {p.track_descriptor.uuid: p.track_descriptor.name for p in trace.packet if p.HasField("track_descriptor")}
    begins = [p for p in trace.packet if p.track_event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN]
    ends = [p for p in trace.packet if p.track_event.type == perfetto.TrackEvent.TYPE_SLICE_END]
    on_bus = [p for p in begins if names[p.track_event.track_uuid] == "command bus"]
    assert [(p.timestamp, p.track_event.name) for p in on_bus] == [
        (i.cycle * machine.tck_ps, i.command) for i in issued
    ]
    assert len(begins) == len(ends)
    channels = {i.channel for i in issued}
    rows = [p.track_event.name for p in begins if names[p.track_event.track_uuid] == "bank 5: open row"]
    assert rows == ["row 0", "row 1", "row 2", "row 9"] * len(channels)


def test_slices_of_a_track_do_not_overlap(tmp_path: Path) -> None:
    machine = load_machine("pim-gpt")
    issued = Player(machine).record(a_program(), 0, 10_000)
    write_timeline(tmp_path / "t", issued, rulebook(machine), machine.tck_ps)
    trace = perfetto.Trace.FromString((tmp_path / "t").read_bytes())
    open_since: dict[int, int] = {}
    for packet in trace.packet:
        event = packet.track_event
        if event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_since
            open_since[event.track_uuid] = packet.timestamp
        elif event.type == perfetto.TrackEvent.TYPE_SLICE_END:
            assert packet.timestamp > open_since.pop(event.track_uuid)
    assert not open_since
