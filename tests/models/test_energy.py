"""Energy counters: summed over packages, parts left out, wraps allowed for, absent where there are none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearbank.models import energy
from nearbank.models.energy import Counter, Energy, read_counters, read_energy, spent, spent_uj


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


ADDRESS = "0000:17:00.0"


def fake_nvml(readings_mj: list[int], works: bool = True) -> SimpleNamespace:
    """NVML as its package shows it, with a board at ADDRESS whose counter has these readings one after the other."""

    class NVMLError(Exception):
        pass

    def handle(address: bytes) -> str:
        assert address == ADDRESS.encode()
        return "board"

    def consumed(board: str) -> int:
        if not works or board != "board":
            raise NVMLError
        return readings_mj.pop(0)

    quiet = dict.fromkeys(("nvmlInit", "nvmlShutdown"), lambda: None)
    rules = {"nvmlDeviceGetHandleByPciBusId": handle, "nvmlDeviceGetTotalEnergyConsumption": consumed}
    return SimpleNamespace(NVMLError=NVMLError, **quiet, **rules)


def test_a_gpus_energy_is_counted_where_one_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "read_counters", lambda: {})
    monkeypatch.setattr(energy, "pci_bus_id", lambda: ADDRESS)
    for nvml, backend, expected in (
        (fake_nvml([1000, 1023]), "cupy", 23_000),
        (fake_nvml([2**64 - 1, 4]), "numba-cuda", 5_000),
        (fake_nvml([1000, 1023]), "numba", None),
        (fake_nvml([], works=False), "cupy", None),
        (None, "cupy", None),  # the package is not there
    ):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert spent(read_energy(backend), read_energy(backend)) == Energy(None, expected)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([1000, 1023]))
    monkeypatch.setattr(energy, "pci_bus_id", lambda: None)
    assert read_energy("cupy").gpu == {}
