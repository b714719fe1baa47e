# `make` alone shows what there is. Everything installs what it needs, once.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-config

.PHONY: help demo test check bench fuzz sim docs fmt lock clean setup

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## See it work: pull request in, container out, teardown proved (KEEP=1 keeps it running)
	@deploy/bootstrap.sh demo
	@$(BIN)/gpuaas demo $(if $(KEEP),--keep) $(ARGS)

test: check ## Lint, types, and every test, on real services (ARGS='-k registry' for some)
	@$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

check: setup ## Lint and types alone
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: setup ## Commit to running, beside bare docker (BENCH=validate, plan, converge for the others)
	@$(BIN)/python -m bench.$(or $(BENCH),commit_to_running) $(ARGS)

fuzz: setup ## Feed validate with broken files for a minute (ARGS='--seconds 600 --seed 7')
	@$(BIN)/python -m bench.fuzz_validate $(ARGS)

sim: setup ## Simulate fleets with faults of every kind (SEEDS=10000, ARGS='--start 7')
	@$(BIN)/python -m tests.sim --seeds $(or $(SEEDS),1000) $(ARGS)

docs: setup ## Renew the reference pages from schemas, commands and code
	@$(BIN)/python docs/generate.py

fmt: setup ## Sort imports and mend what can be mended by itself
	@$(BIN)/ruff check --fix .

lock: setup ## Renew both lock files from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(BIN)/python -m pip --quiet install uv
	@$(LOCK) --extra build --output-file requirements.lock $(ARGS)
	@$(LOCK) --extra build --extra dev --constraint requirements.lock \
		--output-file requirements-dev.lock $(ARGS)

clean: ## Remove what was made here; containers and services are ended by what started them
	@rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis .pytest_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@deploy/bootstrap.sh test
