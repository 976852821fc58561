# Two commands do everything on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.14,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test lint format docs docs-site clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/'

setup: $(READY) ## Prepare .venv with the tested versions; does nothing when it is up to date

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "dagman needs Python 3.11 or newer; name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: setup ## Run the whole pipeline on synthetic CTs (at most ten minutes on two cores); prints the path of its report
	$(BIN)/dagman demo --out demo

test: setup ## Run everything: tests, formatting, types, layers and coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

lint: setup ## Check formatting, types and layers only
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Reformat the code
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

docs: setup ## Regenerate the reference page of the settings from their docstrings
	$(BIN)/python -c 'from dagman.settings.reference import render_reference; print(render_reference(), end="")' > docs/settings.md

docs-site: setup ## Build the documentation site into site/, with the API reference; needs the extra docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

clean: ## Remove .venv, the demo's output and the caches
	rm -rf .venv demo site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
