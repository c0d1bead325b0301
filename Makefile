# Targets that people, hooks and CI share. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
# Where torch comes from: pypi (pip's own default), cpu, or a CUDA tag such as cu130. The last choice is kept.
TORCH ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),pypi)
STAMP := $(VENV)/.installed-$(TORCH)
TORCH_PIN = $(shell grep -E '^torch==' requirements.lock)
TORCH_INDEX := $(if $(filter pypi,$(TORCH)),,--index-url https://download.pytorch.org/whl/$(TORCH))
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# Settings of a pipeline that runs in minutes; docker/check reads this line too.
SMALL := sample.n=24 generate.preset=small evaluate.n_trials=60 live_validate.n=16 live_validate.decoding_n=8 live_validate.switch_traces=10

# Stages call `python`; it must be the one of the virtual environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup repro small test lint format lock transition real-model instructions directed bench paper ui image-check clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "  TORCH=pypi|cpu|cu130 chooses where setup takes torch from (now: $(TORCH))"

setup: $(STAMP) ## create .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later on PATH: install one" >&2; exit 1; }
	@echo "Setting up $(VENV): torch from $(TORCH), the rest from requirements.lock (some minutes)"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	test -e $@ || ! ls $(VENV)/.installed-* 2>/dev/null || $(PIP) uninstall --quiet --yes torch
	rm -f $(VENV)/.installed-*
	$(PIP) install --quiet $(TORCH_INDEX) "$(TORCH_PIN)"
	$(PIP) install --quiet --requirement requirements.lock
	$(PIP) install --quiet --constraint requirements.lock --no-build-isolation --editable '.[pipeline]'
	@touch $@

repro: setup ## run the pipeline, fill README and docs with its numbers, print its summary and where to look next
	dvc repro
	kvguard numbers
	@kvguard summary

small: setup ## run a small pipeline on the last commit, in a fresh clone under build/small
	rm -rf build/small && git clone --quiet . build/small
	cd build/small && dvc exp run $(addprefix --set-param ,$(SMALL)) && kvguard summary

test: setup ## run the tests, on all cores
	OMP_NUM_THREADS=1 python -m pytest -n logical --dist loadfile -m 'not slow and not gpu and not real_model and not browser'
	python -m pytest -m browser

lint: setup ## check style and types
	ruff check .
	ruff format --check .
	mypy

format: setup ## fix style
	ruff check --fix .
	ruff format .

lock: ## pin the newest allowed versions in requirements.lock, torch as it is
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $(TORCH_INDEX) "$(or $(TORCH_PIN),torch)" setuptools
	build/lock/bin/python -m pip install --quiet --no-build-isolation "$(or $(TORCH_PIN),torch)" ".[dev,pipeline]"
	build/lock/bin/python -m pip check
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude kvguard \
		| grep -vE '^(nvidia-(cu|nvjitlink|nvshmem|nvtx)|cuda-|triton==)' | LC_ALL=C sort -f \
		| sed -E -e 's/^([^+]+)\+.*/\1/' \
			-e 's/^(bitsandbytes.*)/\1 ; platform_system == "Linux"/' \
			-e 's/^(nvidia-nccl.*)/\1 ; platform_system == "Linux" and platform_machine == "x86_64"/' \
		> build/requirements.lock
	mv build/requirements.lock requirements.lock && rm -rf build/lock

transition: setup ## measure where along context length SnapKV makes reference_long unreliable (docs/transition.md)
	kv-transition all -c config/experiments/reference.yaml
	@echo "runs/transition-reference/report.html"

# What two CPU cores do in hours: fewer prompts, conditions and live policies than the default run.
REAL_MODEL := model=smollm135m_gsm8k transfer_to=reference sample.n=200 generate.preset=seed16 generate.prompts_per_part=25 \
	train.fits=1 evaluate.balanced_fpr=0.1 validate.max_snapkv_inside_window=0.2 live_validate.n=100 live_validate.conditions=[snapkv@0.5,snapkv@0.75] \
	live_validate.prompts_per_part=25 live_validate.actions=[restore,rollback] live_validate.baselines=[rollback_v2,clock] \
	live_validate.decoding_n=0 live_validate.switch_traces=0 \
	$(if $(BASE),models.smollm135m_gsm8k.source=path:$(abspath $(BASE))) \
	$(if $(GSM8K),tasks.gsm8k_zero_shot.source=$(abspath $(GSM8K)))

real-model: setup ## run the pipeline on SmolLM2-135M, fine-tuned on GSM8K (hours; BASE=its folder GSM8K=test.jsonl without the hub; docs/real-models.md)
	dvc exp run $(foreach setting,$(REAL_MODEL),-S '$(setting)') report

instructions: setup ## ask reference_instruct to follow instructions under eviction, protected and not (docs/instructions.md)
	kvguard instructions run --model reference_instruct --settings studies/instructions/params.yaml --track

directed: setup ## read documents behind prefixes that are then cut away: every track on embedded models (docs/directed.md)
	kvguard directed experiment decoder-0{1..3} compression-01 prefixlm-0{1..3} --model reference_long --dataset reading -n 40
	kvguard directed experiment encdec-01 encdec-0{3..9} encdec-10 --model reference_encdec --dataset facts -n 40
	kvguard directed experiment encdec-02 --model reference_encdec --dataset facts -n 16  # reads up to 4,096 tokens
	kvguard directed report

bench: setup ## timed comparisons, one after another (benchmarks/serve.py and lm_eval_check.py want arguments: see their --help)
	for name in boost directed features guard memory sweep tables transition; do python benchmarks/$$name.py; done

paper: setup ## write the results paper from the last run: build/paper/paper.pdf (needs pdflatex)
	python paper/build.py

ui: setup ## open the tracked runs at http://127.0.0.1:5000
	mlflow ui

image-check: ## build the container image and run it, with Docker or without
	docker/check

clean: ## remove .venv and every cache; data, runs and models stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
