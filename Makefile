# The verbs of this project. Each does all its own set-up: only Python 3.11+ and a package index are needed.
SHELL := /bin/bash
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --quiet --all-extras
ARGS ?=

.PHONY: setup demo run test check format torture bench lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.uv/bin/uv:
	@echo "uv is missing: fetching it with pip into .uv/"
	@$(PYTHON) -m venv .uv
	@.uv/bin/pip install --quiet 'uv>=0.13,<0.14'

setup: $(filter .uv/bin/uv,$(UV))  ## the environment in .venv, and the git filter that keeps uv.lock portable
	@$(UV) sync --quiet --all-extras
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	  git config filter.portable-lock.clean "$(PYTHON) .ci/portable_lock.py"; \
	  git config filter.portable-lock.smudge cat; \
	  git update-index -q --refresh -- uv.lock || true; fi

demo: setup  ## the main job in half a minute, without a network
	@$(RUN) crypto-lake demo $(ARGS)

run: setup  ## the daemon: make run ARGS="--datasets agg_trade --symbols BTCUSDT"
	@$(RUN) crypto-lake run $(ARGS)

test: setup  ## the tests, in two processes: make test ARGS="-k journal"
	@$(RUN) pytest -n 2 --dist loadfile $(ARGS)

check: setup  ## lint, format, types, import order, and the form of uv.lock
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports --no-cache
	@! git show HEAD:uv.lock 2>/dev/null | grep -n '://' || { echo "uv.lock in HEAD names an index: make lock, then commit it again" >&2; exit 1; }
	@! git show :uv.lock 2>/dev/null | grep -n '://' || { echo "the staged uv.lock names an index: make setup, then git add uv.lock" >&2; exit 1; }

format: setup  ## what check would complain about and can be mended by a machine
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

torture: setup  ## thirty trials of random faults and kills against everything that was sent: ARGS="--seeds 7 --keep"
	@$(RUN) python -m torture $(ARGS)

bench: setup  ## the figures of this machine, as ratios, in benchmarks/results/latest.json
	@$(RUN) --group bench python -m benchmarks $(ARGS)

lock: setup  ## resolve anew, and write uv.lock in its portable form
	@$(UV) lock --quiet --upgrade
	@$(PYTHON) .ci/portable_lock.py < uv.lock > uv.lock.portable && mv uv.lock.portable uv.lock

clean:  ## what the demo and the tests left behind (never tables/ or var/)
	@rm -rf demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
