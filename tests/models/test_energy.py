"""Energy counters: summed over packages, parts left out, wraps allowed for, absent where there are none."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nearbank.models.energy import Counter, read_counters, spent_uj


def write(root: Path, domain: str, reading: int, largest: int = 1000) -> None:
    folder = root / domain
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{reading}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    for domain in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        write(tmp_path, domain, 100)
    before = read_counters(tmp_path)
    for domain, reading in (("intel-rapl:0", 150), ("intel-rapl:1", 107), ("intel-rapl:0:0", 140)):
        write(tmp_path, domain, reading)
    assert before.keys() == {"intel-rapl:0", "intel-rapl:1"}
    assert spent_uj(before, read_counters(tmp_path)) == 57


def test_no_counters_mean_no_energy(tmp_path: Path) -> None:
    assert spent_uj(read_counters(tmp_path), read_counters(tmp_path)) is None
    write(tmp_path, "intel-rapl:0", 5)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert read_counters(tmp_path) == {}


@given(start=st.integers(0, 999), spent=st.integers(0, 999))
def test_a_counter_that_wraps_counts_on(start: int, spent: int) -> None:
    before, after = ({"p": Counter(value % 1000, 999)} for value in (start, start + spent))
    assert spent_uj(before, after) == spent
