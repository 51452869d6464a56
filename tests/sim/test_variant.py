"""A machine with values changed in memory: derived values follow, unknown paths are named."""

import pytest

from nearbank.errors import NearbankError
from nearbank.sim.machine import load_machine
from nearbank.sim.variant import what_if

TERNARY = load_machine("pim-gpt-ternary")


def test_nothing_changed_is_the_same_machine_under_another_name() -> None:
    same = what_if(TERNARY, "as it is", {})
    assert same.name == "pim-gpt-ternary, as it is"
    assert same.model_copy(update={"name": TERNARY.name}).model_dump() == TERNARY.model_dump()


def test_lanes_of_a_described_unit_change_what_follows_from_them() -> None:
    assert TERNARY.mac_unit
    narrow = what_if(TERNARY, "16 lanes", {"mac_unit.formats.ternary.unit.lanes": 16})
    assert narrow.mac_unit
    assert (TERNARY.mac_unit.formats["ternary"].per_step, narrow.mac_unit.formats["ternary"].per_step) == (128, 16)


def test_a_text_is_a_value_that_nobody_checked() -> None:
    wide = what_if(TERNARY, "4 KiB buffer", {"global_buffer.size": "4 KiB"})
    assert wide.global_buffer and wide.global_buffer.bytes == 4096
    assert "global_buffer.size" in wide.unverified()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"organisation.columns": 32}, "has no organisation.columns: 'organisation' is not among asic"),
        ({"organization.colums": 32}, "organization.colums: Extra inputs are not permitted"),
        ({"organization.columns": 0}, "organization.columns: Input should be greater than 0"),
        ({"name.first": 1}, "'first' is not among a single value"),
    ],
)
def test_a_bad_change_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(NearbankError, match=said.replace(".", r"\.")):
        what_if(TERNARY, "bad", values)
