"""Every rung of the validation ladder and its figure: run, printed, stored and written as a page.

    python benchmarks/validation.py [--golden FOLDER] [--programs 1000]

From the bottom: the checker against the rules and against seeded violations, the engine against the slow reference,
closed forms, other simulators' cycles, programs that compute against the kernels, published measurements. The first
four are run here, with the functions of the tests (`tests/sim`); the last two are collected from the results that
`nearbank prove` and `nearbank reproduce` left under docs. FOLDER holds the other simulators' traces of your own, laid
out like `tests/sim/data` with `aim/gemv.csv` in it.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, seed, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.sim import test_checker, test_engine, test_formulas, test_golden_aim, test_golden_requests, test_rules  # noqa: E402

from nearbank import __version__  # noqa: E402
from nearbank.sim.machine import load_machine  # noqa: E402
from nearbank.sim.readers import aim_gemv, replay_file  # noqa: E402
from nearbank.sim.requests import Trace, serve  # noqa: E402
from nearbank.study.point import source_digest  # noqa: E402

DOCS = ROOT / "docs"
CASES_SHOWN = 15


@dataclass(frozen=True)
class Rung:
    """One rung: what is held against what, the figure, whether its bar is met, and the cases behind it."""

    rung: str
    against: str
    figure: str
    met: bool
    cases: list[dict[str, Any]]
    seconds: float = 0.0
    made_by: str = "this run"


def main() -> None:
    options = _options()
    rungs = [_timed(make) for make in (
        rules, seeded, lambda: engine(options.programs), closed_forms, lambda: aim(options.golden), requests,
    )]  # fmt: skip
    for collected in (*functional(), *published()):
        _show(collected, f"stored by {collected.made_by}")
        rungs.append(collected)
    result = {
        "schema": "nearbank.validation/1",
        "measured": datetime.now(UTC).date().isoformat(),
        "made_with": {"nearbank": __version__, "source": source_digest(), "python": platform.python_version()},
        "rungs": [asdict(rung) for rung in rungs],
    }
    (DOCS / "validation").mkdir(exist_ok=True)
    (DOCS / "validation" / "validation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (DOCS / "validation.md").write_text(page(result), encoding="utf-8")
    sys.exit(0 if all(rung.met for rung in rungs if rung.made_by == "this run") else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the validation ladder and write docs/validation.md.")
    parser.add_argument("--golden", type=Path, help="other simulators' data of your own; the repository's otherwise")
    parser.add_argument("--programs", type=int, default=1000, help="random programs for engine and reference")
    return parser.parse_args()


def _timed(make: Callable[[], Rung]) -> Rung:
    begin = time.perf_counter()
    rung = make()
    done = Rung(**{**asdict(rung), "seconds": round(time.perf_counter() - begin, 1)})
    _show(done, f"{done.seconds:.1f} s")
    return done


def _show(rung: Rung, how: str) -> None:
    print(f"{'met   ' if rung.met else 'MISSED'} {rung.rung}: {rung.figure} ({how})", flush=True)


def _held(case: Callable[[], None]) -> str | None:
    """None where a test's assertions hold; the first line of what did not otherwise."""
    try:
        case()
    except AssertionError as error:
        return str(error).split("\n")[0] or "an assertion failed"
    return None


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def rules() -> Rung:
    """Every rule with every pair of commands: the engine waits for it, the checker refuses one clock less."""
    outcomes: list[str | None] = []
    for name, rule, earlier, later in test_rules.PAIRS:
        # Skipped where the second cannot follow the first alone.
        with test_rules.without_modes(), suppress(pytest.skip.Exception):
            outcomes.append(_held(partial(test_rules.test_waits_exactly_as_long, name, rule, earlier, later)))
    good = outcomes.count(None)
    figure = f"{good} of {len(outcomes)} pairs of {len({id(pair[1]) for pair in test_rules.PAIRS})} rules exact"
    return Rung("Rules", "issued at the clock, refused one earlier", figure, good == len(outcomes), [])


def seeded() -> Rung:
    """Random programs with one command moved a clock too early: the checker names it."""
    verdicts: list[bool] = []

    def counting(*arguments: Any) -> Any:
        violation = kept(*arguments)
        verdicts.append(violation is not None)
        return violation

    kept = test_checker.check
    with _replaced(test_checker, "check", counting):
        failure = _held(test_checker.test_one_clock_too_early_is_found)
    found = sum(verdicts)
    legal = len(verdicts) - found
    figure = f"{found} of {found} seeded violations found and named, none in {legal} legal programs"
    return Rung("Seeded violations", "commands one clock too early", failure or figure, failure is None, [])


def engine(programs: int) -> Rung:
    """The engine and the slow reference play the same random programs."""
    played = 0

    def counting(*arguments: Any) -> Any:
        nonlocal played
        played += 1
        return kept(*arguments)

    kept = test_engine.reference_of
    inner = test_engine.assert_engine_is_reference
    test = seed(0)(settings(test_engine.EXAMPLES, max_examples=programs)(given(test_engine.cases())(inner)))
    with _replaced(test_engine, "reference_of", counting):
        failure = _held(test)
    figure = f"{played} random programs on random machines: every command at the same cycle, every count equal"
    return Rung("Engine", "slow reference", failure or figure, failure is None, [])


def closed_forms() -> Rung:
    """Times and rates against formulas; the deviations behind the tests' tolerance."""
    cases: list[dict[str, Any]] = []

    class Approx:
        def __init__(self, expected: float, rel: float) -> None:
            self.expected, self.rel = expected, rel

        def __eq__(self, got: object) -> bool:
            assert isinstance(got, int | float)
            off = abs(got / self.expected - 1)
            cases.append({"case": name, "got": got, "expected": self.expected, "deviation": off})
            return off <= self.rel

        __hash__ = None  # type: ignore[assignment]

    failures = []
    with _replaced(test_formulas, "pytest", SimpleNamespace(approx=Approx)):
        for name, test in vars(test_formulas).items():
            if name.startswith("test_"):
                each = [(1,), (2,)] if hasattr(test, "pytestmark") else [()]
                failures += [_held(partial(test, *arguments)) for arguments in each]
    worst = max(case["deviation"] for case in cases)
    exact = len(failures) - len(cases)
    figure = f"{len(cases)} formulas within {100 * worst:.2f} % (bar 0.5 %), {exact} counts exact"
    return Rung("Closed forms", "streaming, row cycles, tFAW, GEMV, refresh", figure, not any(failures), cases)


def aim(golden: Path | None) -> Rung:
    """GEMVs of the AiM simulator, cycle for cycle."""
    folder = golden / "aim" if golden else test_golden_aim.DATA
    with (folder / "gemv.csv").open(encoding="utf-8") as file:
        rows = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows:
            shape = (row["k"], row["m"], row["channels"], row["reuse"])
            trace = test_golden_aim.write(Path(scratch) / "gemv.txt", aim_gemv(*shape))
            cases.append(_case("x".join(map(str, shape)), replay_file(trace, "gddr6-aim-peer").cycles, row["cycles"]))
    return Rung("AiM simulator", f"{len(rows)} GEMVs of GDDR6-AiM, cycles", *_exact(cases))


def requests() -> Rung:
    """Plain DRAM: cycles of DRAMsim3 and Ramulator 2.1."""
    cases = []
    for row in test_golden_requests.dramsim3_rows():
        machine = load_machine(test_golden_requests.DRAMSIM3[row["config"]])
        got = serve(machine, test_golden_requests.dramsim3_trace(row["trace"].split("_")[0]), until="answered")
        cases.append(_case(f"DRAMsim3 {row['config']} {row['trace']}", got.cycles, int(row["cycles"])))
    for line in test_golden_requests.ramulator_rows():
        addresses = test_golden_requests.np.arange(int(line["n"]), dtype="u8") * int(line["txB"])
        if line["trace"] != "stream":
            addresses = test_golden_requests.at_random(1 << 30, int(line["txB"]), int(line["n"]))
        trace = Trace.at_once(addresses.astype("u8"))
        got = serve(load_machine(str(line["name"]).lower()), trace, until="accepted")
        cases.append(_case(f"Ramulator {line['name']} {line['trace']}", got.cycles, int(line["cycles"])))
    return Rung("DRAMsim3, Ramulator 2.1", "up to a million requests each, cycles", *_exact(cases))


def _case(name: str, got: int, expected: int) -> dict[str, Any]:
    return {"case": name, "got": got, "expected": expected, "deviation": abs(got / expected - 1)}


def _exact(cases: list[dict[str, Any]]) -> tuple[str, bool, list[dict[str, Any]]]:
    worst = max(case["deviation"] for case in cases)
    same = sum(case["deviation"] == 0 for case in cases)
    return f"{same} of {len(cases)} exact, worst {100 * worst:.2f} %", worst <= 0.01, cases


def functional() -> Iterator[Rung]:
    """What `nearbank prove --json` left in docs/proof."""
    rows = [row for path in sorted((DOCS / "proof").glob("*.json")) for row in _proofs(path)]
    if rows:
        equal = sum(row["tokens_equal"] for row in rows)
        bits = sum(row["logits_bit_equal"] for row in rows)
        figure = (
            f"{equal} of {len(rows)} pairs of weights and KV cache token for token as the kernels; logits bit for bit "
            f"as the same arithmetic without a memory in {bits}"
        )
        cases = [{key: row[key] for key in ("weights", "kv", "tokens_equal", "logits_bit_equal")} for row in rows]
        yield Rung("Programs compute", "the kernels", figure, equal == len(rows), cases, made_by="nearbank prove")


def _proofs(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content.get("rows", []) if isinstance(content, dict) else []
    return [row for row in rows if {"weights", "kv", "tokens_equal", "logits_bit_equal"} <= row.keys()]


def published() -> Iterator[Rung]:
    """What `nearbank reproduce pim-gpt` left in docs/reproduction."""
    claims = json.loads((DOCS / "reproduction" / "pim-gpt.json").read_text(encoding="utf-8"))["published"]
    cases = [{key: claim[key] for key in ("quantity", "published", "ours", "verdict", "verified")} for claim in claims]
    good = sum(claim["verdict"] != "missed" for claim in claims)
    missed = ", ".join(claim["quantity"] for claim in claims if claim["verdict"] == "missed")
    figure = f"{good} of {len(claims)} quantities reproduced or within tolerance; missed: {missed or 'none'}"
    yield Rung("PIM-GPT", "published", figure, good == len(claims), cases, made_by="nearbank reproduce pim-gpt")


def page(result: dict[str, Any]) -> str:
    """The ladder as Markdown."""
    made = result["made_with"]
    head = ("Rung", "Held against", "Figure", "Bar", "Made by", "Seconds")
    lines = [
        (r["rung"], r["against"], r["figure"], "met" if r["met"] else "**missed**", f"`{r['made_by']}`", _s(r))
        for r in result["rungs"]
    ]
    cases = [_cases(rung) for rung in result["rungs"] if rung["cases"]]
    return (
        "\n\n".join(
            (
                "# Validation",
                "Every rung stands on the one before. `python benchmarks/validation.py` runs the ladder, prints its "
                "figures, and writes this page and `docs/validation/validation.json`; rungs made by another command "
                "are collected from what that command left under `docs/`.",
                _table(head, lines),
                "A bar is exactness, where the table says exact; 0.5 % for closed forms; 1 % for another simulator's "
                "cycles; equal tokens for programs that compute; the published range, or a stated tolerance, for "
                "PIM-GPT ([reproduction](reproduction.md) has the causes of what is missed).",
                *cases,
                f"Made on {result['measured']} with nearbank {made['nearbank']} (source {made['source']}), "
                f"Python {made['python']}.",
            )
        )
        + "\n"
    )


def _s(rung: dict[str, Any]) -> str:
    return f"{rung['seconds']:.0f}" if rung["made_by"] == "this run" else ""


def _cases(rung: dict[str, Any]) -> str:
    if len(rung["cases"]) > CASES_SHOWN:
        return f"## {rung['rung']}\n\n{len(rung['cases'])} cases, in `docs/validation/validation.json`."
    keys = list(rung["cases"][0])
    lines = [[_cell(key, case[key]) for key in keys] for case in rung["cases"]]
    return f"## {rung['rung']}\n\n" + _table([key.replace("_", " ") for key in keys], lines)


def _cell(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "deviation" and isinstance(value, float):
        return f"{100 * value:.3f} %"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _table(head: Any, lines: Any) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *rows])


if __name__ == "__main__":
    main()
