"""Traces of other simulators: reading, replaying and writing them."""

from nearbank.sim.readers.aim import AimResult, play_aim, read_aim
from nearbank.sim.readers.commands import read_commands, write_commands
from nearbank.sim.readers.gemv import aim_gemv
from nearbank.sim.readers.replay import FORMATS, Replay, replay_file
from nearbank.sim.readers.requests import read_dramsim3, read_ramulator, write_dramsim3, write_ramulator

__all__ = [
    "FORMATS",
    "AimResult",
    "Replay",
    "aim_gemv",
    "play_aim",
    "read_aim",
    "read_commands",
    "read_dramsim3",
    "read_ramulator",
    "replay_file",
    "write_commands",
    "write_dramsim3",
    "write_ramulator",
]
