"""Rows, ratios, tables, figures and the page say the same, and leave out what is not known."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from nearbank import plot
from nearbank.errors import NearbankError
from nearbank.report import MachineRow, Report, Section, energy_ratio, speedup
from nearbank.report.row import number
from nearbank.report.table import table

PIM = MachineRow(
    machine="pim",
    kind="simulated",
    weights="ternary",
    kv="bf16",
    tokens=4,
    time_ns=2_000,
    cycles=2_000,
    energy_by_component_pj={"mac": 300, "activate": 700},
    row_hit_rate=0.984,
    bytes_off_chip=4096,
    time_by_part_ns={"qkv": 1_500, "norm": 500},
    utilisation={"MAC units": 0.5},
    token_time_ns=(800, 400, 400, 400),
)
CPU = MachineRow(machine="cpu <&>", kind="measured", weights="ternary", kv="bf16", tokens=4, time_ns=100_000)
REPORT = Report("Title <b>", (Section("One", (PIM, CPU), CPU.label),), text="so & so", prompt="A:")


def test_ratios_name_their_baseline() -> None:
    assert speedup(PIM, CPU) == 50
    assert energy_ratio(PIM, CPU) is None
    assert energy_ratio(PIM, PIM) == 1


def test_unequal_work_is_not_compared() -> None:
    other = MachineRow(machine="x", kind="modelled", weights="bf16", kv="bf16", tokens=5, time_ns=1)
    with pytest.raises(NearbankError, match="compare equal work"):
        speedup(PIM, other)


def test_unknown_values_are_null_and_parts_sum() -> None:
    pim, cpu = json.loads(json.dumps(REPORT.as_json()))["sections"][0]["machines"]
    assert pim["energy_pj"] == sum(pim["energy_by_component_pj"].values()) == 1000
    for key in ("cycles", "energy_pj", "energy_by_component_pj", "row_hit_rate", "bytes_off_chip"):
        assert cpu[key] is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (1234.5, "1,234"), (12.34, "12.3"), (0.5, "0.5"), (0.00012, "1.2e-04")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_table_has_a_row_per_machine() -> None:
    assert table("t", REPORT.sections[0].rows, CPU).row_count == 2


@pytest.mark.parametrize("name", plot.FIGURES)
def test_every_figure_has_units_on_its_axis(name: str) -> None:
    fig = REPORT.plot(name)
    assert isinstance(fig, Figure)
    axes = fig.axes[0]
    assert re.search(r"µs|µJ|%", axes.get_xlabel() + axes.get_ylabel())


def test_colours_do_not_depend_on_order() -> None:
    assert plot.colours_of(["b", "a"]) == plot.colours_of(["a", "b", "a"])


def test_the_saved_page_stands_alone(tmp_path: Path) -> None:
    REPORT.save(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "so &amp; so" in html
    assert "cpu &lt;&amp;&gt;" in html
    assert "<script" not in html
    assert not re.search(r"""(?:src|href)=["']https?:""", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]+)', html)
    assert set(used) <= set(ids)
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "Title <b>"
    for name in plot.FIGURES:
        assert (tmp_path / f"{name}_1.png").stat().st_size > 1000
