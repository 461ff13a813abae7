# Thin verbs; `make` alone lists them. What they do is in entrypoints/, containers/ and slurm/.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=

LOCKS := containers/flavours
VENV := .venv
UV := $(VENV)/bin/uv
COMPILE := $(UV) pip compile -q --upgrade --python-version 3.11 --universal --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

.PHONY: help setup tune test lint bench lock clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/ready ## the environment of tune and test, in .venv, from the lock

$(VENV)/ready: $(LOCKS)/bootstrap.lock $(LOCKS)/dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --require-hashes -r $(LOCKS)/bootstrap.lock
	$(UV) pip install -q --python $(VENV)/bin/python --require-hashes --no-deps -r $(LOCKS)/dev.lock
	$(UV) pip install -q --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

tune: setup ## a study of 8 trials on a part of MNIST, here, in about 3 minutes; ARGS="--searcher hebo"
	$(VENV)/bin/python entrypoints/tune.py --preset quick $(ARGS)

test: lint ## every test
	$(VENV)/bin/python -m pytest $(ARGS)

lint: setup ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup ## what is measured, as ratios side by side in one run
	$(VENV)/bin/python -m tests.bench $(ARGS)

lock: setup ## the locks, anew, from pyproject.toml: image and development from one source
	$(COMPILE) pyproject.toml -o $(LOCKS)/cu13.lock
	$(COMPILE) pyproject.toml --group dev -c $(LOCKS)/cu13.lock -o $(LOCKS)/dev.lock
	$(COMPILE) --group bootstrap -o $(LOCKS)/bootstrap.lock

clean: ## removes the environment and caches; studies and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
