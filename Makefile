# Everything is set up on first use, into .venv; all that is needed is Python >= 3.11 and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

# Bytecode is written when a module is first imported (pip --no-compile halves the installation).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check bench clean

help: ## list the targets
	@echo "Usage: make TARGET [VARIABLE=value]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 sets up with that interpreter (the first time, or after make clean)."

demo: $(VENV)/installed-plot ## train a small RetNet here and watch it write; DATA=path for your own text
	@$(BIN)/python recipes/demo.py $(if $(DATA),--data "$(DATA)")

test: $(VENV)/installed-dev ## run the tests; ARGS="-k chunkwise" chooses
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --timeout 120 $(ARGS)

check: $(VENV)/installed-dev ## ruff, its formatter and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/installed-plot ## measure retention and decoding on this machine
	@$(BIN)/python benchmarks/bench_retention.py
	@$(BIN)/python benchmarks/bench_decoding.py

clean: ## remove .venv, builds and caches
	@rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras, so that nothing is installed twice.
$(VENV)/installed-%: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing retnet[$*] into $(VENV) (once; a minute or two, longer where the network is slow) ..."
	@$(PIP) install --no-compile --constraint constraints.txt --editable '.[$*]'
	@touch $@

$(VENV)/created:
	@command -v $(PYTHON) > /dev/null || { echo "error: found no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: retnet needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	@touch $@
