"""A reproduction's results: plain values with a schema, saved and read back, and written as a page with figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearbank.errors import NearbankError
from nearbank.report.report import write_atomically

SCHEMA = "nearbank.reproduction/1"


@dataclass(frozen=True)
class Results:
    """`rows`: one per model. `details`: by model, what the rows are made of. `sensitivities`: one per changed value.
    `capacities`: bytes taken and spare, by model and token count.

    `published`: the claims beside ours. `refused`: points that did not fit, by name. `made_with`: versions, digests,
    constants of the baselines, seconds.
    """

    system: str
    quick: bool
    prompt: int
    tokens: int
    sensitivity_steps: int
    rows: list[dict[str, Any]]
    details: dict[str, dict[str, Any]]
    sensitivities: list[dict[str, Any]]
    capacities: list[dict[str, Any]]
    published: list[dict[str, Any]]
    refused: dict[str, str]
    made_with: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the results as JSON."""
        write_atomically(path, json.dumps(self.as_json(), indent=1) + "\n")

    def series(self, axis: str, model: str) -> list[tuple[float, float]]:
        """(value, nanoseconds per token) along one sensitivity's axis."""
        found = [row for row in self.sensitivities if (row["axis"], row["model"]) == (axis, model)]
        return [(row["value"], row["time_ns_per_token"]) for row in found]

    def column(self, name: str) -> dict[str, float]:
        """One column of the rows by model."""
        return {row["model"]: row[name] for row in self.rows}


def energy_ratios(results: Results, reads: str, baseline: str) -> list[float]:
    """By model, the energy ratio over a baseline if columns on their way to the MAC units cost as `reads` says."""
    energies = results.column("energy_pj_per_token")
    return [
        detail["baselines"][baseline]["energy_ratio"]
        * energies[model]
        / detail["energy_by_reads"][reads]["energy_pj_per_token"]
        for model, detail in results.details.items()
    ]


def span(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """ "3 to 5 W", or "3 W" where all are alike."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def load_results(path: Path) -> Results:
    """Results from a file; `NearbankError` when it is none."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NearbankError(f"{path}: cannot be read as reproduction results ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise NearbankError(
            f"{path}: expected a JSON object with schema {SCHEMA!r}; make one with `nearbank reproduce`"
        )
    try:
        return Results(**{key: value for key, value in content.items() if key != "schema"})
    except TypeError as error:
        raise NearbankError(f"{path}: {error}; make it again with `nearbank reproduce`") from error
