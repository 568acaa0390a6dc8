# make setup       creates .venv with everything the tests need
# make quickstart  fine-tunes a small ViT over four simulated IPUs, and predicts
# make test        runs the tests;  make test-slow  runs the large parities
# README.md describes the other targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
QUICKSTART := pipeline_configs/quickstart.yaml

# Another index for torch, such as https://download.pytorch.org/whl/cpu for a smaller build without CUDA.
TORCH_INDEX_URL ?=
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
# In a terminal pip shows what it downloads, and how far it is; logs, such as those of CI, get a line for each step.
QUIET := $(shell test -t 2 || echo --quiet)
PIP_INSTALL := -m pip install $(QUIET) --disable-pip-version-check

HOST_VENV := .venv-ipu-host
HOST_PYTHON ?= $(shell ./.ci/find-python3.8)

# Tests run in parallel, with one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The environment with PopTorch on an IPU host; elsewhere .venv, where the test reports that there is no IPU.
IPU_PYTHON ?= $(shell python3 -c "import importlib.util as u; exit(u.find_spec('poptorch') is None)" 2>/dev/null \
	&& echo python3 || echo $(BIN)/python)

# A checkout of graphcore/poptorch, branch sdk-release-3.4, outside this folder, and the environment for its tests.
POPTORCH ?=
POPTORCH_PYTHON ?= $(BIN)/python

# Lock files: each package with its version and the hashes of its wheels, for Linux on x86-64.
LOCKED := .ci/locked
UV ?= uv
LOCK := $(UV) pip compile --quiet --generate-hashes --only-binary :all: --no-emit-index-url --no-annotate \
	--python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" pyproject.toml $(LOCKED)/build.in
INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes --only-binary :all:
INSTALL_THIS := $(PIP_INSTALL) --no-deps --no-build-isolation

.PHONY: setup setup-locked setup-ipu-host-locked lock quickstart test test-slow test-faults test-gpu test-ipu-host test-ipu \
	poptorch-tests lint format bench wheel clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@echo "setup, step 1 of 3: an environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup, step 2 of 3: torch and torchvision, the largest packages (minutes; some gigabytes with CUDA)"
	@$(BIN)/python $(PIP_INSTALL) $(TORCH_INDEX) torch torchvision
	@echo "setup, step 3 of 3: vit_ipu and the packages of its tests"
	@$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@
	@echo "setup is done: $(VENV)"

setup-locked:
	@echo "setup, step 1 of 3: an environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup, step 2 of 3: the packages of $(LOCKED)/development.txt (minutes; some gigabytes)"
	@$(BIN)/python $(INSTALL_LOCKED) -r $(LOCKED)/development.txt
	@echo "setup, step 3 of 3: vit_ipu"
	@$(BIN)/python $(INSTALL_THIS) -e .
	@touch $(VENV)/.ready
	@echo "setup is done: $(VENV)"

setup-ipu-host-locked:
	@echo "setup: an environment in $(HOST_VENV), with the packages of $(LOCKED)/ipu-host.txt (minutes)"
	$(HOST_PYTHON) -m venv $(HOST_VENV)
	$(HOST_VENV)/bin/python $(INSTALL_LOCKED) -r $(LOCKED)/ipu-host.txt
	$(HOST_VENV)/bin/python $(INSTALL_THIS) -e .
	touch $(HOST_VENV)/.ready

# Needs uv (pip install uv). Keeps the versions in the files as far as they fit; delete a file to renew all of them.
lock:
	$(LOCK) --extra dev --extra bench --python-version 3.11 -o $(LOCKED)/development.txt
	$(LOCK) --extra test --python-version 3.8 -c constraints-ipu.txt -o $(LOCKED)/ipu-host.txt

# Fine-tunes the small ViT of the package, then trains the same from random weights, and compares. --restart removes an
# earlier run of the quickstart, and refuses any other folder.
quickstart: export QUICKSTART_RUN = $(value RUN)
quickstart: setup
	$(BIN)/vit-ipu train $(QUICKSTART) --device ipu-sim --restart --output "$$QUICKSTART_RUN"
	$(BIN)/vit-ipu train $(QUICKSTART) --device ipu-sim --restart --output "$$QUICKSTART_RUN-from-scratch" --set model.init=null
	$(BIN)/vit-ipu predict "$$QUICKSTART_RUN" "$$QUICKSTART_RUN"/examples/0[0-3]_*.png
	$(BIN)/vit-ipu report "$$QUICKSTART_RUN" "$$QUICKSTART_RUN-from-scratch" --output "$$QUICKSTART_RUN-comparison.html"

test: setup
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

test-faults: setup
	FAULTS=200 $(PYTEST) tests/faults

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

test-ipu-host:
ifeq ($(HOST_PYTHON),)
	@echo "no working python3.8 found: the tests of the IPU host's environment are skipped"
	@test "$(CI)" != true
else
	$(MAKE) $(HOST_VENV)/.ready
	OMP_NUM_THREADS=1 $(HOST_VENV)/bin/python -m pytest -n auto
endif

$(HOST_VENV)/.ready: pyproject.toml constraints-ipu.txt
	@echo "setup: an environment in $(HOST_VENV), with torch 2.0.1 and the packages of the tests (minutes)"
	$(HOST_PYTHON) -m venv $(HOST_VENV)
	$(HOST_VENV)/bin/python $(PIP_INSTALL) -c constraints-ipu.txt -e '.[test]'
	touch $@

test-ipu: $(if $(filter $(BIN)/%,$(IPU_PYTHON)),setup)
	$(IPU_PYTHON) benchmarks/ipu_acceptance.py

poptorch-tests: setup
	@test -n "$(POPTORCH)" || { echo "POPTORCH is not set; run make poptorch-tests POPTORCH=path of a checkout of graphcore/poptorch"; exit 2; }
	$(POPTORCH_PYTHON) benchmarks/poptorch_tests.py $(POPTORCH) --verbose

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin --quiet --no-tips --target=3.8- --violations --eval-annotations vit_ipu benchmarks tests

format: setup
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/throughput.py

wheel: setup
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# VENV may come from the environment: it is removed only if it is a virtual environment that make setup made.
clean:
	test ! -f "$(VENV)/.ready" || test ! -f "$(VENV)/pyvenv.cfg" || rm -rf "$(VENV)"
	rm -rf $(HOST_VENV) dist
