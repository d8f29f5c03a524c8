# make install    .venv with everything a contributor needs
# make train      the main job, through `accelerate launch`; on a GPU where there is one
# make test       the test suite
#
# A fresh machine needs python3 (3.11 or newer), pip and make.

VENV   ?= .venv
PYTHON ?= python3
# Pinned, so that two people get the same build of it and the same download.
# TORCH=torch takes the newest, or keeps the one that VENV already has.
TORCH  ?= torch==2.13.0

TASK   ?= collatz_step
CONFIG ?= examples/$(TASK)_small.yaml
# further arguments, for train (--seed=1 --task.init_args.d_model=256), test (-k collatz) and bench
ARGS   ?=
# tests side by side
JOBS   ?= 4
# threads per process, which accelerate would otherwise guess, with a warning
THREADS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# asked when `train` runs, since only then is torch there to answer
LAUNCH ?= accelerate_configs/$(shell $(PY) -c 'import torch; print("single_gpu" if torch.cuda.is_available() else "cpu")').yaml

BIN   := $(VENV)/bin
PY    := $(BIN)/python
STAMP := $(VENV)/.accel_train-installed

export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-cluster test-gpu test-lowest lint types format docs bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make train TASK=collatz ARGS=\"--seed=1 --max_steps=100\""
	@echo "  make train CONFIG=runs/x/config.yaml LAUNCH=accelerate_configs/multi_gpu.yaml"
	@echo "  VENV=path uses another environment; make -B install installs again"

install: $(STAMP) ## create .venv and install the package with its tools

# Some systems ship venv without pip's bundle; then the system's pip puts pip there.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("accel_train needs Python 3.11 or newer; set PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): a few minutes the first time, most of it $(TORCH)."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(PYTHON) -m venv --without-pip $(VENV)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(PY) install --quiet pip
	@$(PY) -m pip install --quiet "$(TORCH)"
	@$(PY) -m pip install --quiet --editable '.[dev,plots]'
	@touch $@
	@echo "Installed."

# What stands between the synthetic data of a task and its training.
PREPARE_sherlock = $(BIN)/accel-train sherlock preprocess --out data/sherlock/prepared --fmri data/sherlock/fmri \
	--runs part1=300 part2=300 part3=260 --video data/sherlock --audio data/sherlock \
	--annotations data/sherlock/annotations.xlsx --rois data/sherlock/rois.nii.gz

# --quiet: an error of the trainer stands alone, without the launcher's stack trace below it.
train: $(STAMP) ## train: TASK=, CONFIG=, LAUNCH=, ARGS=
	@test -n "$(filter collatz%,$(TASK))" -o $(CONFIG) != examples/$(TASK)_small.yaml -o -e data/$(TASK)/metadata.json || { $(BIN)/accel-train synth $(TASK) --out data/$(TASK) && $(or $(PREPARE_$(TASK)),true); }
	OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --quiet --config_file $(LAUNCH) -m accel_train train --config $(CONFIG) $(ARGS)

# Most tests wait more than they compute: for other processes, for time-outs. A file's tests stay together.
test: $(STAMP) ## run the test suite (minutes); ARGS= goes to pytest
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP) ## run the slow tests too
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not cluster" $(ARGS)

# One after the other: each starts the processes of several machines.
test-cluster: $(STAMP) ## run the tests on several hosts (network namespaces, on Linux)
	$(PY) -m pytest tests/cluster -m "cluster or not cluster" $(ARGS)

test-gpu: $(STAMP) ## run the tests that need a GPU
	$(PY) -m pytest -m gpu $(ARGS)

# In an environment of its own: each package that pyproject.toml gives a lowest version has that one. PYTHON=python3.11
# does the same for Python.
test-lowest: ## run the test suite with the lowest versions of pyproject.toml
	@mkdir -p build
	grep -oE '"[A-Za-z0-9_]+>=[0-9.]+' pyproject.toml | tr -d '"' | sed 's/>=/==/' | sort -u > build/lowest.txt
	PIP_CONSTRAINT=$(CURDIR)/build/lowest.txt $(MAKE) test VENV=.venv-lowest TORCH=torch

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types
	$(BIN)/pyright --pythonpath $(PY)

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation as a site: build/docs/index.html
	$(PY) -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs

bench: $(STAMP) ## measure what the documentation claims
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(PY) $$script $(ARGS); done

clean: ## remove caches; runs/ and the environment stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
