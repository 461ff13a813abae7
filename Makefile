# Short commands; `make` alone lists them. The code they run is in entrypoints/, containers/ and slurm/.
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

# On a terminal the installer draws its progress.
QUIET = $(shell test -t 2 || echo -q)

# Splits ARGS into the words of $$@: xargs interprets quotes as a shell does, and evaluates nothing.
WORDS = words=$$(xargs -r printf '%q ' <<< "$$ARGS") && eval "set -- $$words"

# The variables that submit.sh, status.sh and build.sh read.
export BASE FLAVOUR ARCH CA_BUNDLE CACHE OUT JOB GPUS NODES CPUS_PER_TRIAL RUN SITE TIME NAME PARTITION ACCOUNT IMAGE KEY
export RESTARTS RESUME DRY_RUN ARGS STUDY RESULTS REQUIREMENTS CASES

.PHONY: help setup new tune image overlay sbom sign verify dist submit grow site status cancel logs check cases test test-arm test-oldest-ray lint \
	bench soak cluster cluster-down lock clean

help: ## lists these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/ready ## creates the environment for tune and test in .venv, from the lock file

$(VENV)/ready: $(LOCKS)/bootstrap.lock $(LOCKS)/dev.lock pyproject.toml
	@echo "installing the environment in $(VENV): about 6 GB, a minute with a fast network"
	@echo "1 of 3: a virtual environment and the installer"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -q --require-hashes -r $(LOCKS)/bootstrap.lock
	@echo "2 of 3: $$(grep -c '==' $(LOCKS)/dev.lock) packages, the largest of them CUDA's and torch"
	@$(UV) pip install $(QUIET) --python $(VENV)/bin/python --require-hashes --no-deps --compile-bytecode \
		-r $(LOCKS)/dev.lock
	@echo "3 of 3: siftune"
	@$(UV) pip install -q --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

new: setup ## writes my_train.py, a small trainable to start from: KIND=function|generator|script
	@$(VENV)/bin/python entrypoints/new.py $(KIND)

tune: setup ## runs a study of 8 trials on part of MNIST on this machine, about 3 minutes; ARGS="--searcher hebo"
	@$(WORDS) && $(VENV)/bin/python entrypoints/tune.py --preset quick "$$@"

image: ## builds tune.sif without root: [BASE=debian|SITE.sif FLAVOUR=cu13|cu12|site CA_BUNDLE=FILE OUT=tune.sif]; ARCH=arm64 builds tune-arm64.sif
	@containers/build.sh

overlay: ## builds an overlay that adds your packages to tune.sif: [REQUIREMENTS=requirements.txt IMAGE=tune.sif]
	@containers/overlay.sh

sbom: ## writes tune.cdx.json, the packages in tune.sif in CycloneDX format: [IMAGE=tune.sif]
	@containers/sbom.sh

sign: ## signs tune.sif with your key, and creates the key if needed: [IMAGE=tune.sif KEY=private.pem]
	@containers/sign.sh sign

verify: ## checks that tune.sif is signed and unchanged: [IMAGE=tune.sif KEY=public.pem]
	@containers/sign.sh verify

dist: ## packs siftune-VERSION.tar, to unpack on a cluster and submit from there
	@slurm/dist.sh

submit: ## submits a study to a Slurm cluster: GPUS=8, or NODES=2 without GPUs [SITE=turpan TIME=2:00:00 NAME=… DRY_RUN=1 ARGS="--searcher hebo"]; or any Ray program: RUN="python ray_tune.py"
	@slurm/submit.sh

grow: ## adds GPUs to a running study: JOB=… GPUS=2 [SITE=… TIME=…]
	@GROW="$${JOB:-none}" slurm/submit.sh

site: ## writes slurm/sites/NAME.env from what Slurm says of this cluster, for you to check: NAME=…
	@slurm/newsite.sh

status: ## shows the queue and the studies: [STUDY=…]
	@slurm/status.sh

cancel: ## saves the study of a job and ends the job; a second time: at once. JOB=…
	@slurm/cancel.sh

logs: ## follows the log of the newest job
	@slurm/logs.sh

check: lint ## for daily work: checks style and types, and runs the tests that need neither Ray nor the cluster; ARGS="-k journal"
	@$(WORDS) && $(VENV)/bin/python -m tests check "$$@"

cases: setup ## runs a directory of cases, each with a run.sh that exits with 0 if the behaviour is right: CASES=DIR
	@$(VENV)/bin/python -m tests cases "$${CASES:?give the directory of cases: make cases CASES=DIR}"

test: lint ## runs all tests; ARGS="tests/unit"
	@$(WORDS) && $(VENV)/bin/python -m tests "$$@"

# Not part of `make test`, because it takes half an hour.
test-arm: setup ## builds and tests Turpan's image under emulation on the virtual cluster; needs root
	SIFTUNE_ARCH=arm64 $(VENV)/bin/python -m pytest tests/container/test_image.py --timeout=7200 $(ARGS)

# Not part of `make test`, because the lock files pin a newer Ray, 2.60.
test-oldest-ray: setup ## runs tests/ray on the oldest Ray that pyproject.toml allows
	$(UV) pip install -q --target $(VENV)/oldest-ray --no-deps \
		"ray==$$(sed -nE 's/.*"ray\[tune\]>=([0-9.]+),.*/\1/p' pyproject.toml)"
	PYTHONPATH=$(VENV)/oldest-ray $(VENV)/bin/python -c 'import ray; print("Ray", ray.__version__)'
	PYTHONPATH=$$PWD/$(VENV)/oldest-ray $(VENV)/bin/python -m pytest tests/ray $(ARGS)

lint: setup ## checks style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck -x -P SCRIPTDIR $$(git ls-files '*.sh' '*.sbatch' tests/stand_ins .ci/run)
	$(VENV)/bin/shellcheck -s bash -e SC2034 slurm/sites/*.env

$(VENV)/bench: $(VENV)/ready $(LOCKS)/bench.lock
	$(UV) pip install -q --python $(VENV)/bin/python --require-hashes --no-deps -r $(LOCKS)/bench.lock
	@touch $@

bench: setup $(VENV)/bench ## runs the benchmarks: siftune and other tools side by side, as ratios; ARGS="overhead search"
	@$(WORDS) && $(VENV)/bin/python -m tests.bench "$$@"

soak: setup ## injects random faults into a long study on the virtual cluster: ARGS="--minutes 60 --seed 1"
	@$(WORDS) && $(VENV)/bin/python -m tests.cluster.soak "$$@"

cluster: ## starts the virtual cluster for tests: Slurm with four nodes on this machine; needs root (tests/cluster/README.md)
	tests/cluster/up.sh

cluster-down: ## stops the virtual cluster
	tests/cluster/down.sh

lock: setup ## updates all lock files, for the image and for development, from pyproject.toml
	$(COMPILE) pyproject.toml --extra hebo --overrides $(LOCKS)/site.overrides -o $(LOCKS)/site.lock
	$(COMPILE) pyproject.toml --extra hebo -c $(LOCKS)/site.lock -o $(LOCKS)/cu13.lock
	$(COMPILE) pyproject.toml --extra hebo -c $(LOCKS)/site.lock -c $(LOCKS)/cu12.constraints -o $(LOCKS)/cu12.lock
	$(COMPILE) pyproject.toml --extra hebo --group dev -c $(LOCKS)/cu13.lock -o $(LOCKS)/dev.lock
	$(COMPILE) --group bench --no-deps -c $(LOCKS)/dev.lock -o $(LOCKS)/bench.lock
	$(COMPILE) --group bootstrap -c $(LOCKS)/dev.lock -o $(LOCKS)/bootstrap.lock

clean: ## removes the environment and caches, but no studies or data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
