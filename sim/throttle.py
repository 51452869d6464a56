"""A power budget as timing: how far apart commands must be so that a channel never takes more than it may.

Each command is followed by as many clocks as its energy fills at the budget, less the standby of open rows. So over
any stretch of time a channel takes at most the budget and the energy of one command more. The rules made here stand
in the same table as a standard's own: engine, reference and checker obey and attribute them alike. MAC commands are
spaced for the most expensive unit of the machine, as AttAcc does (tCCD 4 -> 6); `with_units` leaves it those that a run
uses. Energy that the machine gives no constant for does not count; that of activations and of MACs must be known.
"""

from __future__ import annotations

from collections.abc import Collection
from math import ceil

from nearbank import units
from nearbank.errors import NearbankError
from nearbank.sim.energy import Activity, exact_energy
from nearbank.sim.machine import Machine
from nearbank.sim.result import SimResult
from nearbank.sim.rules import RuleBook, rulebook
from nearbank.sim.standard import MAC_AND_SCALE, CommandSpec, Effect, Rule, Scope
from nearbank.units import ceil_div

PREFIX = "tPOWER_"
_NEEDED = ("activate", "mac", "mac_read")


def power_delays(machine: Machine) -> dict[str, int]:
    """Clocks that each command keeps a channel's next one waiting, by the name of the delay; {} without a budget."""
    constant = machine.power.budget_per_channel
    if constant is None:
        return {}
    free = machine.model_copy(update={"power": machine.power.model_copy(update={"budget_per_channel": None})})
    book = rulebook(free)
    budget_nw = units.POWER.parse(constant.value)
    spare_nw = budget_nw - _standby_nw(free)
    if spare_nw <= 0:
        raise NearbankError(
            f"machine {machine.name}: power.budget_per_channel: {constant.value} is not more than what a channel takes "
            f"with open rows, {units.POWER.format(budget_nw - spare_nw)}"
        )
    energies = {name: _energy_zj(free, book, spec) for name, spec in book.specs.items()}
    per_clock = spare_nw * machine.tck_ps
    clocks = {name: ceil_div(energy, per_clock) for name, energy in energies.items() if energy > 0}
    _check_refresh(machine, book, clocks)
    return {f"{PREFIX}{name}": count for name, count in clocks.items()}


def _check_refresh(machine: Machine, book: RuleBook, clocks: dict[str, int]) -> None:
    """Refuse a budget that refresh alone, with rows closed and opened again for it, would exceed."""
    interval = book.refresh.interval
    opens = sum(clocks.get(name, 0) for name in (book.refresh.activate_all, book.refresh.refresh) if name)
    one_by_one = clocks.get(book.refresh.activate, 0) * book.refresh.region
    if interval and 2 * (opens + one_by_one) >= interval:
        raise NearbankError(
            f"machine {machine.name}: power.budget_per_channel: most of the {interval} clocks "
            f"between refreshes would go to {book.refresh.refresh} and to opening rows again; expected more"
        )


def power_rules(delays: dict[str, int]) -> tuple[Rule, ...]:
    """The rules of those delays: every command that takes energy waits for every other in its channel."""
    names = tuple(delay.removeprefix(PREFIX) for delay in delays)
    return tuple(Rule(Scope.CHANNEL, (name,), names, f"{PREFIX}{name}") for name in names)


def _standby_nw(machine: Machine) -> int:
    """What a channel takes with open rows; 0 where that is not known."""
    found = exact_energy(Activity({}, {}, 1, 0, 1, {}), machine)["background_active"]
    return ceil(found or 0)  # zJ in 1 ps are nW


def with_units(machine: Machine, names: Collection[str]) -> Machine:
    """For a run with a budget: the machine with no MAC units but these; without a budget the machine itself."""
    mac = machine.mac_unit
    if mac is None or machine.power.budget_per_channel is None:
        return machine
    kept = {name: lanes for name, lanes in mac.formats.items() if name in names}
    return machine.model_copy(update={"mac_unit": mac.model_copy(update={"formats": kept})})


def _energy_zj(machine: Machine, book: RuleBook, spec: CommandSpec) -> int:
    """One command's energy, that of the most expensive unit for a MAC; 0 where no unit has the command."""
    return max((_command_zj(machine, spec, fmt, book.reach[spec.name]) for fmt in _formats(machine, spec)), default=0)


def _formats(machine: Machine, spec: CommandSpec) -> list[str]:
    """Units that a command may be for."""
    if not spec.macs or not machine.mac_unit:
        return [""]
    units = machine.mac_unit.formats.items()
    return [name for name, lanes in units if lanes.scales or spec.name != MAC_AND_SCALE]


def _command_zj(machine: Machine, spec: CommandSpec, fmt: str, banks: int) -> int:
    once = {(spec.name, fmt): 1}
    found = exact_energy(Activity(once, {(spec.name, fmt): banks}, 0, 0, 0, {}), machine)
    missing = [name for name in _NEEDED if found[name] is None]
    if missing:
        raise NearbankError(
            f"machine {machine.name}: power.budget_per_channel needs the energy of {spec.name} {fmt}".rstrip()
            + f", but the machine has no constant for {', '.join(missing)}; give one, or leave the budget out"
        )
    return ceil(sum(zj or 0 for zj in found.values()))


def explain_budget(machine: Machine, result: SimResult) -> str | None:
    """One sentence on what the budget costs in a run, or None for a machine without one."""
    budget = machine.power.budget_per_channel
    if budget is None:
        return None
    delays = {name: clocks for name, clocks in power_delays(machine).items() if _matters(machine, name)}
    spacing = ", ".join(f"{name.removeprefix(PREFIX)} {clocks}" for name, clocks in delays.items())
    total = sum(channel.cycles * len(channel.channels) for channel in result.channels)
    held = sum(cycles for reason, cycles in result.stalls().items() if reason.startswith(PREFIX))
    return (
        f"The power budget of {budget.value} per channel holds the next command back in {100 * held / total:.1f} % of "
        f"the cycles (clocks after each command: {spacing})."
    )


def _matters(machine: Machine, delay: str) -> bool:
    spec = rulebook(machine).specs[delay.removeprefix(PREFIX)]
    return spec.macs or spec.effect is Effect.OPENS
