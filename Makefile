PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

# One dot for each package that pip fetches. Errors of pip go to standard error and are shown.
DOTS := awk '/^Collecting/ { printf "."; fflush() } /^Installing collected/ { printf " fetched, now unpacking"; fflush() } END { print "" }'

.DEFAULT_GOAL := help
.PHONY: help setup run demo report test test-all test-fast coverage fmt lint type docs tables figures canvas bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"need Python 3.11 or newer, got {sys.version.split()[0]}: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
	@echo "fetching the packages of constraints.txt (about 6 GB with CUDA, some minutes), a dot for each"
	@$(BIN)/python -m pip install --no-compile --progress-bar off -c constraints.txt -e '.[dev]' | $(DOTS)
	@touch $@

$(DOCS): $(STAMP)
	@$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[docs]' | $(DOTS)
	@touch $@

setup: $(STAMP)  ## make the virtual environment with pinned packages

run: setup  ## attack and score the embedded benchmark (quick budget, two minutes)
	$(BIN)/python run.py

demo: setup  ## attack 16 images of the embedded benchmark and write the page of this run
	$(BIN)/python run.py protocol.images=16
	$(BIN)/python scripts/view.py results/runs

report: setup  ## write results/page, every finished run as a page for the browser
	$(BIN)/python scripts/view.py

test: setup lint type  ## run all checks: lint, types, tests
	$(BIN)/python -m pytest -n 2 -m 'not long' --durations=15

test-all: setup lint type docs  ## run all checks, the long tests too, and build the docs
	$(BIN)/python -m pytest -n 2 --durations=15

test-fast: setup  ## run only the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m 'not slow'

coverage: setup  ## run all tests and report which lines of dp/ they reach
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90

fmt: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## check the style with ruff
	$(BIN)/ruff check .

type: setup  ## check the types with pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(DOCS)  ## build the documentation in build/site/; a warning is an error
	$(BIN)/mkdocs build --quiet --strict

tables: setup  ## write results/tables from results/measured and results/published
	$(BIN)/python scripts/tables.py

figures: setup  ## draw results/figures from results/measured
	$(BIN)/python scripts/figures.py

canvas: setup  ## draw images of the embedded benchmark canvas in build/canvas.png
	$(BIN)/python scripts/canvas.py

bench: setup  ## measure speed and memory as ratios
	$(BIN)/python scripts/studies/bench.py

clean:  ## remove the environment, caches and the site; keep results
	rm -rf $(VENV) .pytest_cache .ruff_cache .coverage* *.egg-info build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
