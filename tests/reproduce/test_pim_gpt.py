"""The reproduction: its rows, what stands beside them, the page, and the stored results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nearbank.cli.app import run
from nearbank.errors import NearbankError
from nearbank.models.config import CONFIGS
from nearbank.reproduce import Options, Results, reproduce_pim_gpt
from nearbank.reproduce.capacity import capacity
from nearbank.reproduce.figures import FIGURES, figure
from nearbank.reproduce.page import page, write_page
from nearbank.reproduce.pim_gpt import AXES, points_of
from nearbank.reproduce.published import CLAIMS, compare
from nearbank.reproduce.results import load_results
from nearbank.sim.machine import load_machine
from nearbank.study.point import Point, simulate

STORED = Path(__file__).parents[2] / "docs" / "reproduction" / "pim-gpt.json"
FEW = Options(
    models=("gpt2-small", "gpt3-xl"),
    tokens=3,
    sensitivity_models=("gpt2-small",),
    sensitivity_steps=2,
    token_counts=(2, 4),
    axes=(AXES[0], replace(AXES[1], values=(8, 16))),
    quick=True,
)
COLUMNS = [
    "model", "time_ns_per_token", "energy_pj_per_token", "row_hit_rate", "off_chip_reduction", "non_vmm_share",
    "speedup_gpu_eager", "speedup_gpu_roofline", "speedup_cpu_eager", "energy_ratio_gpu", "energy_ratio_cpu",
    "slowdown_asic_100mhz",
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return reproduce_pim_gpt(FEW, tmp_path_factory.mktemp("parts"), lambda what, done, total: None)


def test_rows_have_the_columns_and_agree_with_their_parts(results: Results) -> None:
    assert [row["model"] for row in results.rows] == list(FEW.models)
    for row in results.rows:
        assert list(row) == COLUMNS
        detail = results.details[row["model"]]
        assert sum(detail["time_by_part_ns_per_token"].values()) == pytest.approx(row["time_ns_per_token"], rel=1e-3)
        energy = sum(pj for pj in detail["energy_by_component_pj_per_token"].values() if pj is not None)
        assert energy == pytest.approx(row["energy_pj_per_token"])
        assert detail["row_aware_bound_ns"] < row["time_ns_per_token"]
        moved = detail["bytes_plain_gddr6_per_token"] / detail["bytes_off_chip_per_token"]
        assert moved == pytest.approx(row["off_chip_reduction"])


def test_every_axis_starts_from_the_same_machine(results: Results) -> None:
    rows = {(row["axis"], row["value"]): row["relative_time"] for row in results.sensitivities}
    assert rows["ASIC clock", 1000] == rows["channels", 8] == rows["tokens", 2] == 1
    assert rows["ASIC clock", 100] > rows["ASIC clock", 500] > 1 > rows["channels", 16]


def test_energy_by_reads_differs_in_the_reads_alone(results: Results) -> None:
    for model, detail in results.details.items():
        reads, parts = detail["energy_by_reads"], detail["energy_by_component_pj_per_token"]
        own, others = next(iter(reads.values())), list(reads.values())[1:]
        assert own["energy_pj_per_token"] == pytest.approx(results.column("energy_pj_per_token")[model])
        for other, fj_per_bit in zip(others, (440, 1510, (530 - 142) * 1250 / 256), strict=True):
            more = (fj_per_bit / 284 - 1) * parts["mac_read"]
            assert other["energy_pj_per_token"] == pytest.approx(own["energy_pj_per_token"] + more, rel=1e-3)


def test_capacity_is_where_placing_begins_to_fail() -> None:
    point = Point(replace(CONFIGS["gpt2-xl"].shape, context=8192), load_machine("pim-gpt"), 8192)
    found = capacity(point)
    assert found.needed_bytes > 2 * point.workload().model.weights()
    with pytest.raises(NearbankError, match=f"it needs {-found.spare_bytes} bytes more than there are"):
        simulate(point, lambda done: None)


def test_a_longer_context_is_named(results: Results) -> None:
    points = points_of(Options(models=(), sensitivity_models=("gpt2-small",), token_counts=(1024, 4096), axes=()))
    assert [point.shape.name for point in points.values()] == ["gpt2-small", "gpt2-small-4096"]
    assert [row["shape"] for row in results.sensitivities if row["axis"] == "tokens"] == ["gpt2-small"] * 2


def test_claims_are_compared_with_the_whole_range() -> None:
    (gpu,) = [claim for claim in CLAIMS if claim.column == "speedup_gpu_eager"]
    assert [round(gpu.deviation(x), 3) for x in (41, 100, 137, 20.5, 274)] == [0, 0, 0, -0.5, 1]
    base = dict.fromkeys(COLUMNS[1:], 1.0) | {"row_hit_rate": 0.98, "non_vmm_share": 0.0116}
    rows = [{**base, "model": "gpt3-xl", "speedup_gpu_eager": x, "speedup_cpu_eager": 700} for x in (41, 150)]
    found = {claim["column"]: claim for claim in compare(rows)}
    assert found["speedup_gpu_eager"]["verdict"] == "within tolerance"
    assert found["speedup_cpu_eager"]["verdict"] == "reproduced"
    assert found["energy_ratio_gpu"]["verdict"] == "missed"
    assert found["row_hit_rate"]["verdict"] == found["slowdown_asic_100mhz"]["verdict"] == "reproduced"


def test_only_the_abstract_counts_as_verified() -> None:
    assert [claim.column for claim in CLAIMS if claim.verified] == [
        "speedup_gpu_eager",
        "speedup_cpu_eager",
        "energy_ratio_gpu",
        "energy_ratio_cpu",
    ]


def test_the_page_says_quick_and_unverified_and_explains_misses(results: Results, tmp_path: Path) -> None:
    text = write_page(results, tmp_path).read_text(encoding="utf-8")
    assert "A quick run" in text
    assert "unverified" in text
    for claim in results.published:
        assert claim["quantity"] in text
        assert (f"**{claim['quantity']}.**" in text) == (claim["verdict"] != "reproduced")
    assert {path.name for path in (tmp_path / "reproduction").glob("*.svg")} == {f"{name}.svg" for name in FIGURES}
    assert load_results(tmp_path / "reproduction" / "pim-gpt.json") == results


def test_figures_have_units_on_their_axes(results: Results) -> None:
    for name in FIGURES:
        for ax in figure(name, results).axes:
            assert not ax.has_data() or ax.get_ylabel(), name


def test_the_stored_page_is_that_of_the_stored_results() -> None:
    stored = load_results(STORED)
    assert not stored.quick
    assert stored.tokens == 1024
    assert len(stored.rows) == 8
    assert (STORED.parents[1] / "reproduction.md").read_text(encoding="utf-8") == page(stored)


def test_the_command_prints_the_stored_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("reproduce", "pim-gpt", "--from", str(STORED), "--out", str(tmp_path))
    assert run((*arguments, "--json")) == 0
    assert list(json.loads(capsys.readouterr().out)["rows"][0]) == COLUMNS
    assert run(arguments) == 0
    assert "gpt3-xl" in capsys.readouterr().out


def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(("reproduce", "pim-gtp")) == 2
    assert "known: pim-gpt" in capsys.readouterr().err
    for text in ("{", "[]", '{"schema": "nearbank.reproduction/1"}'):
        (tmp_path / "broken.json").write_text(text, encoding="utf-8")
        with pytest.raises(NearbankError, match=r"broken\.json"):
            load_results(tmp_path / "broken.json")
