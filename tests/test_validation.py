"""The stored validation is whole, and its page is the one that its data makes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
STORED = json.loads((ROOT / "docs" / "validation" / "validation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("validation", ROOT / "benchmarks" / "validation.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_stored_page_is_that_of_the_stored_figures(validation: ModuleType) -> None:
    assert (ROOT / "docs" / "validation.md").read_text(encoding="utf-8") == validation.page(STORED)


def test_every_rung_is_there_and_those_run_here_meet_their_bars() -> None:
    own = [rung for rung in STORED["rungs"] if rung["made_by"] == "this run"]
    assert len(own) == 6
    assert all(rung["met"] for rung in own)
    assert {rung["made_by"] for rung in STORED["rungs"]} == {"this run", "nearbank prove", "nearbank reproduce pim-gpt"}


def test_a_deviation_is_seen(validation: ModuleType) -> None:
    figure, met, _ = validation._exact([validation._case("one", 100, 100), validation._case("other", 103, 100)])
    assert (figure, met) == ("1 of 2 exact, worst 3.00 %", False)
    assert validation.closed_forms().met
    gemv = validation.test_formulas.gemv
    with validation._replaced(validation.test_formulas, "gemv", lambda rows: gemv(rows - rows // 50)):
        assert not validation.closed_forms().met
