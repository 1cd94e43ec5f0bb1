# `make test` sets up what is missing.
#
#   PYTHON=...   interpreter to start from (python3)

override PYTHON := $(or $(PYTHON),python3)

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist

.PHONY: test check lint types doctest setup clean

test: setup
	$(PYTEST) -n auto

check: lint types doctest test

lint: .venv/ready-to-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready-to-check
	$(BIN)/mypy

doctest: setup
	$(PYTEST) --doctest-modules src/moe_align

setup: .venv/ready

.venv/ready: requirements.txt constraints.txt
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -r requirements.txt
	touch $@

.venv/ready-to-check: requirements-check.txt .venv/ready
	$(PIP_INSTALL) -r requirements-check.txt
	touch $@

clean:
	rm -rf .venv
