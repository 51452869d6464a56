"""What a study gives: rows that are those of the replay, errors with by how much, fronts, a table that reads back."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearbank.cli.app import run as command
from nearbank.errors import NearbankError
from nearbank.replay import replay
from nearbank.study import Quality, Study, StudyResults, load_results, run
from nearbank.study.figures import front, heat_map, lines, report_figures
from nearbank.study.metrics import COLUMNS, METRICS
from nearbank.study.page import write_page
from nearbank.study.settings import point_of

MIXED = Study(
    name="mixed",
    base={"model": "gpt2-small", "machine": "pim-gpt-ternary", "tokens": 3},
    axes={"weights": ["bf16", "ternary"], "kv": ["bf16", "int4"], "channels": [1, 8]},
    quality=Quality(title="loss", source="made up here", by="weights", values={"ternary": 1.5}),
)


ON = {
    "as it is": {"machine": "pim-gpt"},
    "without units": {"machine": "ddr4"},
    "contradiction": {"timing.tRC": "1 ns"},
    "no such lanes": {"weights": "ternary-b3"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    folder = tmp_path_factory.mktemp("study")
    found = run(MIXED, folder)
    assert load_results(folder).rows == found.rows
    assert pq.read_table(folder / "table.parquet").equals(found.table)
    return found


def test_rows_are_those_of_the_replay(results: StudyResults) -> None:
    assert len(results.good) == 8
    for row in results.good[::3]:
        point = point_of(MIXED.settings({axis: row[axis] for axis in MIXED.choices}))
        direct = replay(point.workload(), point.machine).row
        assert row["time_ns_per_token"] == direct.ns_per_token
        assert row["energy_pj_per_token"] == direct.pj_per_token
        assert row["row_hit_rate"] == direct.row_hit_rate
        assert row["bound_ns_per_token"] <= row["time_ns_per_token"]


def test_what_is_unknown_is_absent(results: StudyResults) -> None:
    by_weights = {row["weights"]: row for row in results.good}
    assert by_weights["bf16"]["quality"] is None and by_weights["ternary"]["quality"] == 1.5
    assert by_weights["bf16"]["mac_units_area_mm2"] is None  # the machine file gives no area for it
    unit = by_weights["ternary"]
    assert unit["mac_units_area_mm2"] == pytest.approx(unit["mac_unit_area_um2"] * unit["channels"] * 16 / 1e6)
    assert set(results.table.schema.names) == {*MIXED.choices, *METRICS, *COLUMNS}


def test_failures_are_rows_that_say_by_how_much(tmp_path: Path) -> None:
    asked = Study(
        name="failing",
        base={"model": "gpt2-small", "tokens": 2},
        axes={"model": ["gpt2-small", "gpt3-175b"], "on": ON},
    )
    found = run(asked, tmp_path)
    said = {(row["model"], row["on"]): str(row["error"]) for row in found.rows}
    assert said["gpt2-small", "as it is"] == "None"
    assert "it needs 345437634560 bytes more than there are" in said["gpt3-175b", "as it is"]
    assert "MAC" in said["gpt2-small", "without units"]
    assert "tRC: 1000 ps is less than tRAS + tRP = 40000 ps" in said["gpt2-small", "contradiction"]
    assert "its MAC units have no format 'ternary-b3'; they have: bf16" in said["gpt2-small", "no such lanes"]
    assert (len(found.good), len(found.failed)) == (1, 7)
    page = write_page(found, tmp_path)[0].read_text(encoding="utf-8")
    assert "345437634560 bytes" in page


@given(
    st.lists(st.tuples(*[st.integers(0, 4) | st.none()] * 3), min_size=1, max_size=12),
)
def test_the_front_is_what_nothing_beats(costs: list[tuple[int | None, ...]]) -> None:
    names = ("time_ns_per_token", "energy_pj_per_token", "quality")
    empty = dict.fromkeys((*METRICS, *COLUMNS))
    rows = [{**empty, **dict(zip(names, cost, strict=True)), "trial": i} for i, cost in enumerate(costs)]
    best = {row["trial"] for row in StudyResults(MIXED, rows).front()}
    for i, mine in enumerate(costs):
        beaten = any(
            None not in other and other != mine and all(a <= b for a, b in zip(other, mine, strict=True))  # type: ignore[operator]
            for other in costs
            if None not in mine
        )
        assert (i in best) == (None not in mine and not beaten)


def test_more_is_better_turns_the_front_round(results: StudyResults) -> None:
    (fastest,) = results.front("tokens_per_s")
    assert fastest["time_ns_per_token"] == min(row["time_ns_per_token"] for row in results.good)


def test_pictures_show_the_rows(results: StudyResults) -> None:
    ax = lines(results, "channels", "time_ns_per_token", "weights").axes[0]
    assert ax.get_xlabel() == "channels" and ax.get_ylabel() == "time per token [µs]"
    best = min(r["time_ns_per_token"] for r in results.good if (r["channels"], r["weights"]) == (8, "ternary"))
    assert ax.lines[1].get_ydata()[1] == pytest.approx(best / 1000)
    assert ax.get_title() == "time per token, best over kv"
    cells = heat_map(results, "weights", "channels", "mac_units_area_mm2").axes[0]
    assert sorted(text.get_text() for text in cells.texts)[-2:] == ["×", "×"]  # bf16: not known
    fig = front(results, "time_ns_per_token", "energy_pj_per_token", "weights")
    assert [text.get_text() for text in fig.axes[0].get_legend().texts] == ["weights bf16", "weights ternary"]
    assert len(list(report_figures(results))) >= 6
    with pytest.raises(NearbankError, match="the study has no axis 'chanels'; nearest: channels"):
        lines(results, "chanels", "time_ns_per_token")
    with pytest.raises(NearbankError, match="unknown metric 'time'"):
        lines(results, "channels", "time")


def test_show_prints_and_draws_what_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: s\nbase: {model: gpt2-small, tokens: 2}\naxes: {channels: [4, 8]}\n", encoding="utf-8")
    out = tmp_path / "out"
    assert command(("study", "run", str(file), "--out", str(out), "--workers", "0", "--json")) == 0
    first = json.loads(capsys.readouterr().out)
    assert (len(first["rows"]), first["failed"], first["waiting"], first["reused"]) == (2, 0, 0, 0)
    assert command(("study", "show", str(out), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first["rows"]
    assert command(("study", "show", str(out), "--x", "channels", "--save", str(out / "a.png"))) == 0
    assert (out / "a.png").stat().st_size > 1000 and (out / "study.html").exists()
    assert "channels" in capsys.readouterr().out
    for arguments, said in (
        ((str(tmp_path),), "no study lies here"),
        ((str(out), "--front", "time"), "expected two metrics with a comma"),
        ((str(out), "--by", "channels"), "give --x AXIS"),
        ((str(out), "--x", "lanes"), "no axis 'lanes'"),
    ):
        assert command(("study", "show", *arguments)) == 2
        assert said in capsys.readouterr().err


def test_fields_lists_what_axes_may_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(("study", "fields", "pim-gpt", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert "channels" in found["knobs"] and "timing.tRCD" in found["machine"] and "context" in found["run"]
