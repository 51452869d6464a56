"""Figures of studies: which points nothing beats, and where kernels stand under their roof."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from nearbank.plot.kernels import kernel_roofline
from nearbank.plot.study import pareto


def test_pareto_keeps_what_nothing_beats() -> None:
    points = {"fast": (1.0, 3.0), "good": (3.0, 1.0), "both": (2.0, 2.0), "beaten": (2.5, 2.0), "worst": (4.0, 4.0)}
    assert pareto(points) == ["fast", "good", "both"]


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_every_point_is_on_the_front_or_beaten_by_one_on_it(points: dict[str, tuple[int, int]]) -> None:
    front = pareto(points)
    for label, (x, y) in points.items():
        beaten = any(points[f] != (x, y) and points[f][0] <= x and points[f][1] <= y for f in front)
        assert (label in front) != beaten


def test_the_roofline_puts_a_kernel_at_its_intensity_and_speed() -> None:
    # 2 · 1,000 · 1,000 operations on 250 kB of weights in 100 µs.
    row = {"kernel": "gemv", "format": "ternary", "m": 1, "n": 1000, "k": 1000}
    measured = {**row, "time_us": 100.0, "gb_per_s": 2.5, "limit_gb_per_s": 5.0}
    ax = kernel_roofline([measured], Figure().subplots())
    assert ax.collections[0].get_offsets().tolist() == [pytest.approx([8.0, 20.0])]
    # The roof: 5 GB/s up to the fastest product, at 4 operations per byte.
    assert ax.lines[0].get_xydata()[1].tolist() == pytest.approx([4.0, 20.0])
