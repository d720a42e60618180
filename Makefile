# One environment (.venv), made once, and the few things done with it. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
EXTRA ?= dev
BIN := $(VENV)/bin
, := ,
STAMP := $(VENV)/.installed-$(subst $(,),-,$(EXTRA))$(if $(TORCH),-torch-$(TORCH))

.PHONY: help install quickstart test slow faults test-scale teacher teachers judge gpu-proof ablation lint docs docs-serve clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  EXTRA=dev,wandb adds extras, TORCH=2.9.1 takes another torch, PYTHON=python3.12 another Python, VENV=path another place."

install: $(STAMP)  ## make the environment (about 6 GB, once)

$(STAMP): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
		|| { echo "l2p needs Python 3.10 or later as '$(PYTHON)': install it, or name it with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "Python's venv is missing: sudo apt install python3-venv" >&2; exit 1; }
	@echo "making $(VENV): some 6 GB are downloaded, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH),echo "torch==$(TORCH)",cat requirements/constraints.txt) > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[$(EXTRA)]'
	@rm -f $(VENV)/.installed*
	@touch $@

quickstart: $(STAMP)  ## distil the bundled teacher into a one-step pixel student, and judge it
	@$(BIN)/l2p distill recipes/quickstart.yaml

# The tests are many small tensors: a process a core serves them better than threads.
WORKERS ?= auto
test: export OMP_NUM_THREADS ?= 1
slow faults test-scale: export OMP_NUM_THREADS ?= 2

test: $(STAMP)  ## the whole suite but the slow tests
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup

slow: $(STAMP)  ## the slow tests
	@$(BIN)/python -m pytest -m slow

faults: $(STAMP)  ## kills, signals, full disks and damaged bytes put into every command (minutes)
	@$(BIN)/python -m pytest -m 'slow or not slow' tests/faults

test-scale: $(STAMP)  ## the proofs on several processes, and the planner's
	@$(BIN)/python -m pytest -m 'slow or not slow' tests/training/test_processes.py tests/training/test_memory.py

teacher: $(STAMP)  ## train the bundled teacher anew (hours)
	@$(BIN)/l2p train-teacher recipes/teacher-landscapes.yaml

teachers: $(STAMP)  ## measure the conformance table of docs/teachers.md anew
	@$(BIN)/python tests/teachers/conformance_table.py

judge: $(STAMP)  ## train the bundled judge anew (minutes)
	@$(BIN)/l2p train-judge recipes/judge-landscapes.yaml

gpu-proof: $(STAMP)  ## does it work on this GPU, and how fast? 8 minutes, no network; writes docs/gpu/
	@$(BIN)/python -m l2p.bench.gpu_proof $(if $(WHEELS),--wheels $(WHEELS))

ablation: $(STAMP)  ## compare the objectives, a run a row (hours)
	@$(BIN)/l2p ablate recipes/ablation.yaml

lint: $(STAMP)  ## ruff: mistakes and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

docs: $(STAMP)  ## build the documentation as a site, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(STAMP)  ## show the documentation at http://127.0.0.1:8000 while you write
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:  ## remove the environment and all caches; runs/ stays
	@rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
