# Every target does its own set-up in .venv from a bare clone.

PYTHON ?= python3
MINUTES ?= 7
VIDEOS ?=
STORE ?= false
ROOT ?= $(if $(VIDEOS),runs/demo_videos,runs/demo)

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
OP_BUILT := $(VENV)/op_built
GPU_NEEDS := .gpu_needs
SOURCES := magvit_scale data_prep slurm benchmarks tests setup.py

export PATH := $(CURDIR)/$(BIN):$(PATH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export PYTHONPATH := $(CURDIR)
# Through the environment, so that a folder's name reaches the shell as one word whatever is in it.
export VIDEOS ROOT MINUTES

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slurm faults bench-data bench-training claims check clean bench-growth bench gpu-check
.DELETE_ON_ERROR:

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

install: $(INSTALLED) $(OP_BUILT)  ## create .venv and install the package with its tools

demo: install  ## videos to generated clips in MINUTES=7 on two cores; VIDEOS=FOLDER takes your own, ROOT=FOLDER is the run folder
	@$(BIN)/python -m slurm.launch configs/pipeline/demo.yaml "root=\"$$ROOT\"" "minutes=$$MINUTES" \
		$${VIDEOS:+"videos=\"$$VIDEOS\""}

test: install  ## every test that needs no GPU
	$(BIN)/python -m pytest -q -m "not gpu"

test-slurm: install  ## the launcher on a SLURM cluster of three nodes on this machine; root on Debian, installs its packages
	MAGVIT_SLURM_TESTS=1 $(BIN)/python -m pytest -q tests/slurm

faults: install  ## only the tests that kill, damage, fill disks and cut connections; 100 kills of training runs
	MAGVIT_NUM_KILLS=$${MAGVIT_NUM_KILLS:-100} $(BIN)/python -m pytest -q tests/integration/test_*faults.py \
		tests/integration/test_interruptions.py tests/integration/test_run_*.py tests/integration/test_elastic_runs.py \
		tests/unit/data/test_remote.py tests/unit/data_prep/test_list_videos_killed.py

bench: install  ## speed beside its ceilings on one core, five minutes, and what moved; STORE=true stores it
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed store=$(STORE)
	$(BIN)/python -m benchmarks.table

gpu-check: $(GPU_NEEDS)  ## the same on a GPU, stored, with the torch (2.11 or later) and the numpy that PYTHON has
	PYTHONPATH="$(CURDIR):$(CURDIR)/$(GPU_NEEDS)" "$(PYTHON)" -m benchmarks.speed device=cuda rounds=5 minutes=6 store=true
	"$(PYTHON)" -m benchmarks.table

bench-data: install  ## the data side beside its peers, three minutes; figures into docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.table

bench-training: install  ## the training engine: loop, checkpoints, memory; ten minutes; figures into docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.engine
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.partition
	$(BIN)/python -m benchmarks.table

claims: install  ## the paper's claims at the demo's scale, an hour of one core; ROOT is a finished demo; into docs/claims.md
	@for name in inflation conditioning losses tasks decoding; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.claims.$$name "root=\"$$ROOT\"" || exit 1; done
	$(BIN)/python -m benchmarks.claims.page

bench-growth: install  ## how cost grows, a run of 1,024 GPUs on paper, its data plane; six minutes; into docs/benchmarks.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.at_scale
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.data_plane
	$(BIN)/python -m benchmarks.table

check: $(INSTALLED)  ## style, types, import directions
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:  ## remove .venv and the tools' caches; runs/ stays
	rm -rf $(VENV) $(GPU_NEEDS) .mypy_cache .ruff_cache .pytest_cache magvit_scale.egg-info build

$(BIN)/python:
	@case "$(CURDIR)" in *[[:space:]]*) echo "found a blank in $(CURDIR), which torch's compiler flags cannot take;" \
		"move the checkout to a folder without one"; exit 1;; esac
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; (3, 10) <= v[:2] < (3, 13) or sys.exit(\
		f"found Python {v[0]}.{v[1]} ({sys.executable}), expected 3.10, 3.11 or 3.12; give one: make PYTHON=python3.11")'
	"$(PYTHON)" -m venv $(VENV)

$(INSTALLED): setup.py constraints.txt | $(BIN)/python
	@echo "== installing the package and its tools into $(VENV): some minutes, once =="
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[dev]" -c constraints.txt
	@touch $@

# What the speed benchmark needs besides torch and numpy, beside whatever Python: a machine with a GPU and no network can
# be given this folder.
$(GPU_NEEDS):
	"$(PYTHON)" -m pip install --quiet --disable-pip-version-check --no-deps --target $@ einops omegaconf PyYAML safetensors

# DeepSpeed compiles its communication for CPUs at the first start; done here once, so that no run waits for it or is
# killed in the middle of it. Without a compiler DeepSpeed does without.
$(OP_BUILT): $(INSTALLED)
	@echo "== preparing DeepSpeed for CPUs: about a minute, once =="
	@rm -rf "$(TORCH_EXTENSIONS_DIR)"
	@DS_ACCELERATOR=cpu $(BIN)/python -c 'from magvit_scale.training import distributed, engines; distributed.start(); engines.connect()' \
		> $(VENV)/op_build.log 2>&1 \
		|| { tail -n 20 $(VENV)/op_build.log; echo "DeepSpeed did not start; the whole log: $(VENV)/op_build.log"; exit 1; }
	@touch $@
