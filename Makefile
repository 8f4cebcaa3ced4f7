# `make` lists what can be made. Every target sets up what it needs (.ci/setup).

PYTHON ?= python3
ONCE ?=
TESTS ?= tests

BIN := .venv/bin

# In CI a missing part is a failure and not a skip.
ifneq ($(CI),)
export DICOMFS_TEST_REQUIRE ?= 1
endif
export PYTHON ONCE

.DEFAULT_GOAL := help
.PHONY: help setup test lint fix demo bench quality clean lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing: Debian packages, .venv
	@.ci/setup

test: lint ## everything that can be checked (TESTS=tests/unit: a part of it)
	@$(BIN)/python -m pytest $(TESTS)

lint: setup ## format, style and types
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

fix: setup ## format and repair style
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

demo: setup ## real images sent, mounted, shared; until Ctrl-C (ONCE=1: ends by itself)
	@$(BIN)/python -m tests.demo

bench: ## speed, as ratios against others (BENCH="read copy": these only, SAVE=file.md: kept there)
	@.ci/setup bench
	@$(BIN)/python -m tests.bench $(BENCH) $(if $(SAVE),--save "$(SAVE)")

quality: ## what images look like, in figures, beside others (DATA=folder of DICOM files, SHEET=picture.png)
	@.ci/setup bench
	@$(BIN)/python -m tests.quality $(if $(DATA),--data "$(DATA)") $(if $(SHEET),--sheet "$(SHEET)")

clean: ## remove what was made here
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

lock: setup ## choose new versions: rewrite requirements.lock
	@rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock && .venv/lock/bin/python -m pip install --quiet uv
	@.venv/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock pyproject.toml
	@rm -rf .venv/lock
