# Thin verbs; `make` alone lists them. What they do is in entrypoints/, containers/ and slurm/.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
KIND ?= function

LOCKS := containers/flavours
VENV := .venv
UV := $(VENV)/bin/uv
COMPILE := $(UV) pip compile -q --upgrade --python-version 3.11 --universal --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

# ARGS as words of $$@: xargs takes quotes apart as a shell does, and evaluates nothing.
WORDS = words=$$(xargs -r printf '%q ' <<< "$$ARGS") && eval "set -- $$words"

# What submit.sh, status.sh and build.sh read.
export BASE FLAVOUR ARCH CA_BUNDLE CACHE OUT JOB GPUS SITE TIME NAME PARTITION ACCOUNT IMAGE KEY
export RESTARTS RESUME DRY_RUN ARGS STUDY RESULTS REQUIREMENTS

.PHONY: help setup new tune image overlay sbom sign verify dist submit grow status cancel logs check test test-arm test-oldest-ray lint \
	bench soak cluster cluster-down lock clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/ready ## the environment of tune and test, in .venv, from the lock

$(VENV)/ready: $(LOCKS)/bootstrap.lock $(LOCKS)/dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --require-hashes -r $(LOCKS)/bootstrap.lock
	$(UV) pip install -q --python $(VENV)/bin/python --require-hashes --no-deps --compile-bytecode \
		-r $(LOCKS)/dev.lock
	$(UV) pip install -q --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

new: setup ## my_train.py, a small trainable of your own to start from: KIND=function|generator|script
	@$(VENV)/bin/python entrypoints/new.py $(KIND)

tune: setup ## a study of 8 trials on a part of MNIST, here, in about 3 minutes; ARGS="--searcher hebo"
	@$(WORDS) && $(VENV)/bin/python entrypoints/tune.py --preset quick "$$@"

image: ## tune.sif, without root: [BASE=debian|SITE.sif FLAVOUR=cu13|cu12|site CA_BUNDLE=FILE OUT=tune.sif]; tune-arm64.sif: ARCH=arm64
	@containers/build.sh

overlay: ## an overlay of tune.sif with packages of your own: [REQUIREMENTS=requirements.txt IMAGE=tune.sif]
	@containers/overlay.sh

sbom: ## tune.cdx.json, the packages in tune.sif as CycloneDX: [IMAGE=tune.sif]
	@containers/sbom.sh

sign: ## signs tune.sif with a key of yours, made if there is none: [IMAGE=tune.sif KEY=private.pem]
	@containers/sign.sh sign

verify: ## whether tune.sif is what was signed: [IMAGE=tune.sif KEY=public.pem]
	@containers/sign.sh verify

dist: ## siftune-VERSION.tar, to unpack on a cluster and submit from there
	@slurm/dist.sh

submit: ## a study on a Slurm cluster: GPUS=8 [SITE=turpan TIME=2:00:00 NAME=… DRY_RUN=1 ARGS="--searcher hebo"]
	@slurm/submit.sh

grow: ## adds GPUs to a study that runs: JOB=… GPUS=2 [SITE=… TIME=…]
	@GROW="$${JOB:-none}" slurm/submit.sh

status: ## the queue and the studies: [STUDY=…]
	@slurm/status.sh

cancel: ## ends a job: JOB=…
	@slurm/cancel.sh

logs: ## follows the newest job's log
	tail -n 50 -F "$$(ls -t slurm-*.out | head -n 1)"

check: lint ## for daily work: style, types, and every test that needs neither Ray nor the cluster; ARGS="-k journal"
	@$(WORDS) && $(VENV)/bin/python -m tests check "$$@"

test: lint ## every test; ARGS="tests/unit"
	@$(WORDS) && $(VENV)/bin/python -m tests "$$@"

# Not a part of test: half an hour.
test-arm: setup ## Turpan's image, built and tested under emulation on the virtual cluster; needs root
	SIFTUNE_ARCH=arm64 $(VENV)/bin/python -m pytest tests/container/test_image.py --timeout=7200 $(ARGS)

# Not a part of test either: Ray 2.60 is what the locks have.
test-oldest-ray: setup ## tests/ray on the oldest Ray that pyproject.toml allows
	$(UV) pip install -q --target $(VENV)/oldest-ray --no-deps \
		"ray==$$(sed -nE 's/.*"ray\[tune\]>=([0-9.]+),.*/\1/p' pyproject.toml)"
	PYTHONPATH=$(VENV)/oldest-ray $(VENV)/bin/python -c 'import ray; print("Ray", ray.__version__)'
	PYTHONPATH=$$PWD/$(VENV)/oldest-ray $(VENV)/bin/python -m pytest tests/ray $(ARGS)

lint: setup ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck -x -P SCRIPTDIR $$(git ls-files '*.sh' '*.sbatch' tests/stand_ins .ci/run)
	$(VENV)/bin/shellcheck -s bash -e SC2034 slurm/sites/*.env

$(VENV)/bench: $(VENV)/ready $(LOCKS)/bench.lock
	$(UV) pip install -q --python $(VENV)/bin/python --require-hashes --no-deps -r $(LOCKS)/bench.lock
	@touch $@

bench: setup $(VENV)/bench ## what is measured, as ratios side by side in one run: ARGS="overhead search"
	@$(WORDS) && $(VENV)/bin/python -m tests.bench "$$@"

soak: setup ## random faults against a long study on that cluster: ARGS="--minutes 60 --seed 1"
	@$(WORDS) && $(VENV)/bin/python -m tests.cluster.soak "$$@"

cluster: ## a Slurm cluster of four nodes on this machine, for tests; needs root (tests/cluster/README.md)
	tests/cluster/up.sh

cluster-down: ## takes it down
	tests/cluster/down.sh

lock: setup ## the locks, anew, from pyproject.toml: image and development from one source
	$(COMPILE) pyproject.toml --overrides $(LOCKS)/site.overrides -o $(LOCKS)/site.lock
	$(COMPILE) pyproject.toml -c $(LOCKS)/site.lock -o $(LOCKS)/cu13.lock
	$(COMPILE) pyproject.toml -c $(LOCKS)/site.lock -c $(LOCKS)/cu12.constraints -o $(LOCKS)/cu12.lock
	$(COMPILE) pyproject.toml --group dev -c $(LOCKS)/cu13.lock -o $(LOCKS)/dev.lock
	$(COMPILE) --group bench --no-deps -c $(LOCKS)/dev.lock -o $(LOCKS)/bench.lock
	$(COMPILE) --group bootstrap -c $(LOCKS)/dev.lock -o $(LOCKS)/bootstrap.lock

clean: ## removes the environment and caches; studies and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
