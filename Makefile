# Every target installs what it needs into .venv first: with uv where it is on the PATH, else with venv and pip.
# make installs again when pyproject.toml or constraints.txt have changed.

PYTHON3 ?= python3
WORKERS ?= 2
TEMPLATES ?= ../shared/data/templates
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CODE := src tests

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench bench-foundation microtubule figures sasi-table clean

help:
	@echo "make demo             simulate a small project, pick from one click, leave demo/report.html"
	@echo "make test             all checks and tests"
	@echo "make lint             style, types and the direction of imports"
	@echo "make format           put the code into the project's style"
	@echo "make bench            measure speed and memory"
	@echo "make bench-foundation SAM and DINOv2 against the published code's loop, random weights"
	@echo "make microtubule      figures on a real tomogram, where ../shared/data holds it"
	@echo "make sasi-table       what each part of SaSi brings, into the README (hours)"
	@echo "make figures          quality of the picks over seeds, noise and conditions, into docs/figures (40 minutes)"
	@echo "make clean            remove .venv, demo and caches"

install: $(INSTALLED)

# torch goes first and always through pip: pip may be configured to find a CPU wheel (find-links, an extra
# index), which uv does not look at; uv would fetch gigabytes of CUDA libraries instead. uv then keeps it.
$(INSTALLED): pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
		$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "expected Python 3.11 or newer; name one with: make PYTHON3=/path/to/python3" >&2; exit 1; }; \
		if command -v uv > /dev/null; then uv venv --quiet --seed --python "$$(command -v $(PYTHON3))" $(VENV); \
		else $(PYTHON3) -m venv $(VENV); fi; \
	fi; \
	$(BIN)/python -m pip install --quiet -c constraints.txt torch; \
	if command -v uv > /dev/null; then uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; fi
	@touch $@

demo: $(INSTALLED)
	$(BIN)/copick cryosam demo

# One thread per process: two busy test workers with a thread pool each would only get in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/unit tests/contract tests/e2e

lint: $(INSTALLED)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(INSTALLED)
	$(BIN)/python tests/bench/bench_embedded.py

bench-foundation: $(INSTALLED)
	$(BIN)/python tests/bench/bench_foundation.py --precision fp32
	$(BIN)/python tests/bench/bench_foundation.py --precision bf16

microtubule: $(INSTALLED)
	$(BIN)/python tests/e2e/microtubule.py
	$(BIN)/python tests/e2e/microtubule.py --no-second-look

# TEMPLATES holds density maps as MRC files of 10 Å voxels.
sasi-table: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m copick_cryosam.pretraining.measure_sasi \
		--templates $(TEMPLATES) --out runs/sasi --readme README.md --threads $(WORKERS)

figures: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m copick_cryosam.pretraining.measure_curves \
		--templates $(TEMPLATES) --out docs/figures --json docs/figures/curves.json \
		--readme README.md --threads $(WORKERS) --repeats 2

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
