# Everything is set up on first use, into .venv; all that is needed is Python >= 3.11 and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

# Tests the kernels for GPUs; torch's builds for CPUs bring none, those for GPUs their own.
TRITON := 3.9.0

# The oldest transformers that servers such as vLLM may have, and a place for it beside the newest.
OLDEST_TRANSFORMERS := 5.16.1
OLDEST := $(VENV)/oldest

# Bytecode is written when a module is first imported (pip --no-compile halves the installation).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-kernels test-oldest test-wheel check docs bench clean

help: ## list the targets
	@echo "Usage: make TARGET [VARIABLE=value]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 sets up with that interpreter (the first time, or after make clean)."

demo: $(VENV)/installed-plot ## train a small RetNet here and watch it write; DATA=path for your own text
	@$(BIN)/python recipes/demo.py $(if $(DATA),--data "$(DATA)")

test: $(VENV)/installed-peers ## run the tests; ARGS="-k chunkwise" chooses
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --timeout 300 -m "not alone" $(ARGS)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 600 -m alone $(ARGS) || [ $$? = 5 ] # 5: none chosen
	@$(MAKE) --no-print-directory test-kernels

test-kernels: $(VENV)/installed-peers ## run the tests of the GPU kernels, in Triton's interpreter
	@OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n auto --timeout 300 tests/triton $(ARGS) || [ $$? = 5 ]

test-oldest: $(OLDEST)/installed ## run the Hugging Face tests with the oldest transformers
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n auto --timeout 300 tests/hf $(ARGS)

test-wheel: $(VENV)/created ## build the wheel and try it in an empty environment
	@rm -rf build/wheel && mkdir -p build/wheel
	@$(PIP) wheel --no-deps --wheel-dir build/wheel .
	@$(PYTHON) -m venv build/wheel/venv
	@build/wheel/venv/bin/python -m pip --disable-pip-version-check -qq install --no-compile --constraint constraints.txt build/wheel/*.whl
	@$(PYTHON) tests/try_wheel.py build/wheel

check: $(VENV)/installed-dev ## ruff, its formatter and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/installed-docs ## build the site, strictly; to read it: python -m http.server -d build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/installed-peers ## measure retention, training, decoding, generate and serving on this machine
	@$(BIN)/python benchmarks/bench_retention.py
	@$(BIN)/python benchmarks/bench_training.py
	@$(BIN)/python benchmarks/bench_decoding.py
	@$(BIN)/python benchmarks/bench_hf.py
	@$(BIN)/python benchmarks/bench_serving.py

clean: ## remove .venv, builds and caches
	@rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras, so that nothing is installed twice.
$(VENV)/installed-%: $(VENV)/created pyproject.toml constraints.txt
	@echo "Installing retnet[$*] into $(VENV) (once; a minute or two, longer where the network is slow) ..."
	@$(PIP) install --no-compile --constraint constraints.txt --editable '.[$*]'
	@touch $@

# Peers to compare with, whose own requirements do not go with ours.
$(VENV)/installed-peers: $(VENV)/installed-dev
	@$(PIP) install --no-compile --no-deps --constraint constraints.txt torchscale fairscale
	@$(BIN)/python -c 'import triton' 2> /dev/null || $(PIP) install --no-compile triton==$(TRITON) || echo "Triton $(TRITON) can't be had here: the kernels for GPUs are not tested"
	@touch $@

# Everything else comes from $(VENV).
$(OLDEST)/installed: $(VENV)/installed-peers
	@$(PYTHON) -m venv --clear $(OLDEST)
	@for site in $(OLDEST)/lib/python*/site-packages; do \
		$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$site/newest.pth; done
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check -qq install --no-compile transformers==$(OLDEST_TRANSFORMERS)
	@touch $@

$(VENV)/created:
	@command -v $(PYTHON) > /dev/null || { echo "error: found no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: retnet needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	@touch $@
