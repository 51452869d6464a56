"""A machine file is refused with the file, the key and what was expected; every bundled one loads."""

from pathlib import Path

import pytest

from nearbank.errors import NearbankError
from nearbank.sim.machine import Machine, load_machine, machine_names
from nearbank.sim.rules import rulebook

HEAD = "extends: pim-gpt\nname: mine\ntitle: what if\n"
PER_BANK = "timing: {tREFIpb: {value: 488 ns, source: what if}}\n"


def constant(name: str, value: str) -> str:
    return f"{HEAD}timing: {{{name}: {{value: {value}, source: what if}}}}\n"


@pytest.mark.parametrize("name", machine_names())
def test_every_bundled_machine_loads_with_sources(name: str) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert all(value.source for value in machine.timing.values())
    assert rulebook(machine).banks % machine.organization.banks == 0


def test_a_file_extends_another_and_overrides_one_value(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(constant("tRCD", "20 ns"))
    mine, base = load_machine(str(path)), load_machine("pim-gpt")
    assert (mine.cycles("tRCD"), base.cycles("tRCD")) == (20, 12)
    assert mine.timing["tRP"] == base.timing["tRP"]
    assert mine.digest != base.digest


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (HEAD + "foo: 3\n", "foo: unknown key"),
        (HEAD + "timing: {tRCD: 12 ns}\n", "has no source"),
        (constant("tRCD", "12"), "12 has no unit"),
        (constant("tRCD", "12 V"), "unknown unit 'V' for time"),
        (constant("tRCD", "0.5 ps"), "not a whole number of ps"),
        (constant("tRCD", "-1 ns"), "is negative"),
        (constant("tRC", "1 ns"), "less than tRAS + tRP"),
        (constant("tREFI", "400 ns"), "not more than tRFC"),
        (constant("tRcd", "12 ns"), "timing.tRcd: no standard has such a time; known: "),
        (constant("tRCD", "9999999 s"), "expected at most 1 s"),
        (HEAD + "timing: fast\n", "timing: expected keys with values"),
        (HEAD + "tCK: {value: 0 ns, source: what if}\n", "tCK: a clock of 0 ps"),
        (HEAD + "asic: {clock: {value: 0 Hz, source: what if}}\n", "asic.clock: '0 Hz': expected more than 0"),
        (HEAD + "standard: ddr9\n", "standard: unknown standard 'ddr9'"),
        (HEAD + "controller: {write_low: 0.9}\n", "controller: write_low 0.9 is above write_high 0.8"),
        (HEAD + "organization: {channels: 0}\n", "organization.channels"),
        (HEAD + "organization: {column_bytes: 7}\n", "7 bytes; expected a power of two"),
        (HEAD + "global_buffer: {size: {value: 0 KiB, source: what if}}\n", "'0 KiB': expected more than 0"),
        (HEAD + "refresh: {policy: per_bank}\n", "refresh per_bank needs tREFIpb"),
        ("extends: ddr4\nname: mine\nrefresh: {policy: per_bank}\n" + PER_BANK, "ddr4 has no refresh of one bank"),
        ('extends: pim-gpt\nname: ""\n', "name: String should have at least 1 character"),
        (HEAD + "organization: {rows: 2147483647, columns: 2147483647}\n", "bytes; expected at most"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("schema: nearbank.machine/1\nname: x\n", "title: is missing"),
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: nothing\n", "unknown machine 'nothing'"),
        ("- a\n- b\n", "expected a mapping"),
        ("a: [\n", "not readable as YAML"),
        ("", "expected a mapping"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(NearbankError) as caught:
        load_machine(str(path))
    assert complaint in str(caught.value)
    assert "mine.yaml" in str(caught.value) or "nothing" in complaint
    assert "\n" not in str(caught.value)


def test_a_missing_timing_value_is_named() -> None:
    content = load_machine("pim-gpt").model_dump(by_alias=True)
    del content["timing"]["tRAS"]
    with pytest.raises(NearbankError, match="tRAS is missing"):
        rulebook(Machine.model_validate(content))


def test_a_changed_copy_is_another_machine() -> None:
    machine = load_machine("pim-gpt")
    rules = rulebook(machine)
    never = machine.model_copy(update={"refresh": machine.refresh.model_copy(update={"policy": "none"})})
    assert never.digest != machine.digest
    assert rules.refresh.interval > 0
    assert rulebook(never).refresh.interval == 0
