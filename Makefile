# `make run` and `make test` need nothing but Python, make and a package index.
PYTHON ?= python3.11
BIN := .venv/bin
ENV := .venv/.complete
LOCK := requirements.lock
# For every platform and Python that pyproject.toml allows; versions that the lock has already stay.
UV := $(BIN)/uv
RESOLVE := $(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	--no-emit-index-url --no-header --no-annotate --quiet --output-file
RUNS ?= runs
OUT ?= results/plot
SCALE ?= laptop
JOBS ?= 2

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(ENV) ## make .venv and install the project with everything for development, in the versions of requirements.lock

$(ENV): pyproject.toml $(LOCK)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) -e '.[dev]'
	touch $@

$(UV):  # alone, for the lock has to be mended where nothing can be installed by it
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

lock: $(UV) ## write requirements.lock anew after a change of pyproject.toml; UPGRADE=1 takes the newest of all
	$(RESOLVE) $(LOCK) $(if $(UPGRADE),--upgrade)

locked: $(UV) ## whether requirements.lock is what pyproject.toml asks for
	@scratch=$$(mktemp) && cp $(LOCK) $$scratch && $(RESOLVE) $$scratch && cmp --silent $(LOCK) $$scratch \
		|| { echo "error: requirements.lock is not what pyproject.toml asks for; 'make lock' mends it"; exit 1; }

run: $(ENV) ## the main job on real digits: random projection at a tenth of the bytes
	$(BIN)/python run.py method=rad_proj budget=0.1

test: $(ENV) ## all tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(ENV) ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not montecarlo'

test-gpu: $(ENV) ## the tests that need a GPU, in as many processes as it takes
	$(BIN)/python -m pytest -n 8 --maxschedchunk 1 -m gpu tests/gpu

lint: $(ENV) ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(ENV) ## step time and saved bytes of every method against exact
	$(BIN)/python scripts/bench.py

plot: $(ENV) ## figures and table of the runs below RUNS, into OUT
	$(BIN)/python scripts/plot.py $(RUNS) --out $(OUT)

reproduce: $(ENV) ## the whole paper and a report; SCALE=smoke (10 minutes, no data needed), laptop (3 hours), desk (a day or two) or paper (days)
	$(BIN)/python scripts/reproduce.py --scale $(SCALE) --runs $(RUNS) --jobs $(JOBS) $(if $(REPORT),--out $(REPORT))

report: $(ENV) ## results/desk/report.html from results/records, without running anything
	$(BIN)/python scripts/reproduce.py --scale desk --records results/records

status: $(ENV) ## all runs below RUNS: how far they are, last losses, time left
	$(BIN)/python scripts/status.py $(RUNS)

watch: $(ENV) ## the same, until Ctrl-C
	$(BIN)/python scripts/status.py $(RUNS) --watch

clean: ## remove the environment; runs and results stay
	rm -rf .venv

.PHONY: help setup lock locked run test quick test-gpu lint bench plot reproduce report status watch clean
