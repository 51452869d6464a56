# Two targets set everything up on a machine with python3, make and a network: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types contracts unit validation notebooks figures bench bench-engine bench-gpu quality clean

demo: $(VENV)/.installed-core
	$(BIN)/nearbank demo

test: lint types contracts unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contracts: $(VENV)/.installed-dev
	$(BIN)/lint-imports

unit: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal

# The whole ladder, from the timing rules to published measurements: docs/validation.md.
validation: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/validation.py

bench: $(VENV)/.installed-dev
	$(BIN)/pytest benchmarks --benchmark-enable --benchmark-only

# How the simulator's cost grows: docs/simulator.md.
bench-engine: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/engine_growth.py
	$(BIN)/python benchmarks/first_call.py

bench-gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu.py

# Hours on one core; goes on where it was stopped. TEXT: the text to learn from.
quality: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/quality_models.py $(TEXT)
	$(BIN)/python benchmarks/quality_formats.py $(TEXT)
	$(BIN)/python benchmarks/kv_ablation.py $(TEXT)
	$(BIN)/python benchmarks/quality_page.py

# The README's picture is the second table of the demo.
figures: $(VENV)/.installed-core
	$(BIN)/nearbank demo --out build/demo
	mkdir -p docs/figures
	cp build/demo/time_per_token_2.svg docs/figures/time_per_token.svg

# The .ipynb files are made from the scripts, so that the repository holds no outputs.
notebooks: $(VENV)/.installed-dev
	$(BIN)/jupytext --to ipynb notebooks/*.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-core: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[dev,models,gpu-checks]'
	touch $@ $(VENV)/.installed-core

clean:
	rm -rf $(VENV) build dist nearbank-out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
