"""Pictures of a study: a metric along an axis, over two axes, and one metric against another.

Where a study has more axes than a picture shows, each place of the picture has the best value over the others, and its
title says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

from nearbank.errors import NearbankError
from nearbank.plot import study as draw
from nearbank.study.knobs import KNOBS
from nearbank.study.metrics import Metric, metric_named
from nearbank.study.results import Row, StudyResults, each
from nearbank.study.settings import Scalar, nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def lines(results: StudyResults, x: str, metric: str, by: str | None = None) -> Figure:
    """`metric` along axis `x`, a line for each value of axis `by`."""
    shown = metric_named(metric)
    axes = _axes(results, x, *([by] if by else []))
    fig, ax = _empty()
    series = {}
    for value in results.study.choices[by] if by else [None]:
        best = _best([row for row in results.good if by is None or row[by] == value], (x,), metric)
        points = [(step, best[step,]) for step in results.study.choices[x] if (step,) in best]
        if points:
            series["all" if value is None else f"{by} {value}"] = points
    draw.lines(series, ax)
    ax.set_xlabel(_label(x))
    ax.set_ylabel(shown.label)
    ax.set_title(_title(results, shown, axes), fontsize=10)
    return fig


def heat_map(results: StudyResults, x: str, y: str, metric: str) -> Figure:
    """`metric` over axes `x` and `y`."""
    shown = metric_named(metric)
    axes = _axes(results, x, y)
    fig, ax = _empty()
    best = _best(results.good, (x, y), metric)
    columns, rows = ([str(value) for value in results.study.choices[axis]] for axis in (x, y))
    values = {(str(a), str(b)): value for (a, b), value in best.items()}
    draw.heat_map(columns, rows, values, ax, label=shown.label)
    ax.set_xlabel(_label(x))
    ax.set_ylabel(_label(y))
    ax.set_title(_title(results, shown, axes), fontsize=10)
    return fig


def front(results: StudyResults, first: str, second: str, by: str | None = None) -> Figure:
    """Every point by two metrics, coloured by axis `by`, and the front that nothing beats in both."""
    metrics = metric_named(first), metric_named(second)
    if not all(metric.less_is_better for metric in metrics):
        raise NearbankError(f"a front is of metrics where less is better, which {first} and {second} are not both")
    _axes(results, *([by] if by else []))
    fig, ax = _empty()
    known = [row for row in results.good if row[first] is not None and row[second] is not None]
    groups = {}
    for value in results.study.choices[by] if by else [None]:
        points = [_place(row, first, second) for row in known if by is None or row[by] == value]
        if points:
            groups["all" if value is None else f"{by} {value}"] = points
    draw.front(groups, [_place(row, first, second) for row in results.front(first, second)], ax)
    ax.set_xlabel(_named(results, first, metrics[0]))
    ax.set_ylabel(_named(results, second, metrics[1]))
    ax.set_title("every point; line: what nothing beats in both", fontsize=10)
    return fig


def report_figures(results: StudyResults) -> Iterator[tuple[str, Figure]]:
    """The pictures of a study's page, by name: fronts, a line plot per axis, heat maps of the first pairs of axes."""
    if not results.good:
        return
    axes = [axis for axis, choices in results.study.choices.items() if len(choices) > 1]
    known = [name for name in results.objectives if any(row[name] is not None for row in results.good)]
    for first, second in list(combinations(known, 2))[:3]:
        yield f"front_{first}_{second}", front(results, first, second, axes[0] if axes else None)
    for axis in axes:
        by = next((other for other in axes if other != axis), None)
        yield f"lines_{_slug(axis)}", lines(results, axis, known[0], by)
    for x, y in list(combinations(axes, 2))[:3]:
        yield f"map_{_slug(x)}_{_slug(y)}", heat_map(results, x, y, known[0])


def _axes(results: StudyResults, *names: str) -> tuple[str, ...]:
    known = results.study.choices
    for name in names:
        if name not in known:
            raise NearbankError(f"the study has no axis {name!r}{nearest(name, known)}; it has: {', '.join(known)}")
    return names


def _best(rows: list[Row], axes: tuple[str, ...], metric: str) -> dict[tuple[Scalar, ...], float]:
    """The best value of a metric at each place, in the unit it is shown in."""
    pick = min if metric_named(metric).less_is_better else max
    found: dict[tuple[Scalar, ...], float] = {}
    for row, value in each(rows, metric):
        place = tuple(row[axis] for axis in axes)
        found[place] = pick(found.get(place, value), value)
    return found


def _place(row: Row, first: str, second: str) -> tuple[float, float]:
    return row[first] / metric_named(first).per, row[second] / metric_named(second).per


def _label(axis: str) -> str:
    knob = KNOBS.get(axis)
    about = knob.about.split(";")[0].split(",")[0] if knob else axis
    return f"{about} [{knob.unit}]" if knob and knob.unit else about


def _named(results: StudyResults, name: str, metric: Metric) -> str:
    return results.study.quality.title if name == "quality" and results.study.quality else metric.label


def _title(results: StudyResults, metric: Metric, shown: tuple[str, ...]) -> str:
    others = [axis for axis, choices in results.study.choices.items() if axis not in shown and len(choices) > 1]
    return f"{metric.title}, best over {' and '.join(others)}" if others else metric.title


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _empty() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 4.2), layout="constrained")
    made: Any = fig.subplots()
    return fig, made
