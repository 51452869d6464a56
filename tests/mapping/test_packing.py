"""Every column of every output has one place of its own, and rows are visited in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearbank.mapping.packing import Packing, best_packing

PACKINGS = st.builds(Packing, st.integers(1, 150), st.sampled_from([16, 60, 64]), st.booleans())


@given(PACKINGS, st.integers(1, 40))
def test_places_are_distinct_and_counted(packing: Packing, outputs: int) -> None:
    places = [packing.place(o, j) for o in range(outputs) for j in range(packing.columns)]
    assert len(set(places)) == len(places)
    assert all(0 <= column < packing.row_columns for _, column in places)
    assert max(row for row, _ in places) + 1 <= packing.rows(outputs)
    each, rows = packing.period
    assert packing.place(each) == (rows, 0)


@given(PACKINGS, st.integers(1, 40))
def test_visits_cover_every_column_once_in_order(packing: Packing, outputs: int) -> None:
    seen = [
        (run.output, run.offset + j, row, run.column + j)
        for row, runs in packing.visits(outputs)
        for run in runs
        for j in range(run.count)
    ]
    expected = [(o, j, *packing.place(o, j)) for o in range(outputs) for j in range(packing.columns)]
    assert seen == expected
    rows = [row for row, _ in packing.visits(outputs)]
    assert rows == sorted(set(rows))
    ends = [run.output for _, runs in packing.visits(outputs) for run in runs if run.last]
    assert ends == list(range(outputs))


def test_crossing_rows_pays_where_rows_stay_partly_empty() -> None:
    assert not best_packing(64, 64, 1, row_change=27, readout=6).crossing
    assert best_packing(48, 64, 1, row_change=27, readout=6).crossing
    assert not best_packing(48, 64, 1, row_change=27, readout=12).crossing
    assert best_packing(36, 64, 1, row_change=27, readout=6).crossing
